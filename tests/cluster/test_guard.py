import time

import pytest

from fedmef_dist.cluster import guard as module
from fedmef_dist.cluster.guard import Guard, SignsOfLife, Silence


@pytest.fixture
def clock(monkeypatch):
    """Moves by hand."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_silence_lasts_until_the_value_changes(clock):
    silence, lengths = Silence(), []
    for seen in (1, 1, 1, 2, 2, 2):
        clock[0] += 0.5
        lengths.append(silence.look(seen))
    assert lengths == [0.0, 0.5, 1.0, 0.0, 0.5, 1.0]


def test_the_time_in_which_this_process_was_stopped_itself_does_not_count(clock):
    silence = Silence()
    silence.look(1)
    clock[0] += 3600
    assert silence.look(1) == 1.0  # two looks' worth at most


@pytest.fixture
def causes(monkeypatch):
    """`causes(signs, seconds)`: what a guard finds within so long, where hung is what is silent for 0.1 s."""
    monkeypatch.setattr(module, "HUNG_SECONDS", 0.1)
    monkeypatch.setattr(module, "_FAREWELL_SECONDS", 0.1)
    monkeypatch.setattr(module, "_CHECK_SECONDS", 0.02)

    def find(signs, seconds):
        found = []
        guard = Guard(signs, found.append)
        guard.start()
        deadline = time.monotonic() + seconds
        while not found and time.monotonic() < deadline:
            time.sleep(0.01)
        guard.close()
        guard._thread.join(60)
        return found

    return find


def counting():
    count = iter(range(10**6))
    return lambda: next(count)


@pytest.mark.parametrize(
    ("looks", "beat", "lost", "expected"),
    [
        (counting(), lambda: "1.0", None, ["neighbour"]),
        (counting(), lambda: "", None, ["neighbour"]),  # it never began to beat
        (lambda: 7, lambda: "1.0", None, ["store"]),  # then the neighbour's beat cannot be read either
        (lambda: 7, lambda: "1.0", "another rank has lost its peers", ["lost"]),
        (counting(), counting(), None, []),
        (counting(), lambda: None, None, []),  # it has left
    ],
)
def test_what_has_hung_is_told_apart_and_said_once(causes, looks, beat, lost, expected):
    assert causes(lambda: SignsOfLife(looks(), beat(), lost), seconds=60 if expected else 0.5) == expected
