"""Run directories as a run writes them, without running: configuration, metrics, checkpoints, summary."""

import hashlib

from fedmef_dist.base.atomic import write_json
from fedmef_dist.runs.checkpoint_files import folder_of, write_checkpoint
from fedmef_dist.runs.directory import claim, write_configuration
from fedmef_dist.tracking.jsonl import JsonlTracker
from fedmef_dist.tracking.lines import head_in

TREE = {"name": "x", "method": {"name": "fedmef"}, "federation": {"rounds": 6}, "optimizer": {"schedule": "none"}}


def configured(path, tree):
    """A directory that a run has claimed, and left before its first round."""
    with claim(path) as owner:
        owner.begin(0)
        write_configuration(path, tree)


def model_digest(number):
    return hashlib.sha256(bytes([number])).hexdigest()


def metrics_of(number):
    return {
        "round": number,
        "eval/accuracy": number / 10,
        "wire/total_bytes": 100 * number,
        "time/round": 0.5,
        "model/digest": model_digest(number),
    }


def checkpoint_files(path, number, tracker_state):
    """The files of a checkpoint with these tracker's values; what is in the tensors does not matter."""
    state = {"round": number, "parts": {"model": {"digest": model_digest(number)}}, "tracker": tracker_state}
    write_checkpoint(path / "checkpoints" / folder_of(number), bytes([number]) * 99, state)


def run_rounds(path, last, first=1, saves=(), state=None):
    """Rounds as a run logs them, from ``first`` on; the tracker's state at the end."""
    tracker = JsonlTracker(path / "metrics.jsonl", first - 1 if first > 1 else None, state)
    for number in range(first, last + 1):
        tracker.log(metrics_of(number))
        if number in saves:
            checkpoint_files(path, number, tracker.state())
    tracker.finish({})
    tracker.close()
    return tracker.state()


def finished(path, rounds=6):
    """A whole finished run with checkpoints of its middle and its end."""
    with claim(path, rounds) as owner:
        owner.begin(0)
        write_configuration(path, {**TREE, "federation": {"rounds": rounds}})
        state = run_rounds(path, rounds, saves=(rounds // 2, rounds))
        last = metrics_of(rounds)
        summary = {
            "rounds": rounds,
            "eval/accuracy_last": last["eval/accuracy"],
            "eval/accuracy_best": last["eval/accuracy"],
            "wire/total_bytes": last["wire/total_bytes"],
            "model/digest": last["model/digest"],
            **head_in(state).summary(),
        }
        write_json(path / "summary.json", summary)
        owner.reach(rounds)
        owner.finished = True
    return path
