import json

from tiny import alone, tiny

from fedmef_dist.session.session import simulate


def test_the_devices_memory_is_told_again_where_the_masks_counts_have_changed(tmp_path):
    config = tiny(method={"name": "prunefl", "density": 0.5, "adjust_every": 2, "initial": "none"})
    summary = simulate(config, alone(), tmp_path, "auto").values
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = {row["round"]: row["memory/device_bytes"] for row in rows if "memory/device_bytes" in row}
    density = {row["round"]: row["sparsity/density"] for row in rows}
    assert list(told) == [1, 2, 4, 6]
    for before, now in [(1, 2), (2, 4), (4, 6)]:
        assert (told[now] > told[before]) == (density[now] > density[before])
    assert [row["round"] for row in rows if "memory/peak_bytes" in row] == [1]
    assert summary["memory/device_bytes"] == told[6]


def test_it_is_told_once_where_they_stay(tmp_path):
    simulate(tiny(), alone(), tmp_path, "auto")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows if "memory/device_bytes" in row] == [1]
