"""A rank whose main thread stands still is told apart from one that trains long; no time passes in these tests."""

import pytest
import torch
import torch.distributed as dist

from fedmef_dist.cluster import guard
from fedmef_dist.cluster import watch as watches
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.cluster.guard import SignsOfLife, Verdict
from fedmef_dist.cluster.interruption import GraceTime, Interruption
from fedmef_dist.cluster.progress import Mark, Progress, patience, read_mark
from fedmef_dist.cluster.watch import Watch


class Clock:
    """Moves by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


# --- marks


def test_the_longest_step_is_that_between_two_marks_without_the_waiting_for_others():
    clock = Clock()
    progress = Progress(clock)
    with progress.expected():
        for seconds in (2.0, 5.5, 1.0):
            clock.now += seconds
            progress.mark()
        clock.now += 1000.0
        progress.waited()
        clock.now += 3.0
        progress.mark()
        assert progress.text(waiting=False) == "6 5.500"  # the start counts too


def test_a_mark_need_not_move_before_the_rounds_while_waiting_and_behind_the_rounds():
    progress = Progress(Clock())
    assert progress.text(waiting=False) == ""
    with progress.expected():
        assert progress.text(waiting=False) == "1 0.000"
        assert progress.text(waiting=True) == ""
    assert progress.text(waiting=False) == ""


def test_a_start_that_took_long_is_no_step():
    clock = Clock()
    progress = Progress(clock)
    clock.now += 5000.0
    with progress.expected():
        progress.mark()
        assert read_mark(progress.text(waiting=False)) == Mark(2, 0.0)


@pytest.mark.parametrize("text", ["", "7", "x 1.0", "7 nan", "7 inf", "7 1.0 2", "\x1b[2J 1"])
def test_what_no_rank_writes_is_no_mark(text):
    assert read_mark(text) is None


@pytest.mark.parametrize(
    ("longest", "least", "seconds"),
    [(0.0, 300.0, 300.0), (15.0, 300.0, 300.0), (60.0, 300.0, 1200.0), (1.0, 600.0, 600.0)],
)
def test_how_long_a_mark_may_stand_still(longest, least, seconds):
    assert patience(longest, least) == seconds


# --- who leaves marks


def count(watch):
    with watch.progress.expected():
        return read_mark(watch.progress.text(waiting=False)).steps


def test_batches_places_rounds_ends_and_collectives_leave_marks():
    watch = Watch(Environment("single", 0, 1, 0, 1, None, None))
    grace = GraceTime(1.0, Interruption(), watch)
    assert count(watch) == 1
    assert list(grace.heed("ab")) == ["a", "b"]
    assert count(watch) == 4
    watch.place = "round 1, client 2"
    grace.end()
    assert count(watch) == 7
    assert list(watch.progress.through("abc")) == ["a", "b", "c"]
    assert count(watch) == 11


class Transport:
    """Notes what a rank shows of itself while it is inside a collective."""

    def all_reduce(self, tensor):
        self.text = self.group.watch.progress.text(self.group.watch.waiting)


def test_a_collective_is_two_marks_and_inside_it_none_is_expected():
    transport = Transport()
    group = transport.group = Group(Environment("srun", 0, 2, 0, 1, "n", 1), torch.device("cpu"), "gloo", transport)
    with group.watch.progress.expected():
        group.all_reduce(torch.zeros(1))
        assert transport.text == ""
        assert read_mark(group.watch.progress.text(group.watch.waiting)).steps == 3


# --- who looks at them


@pytest.fixture
def clock(monkeypatch):
    """The guard's."""
    clock = Clock()
    monkeypatch.setattr(guard.time, "monotonic", clock)
    return clock


def first_cause(clock, seconds, mark, waiting=lambda now: True):
    """What a guard finds that looks twice a second, and after how many seconds; `mark(now)` is the neighbour's."""
    verdict = Verdict()
    for look in range(2 * seconds):
        clock.now += 0.5
        now = look / 2
        cause = verdict.look(SignsOfLife(look, str(look), None, mark(now) if waiting(now) else None))
        if cause is not None:
            return cause, now
    return None


def test_a_mark_that_stands_still_for_300_s_is_a_rank_that_has_stuck(clock):
    assert first_cause(clock, 400, lambda now: Mark(7, 2.0)) == ("stuck", 300.5)


def test_a_rank_of_long_steps_gets_twenty_times_the_longest(clock):
    assert first_cause(clock, 2500, lambda now: Mark(7, 100.0)) == ("stuck", 2000.5)


def test_a_rank_that_trains_long_with_marks_that_move_is_never_named(clock):
    assert first_cause(clock, 50_000, lambda now: Mark(int(now // 299), 3.0)) is None


def test_nobody_is_named_by_a_rank_that_does_not_wait(clock):
    assert first_cause(clock, 5000, lambda now: Mark(7, 2.0), waiting=lambda now: False) is None


def test_the_silence_begins_with_the_wait(clock):
    assert first_cause(clock, 5000, lambda now: Mark(7, 2.0), waiting=lambda now: now >= 1000) == ("stuck", 1300.5)


def test_a_process_that_was_stopped_itself_blames_nobody(clock):
    verdict = Verdict()
    for look in range(100):
        clock.now += 3600.0
        assert verdict.look(SignsOfLife(look, str(look), None, Mark(7, 2.0))) is None


# --- what is said


@pytest.fixture
def ranks(monkeypatch):
    """Three ranks with one store, none of whose threads run, and the statuses that they end with."""
    statuses = []
    monkeypatch.setattr(watches.os, "_exit", statuses.append)
    monkeypatch.setattr(watches.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(watches, "_ANSWER_SECONDS", 0.0)
    store = dist.HashStore()
    for key in ("deadline", "call", "clients"):
        store.set(f"watch/{key}", "")
    found = [Watch(Environment("srun", rank, 3, 0, 1, "n", 1), store) for rank in range(3)]
    for rank, watch in enumerate(found):
        watch._host, watch.ends_process, watch.place = f"n{rank}", True, f"round 3, client {rank}"
        watch._called_at = 0.0
        watch._turn()
    yield found, statuses
    for watch in found:
        watch.close()


def look_again(watch):
    watch._relay._asked_at = watch._relay._beat_at = watch._relay._peeked_at = -float("inf")
    watch._turn()


def test_the_watch_names_rank_host_round_and_client_once_and_ends_the_process(ranks, capsys):
    found, statuses = ranks
    with found[2].progress.expected():
        look_again(found[2])
    found[1].waiting = True
    look_again(found[1])
    assert found[1]._signs().node_mark.steps == 2  # the place, and the beginning of the rounds
    found[1]._end("stuck node")
    found[0]._end("stuck node")  # another one speaks already
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "rank 1 of 3 on n1: stopped in round 3, client 1, no progress for 300 s: "
        "waits for rank 2 on n2, last seen in round 3, client 2"
    )
    assert statuses == [1, 1]


def test_what_a_stranger_writes_for_a_mark_is_ignored(ranks):
    found, _ = ranks
    found[1].waiting = True
    for told in (
        b"\xff 7 soon",
        b'["1", false, {"2": ["7 soon", "n2", "round 3", false, true, false]}]',
        b'[1, 2, {"2": []}]',
    ):
        found[1]._store.set("watch/node/2", told)
        look_again(found[1])
        assert found[1]._signs().node_mark is None
