import math
import multiprocessing
import os
import signal

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.tracking import TrackingSettings, WandbSettings, open_trackers
from fedmef_dist.tracking.tensorboard import find_tensorboard

pytest.importorskip("tensorboard")

SETTINGS = TrackingSettings(console=False, tensorboard=True, wandb=WandbSettings(mode="disabled"))


def play(folder, first, last, killed=False):
    trackers = open_trackers(SETTINGS, folder, {}, 9, first - 1 or None, {})
    for number in range(first, last + 1):
        trackers.log({"round": number, "train/loss": 1 / number, "model/digest": "x", "clients/refused": 0})
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
    trackers.finish({"rounds": last})
    trackers.close()


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_every_number_of_every_round_is_there_once_also_after_a_kill(tmp_path):
    # A writer that only this process forgot would still write from its thread, into files that the next one removed.
    first = multiprocessing.get_context("spawn").Process(target=play, args=(tmp_path, 1, 4, True))
    first.start()
    first.join(120)
    assert first.exitcode == -signal.SIGKILL
    assert list((tmp_path / "tensorboard").iterdir())
    play(tmp_path, 3, 5)
    found = scalars(tmp_path)
    assert set(found) == {"train/loss", "clients/refused"}
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5]
    assert all(math.isclose(value, 1 / step, rel_tol=1e-6) for step, value in found["train/loss"])


def test_a_writer_that_fails_is_one_line(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("in the way")
    play(tmp_path, 1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tracker tensorboard failed in ")
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


def test_a_missing_package_is_known_before_the_run(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="tensorboard cannot be imported"):
        find_tensorboard()
