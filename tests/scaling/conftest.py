import json

import numpy as np
import pytest

from fedmef_dist.tracking.timeline import PHASES


@pytest.fixture
def run_dir(tmp_path):
    """A run of two ranks: a round to warm up and two of 10 s, of which rank 0 trains 6 and rank 1 trains 4."""

    def span(rank, name, start, end, **details):
        place = {"ph": "X", "pid": rank, "tid": 0, "ts": round(1e6 * start), "dur": round(1e6 * (end - start))}
        return {"name": name, **place, "args": details}

    (tmp_path / "timeline").mkdir()
    for rank, train in ((0, 6.0), (1, 4.0)):
        events = [{"name": "peak memory", "ph": "C", "pid": rank, "ts": 0, "args": {"bytes": 100 + rank}}]
        for number in (1, 2, 3):
            start = 100.0 + 11.0 * number  # a second lies between two rounds
            edges = np.cumsum([start, train, 6.0 - train, 1.0, 1.0, 2.0])
            events.append(
                span(rank, f"client {rank}", start, start + train, round=number, samples=50 * (rank + number))
            )
            events += [span(rank, name, *edges[place : place + 2], round=number) for place, name in enumerate(PHASES)]
        lines = "".join(f"{json.dumps(event)},\n" for event in events)
        (tmp_path / "timeline" / f"rank-{rank:03d}.json").write_text(f"[\n{lines}")
    lines = [json.dumps({"round": number, "cluster/reduce_bytes": 1000 * number}) for number in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "process.json").write_text(json.dumps({"seconds": 40.0}))
    return tmp_path
