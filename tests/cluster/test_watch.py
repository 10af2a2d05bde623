import time

import pytest
import torch.distributed as dist

from fedmef_dist.cluster import guard
from fedmef_dist.cluster import watch as module
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.watch import Watch, pace


def environment(rank, size=3, launcher="srun"):
    return Environment(launcher, rank, size, 0, 1, "localhost", 1)


@pytest.fixture
def watches(monkeypatch):
    """Three ranks that share a store and look into it often; each with a host name of its own."""
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "_PUBLISH_SECONDS", 0.01)
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.3)
    store = dist.HashStore()
    ranks = [Watch(environment(rank), store) for rank in range(3)]
    for rank, watch in enumerate(ranks):
        watch._host = f"n{rank}"
    yield ranks
    for watch in ranks:
        watch.close()


def until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(*watches):
    for watch in watches:
        watch.start()


def test_a_deadline_of_one_rank_reaches_all_and_the_earliest_counts(watches):
    start(*watches)
    time.sleep(0.05)
    assert [watch.deadline for watch in watches] == [None] * 3
    watches[1].own_deadline = lambda: 500.25
    until(lambda: [watch.deadline for watch in watches] == [500.25] * 3)
    watches[2].own_deadline = lambda: 900.0
    watches[0].own_deadline = lambda: 0.0
    until(lambda: [watch.deadline for watch in watches] == [0.0] * 3)


def test_who_does_not_answer_is_named_with_its_place(watches):
    start(*watches)
    watches[2].place = "round 7, client 12"
    until(lambda: "client 12" in watches[2]._published)
    watches[2].close()
    assert watches[0].roll_call() == "no answer from rank 2 on n2, last seen in round 7, client 12"
    until(lambda: watches[1].lost == "another rank has lost its peers")


def test_a_rank_that_never_came_is_named_too(watches):
    start(*watches[:2])
    assert watches[1].roll_call() == "no answer from rank 2 on an unknown host, last seen in start-up"


def test_who_answers_but_has_not_arrived_is_named(watches):
    start(*watches)
    watches[0].waiting = watches[1].waiting = True
    watches[2].place = "round 7, client 12"
    until(lambda: all(watch._published.endswith("waiting") for watch in watches[:2]))
    until(lambda: "client 12" in watches[2]._published)
    assert watches[0].roll_call() == "not arrived: rank 2 on n2, last seen in round 7, client 12"


def test_nobody_is_blamed_where_all_wait(watches):
    start(*watches)
    for watch in watches:
        watch.waiting = True
    until(lambda: all(watch._published.endswith("waiting") for watch in watches))
    assert watches[0].roll_call() == "every rank answers"


def test_silence_after_a_request_to_stop_means_a_loss(watches, monkeypatch):
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 0.1)
    start(*watches[:2])
    watches[0].own_deadline = lambda: 100.0
    until(lambda: watches[1].lost == "a rank gave no sign of life for 0.1 s")


def test_answers_after_a_request_to_stop_mean_none(watches, monkeypatch):
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 0.1)
    start(*watches)
    watches[0].own_deadline = lambda: 100.0
    until(lambda: watches[1].deadline == 100.0)
    time.sleep(0.3)
    assert [watch.lost for watch in watches] == [None] * 3


def test_the_loss_of_the_store_is_noticed_and_its_owner_named(watches, monkeypatch):
    start(*watches)
    watches[0].place = "round 2"
    until(lambda: "round 2" in watches[1]._server)

    def gone(keys):
        raise dist.DistNetworkError("Connection reset by peer\nfurther lines")

    monkeypatch.setattr(watches[1], "_store", type("Gone", (), {"multi_get": staticmethod(gone)})())
    watches[1]._closing.set()
    watches[1]._thread.join()
    watches[1]._closing.clear()
    watches[1]._look()
    assert watches[1].lost == "the ranks' store is gone: Connection reset by peer"
    assert watches[1].without_store() == "no answer from rank 0 on n0, last seen in round 2 (it keeps the ranks' store)"


def test_under_torchrun_the_store_is_the_launchers():
    assert Watch(environment(1, launcher="torchrun")).without_store() == "torchrun's store is gone"


def test_many_ranks_are_not_all_listed(watches):
    places = dict.fromkeys(range(20), ("n", "start-up", "busy"))
    text = module._names(list(range(20)), places)
    assert text.count("rank ") == 8
    assert text.endswith("; and 12 more")


def test_a_single_process_has_nobody_to_watch():
    watch = Watch(Environment("single", 0, 1, 0, 1, None, None))
    watch.start()
    watch.close()
    assert watch.deadline is None
    assert watch.roll_call() == "no other rank can be asked"


# --- ranks that have hung


@pytest.fixture
def hasty(watches, monkeypatch):
    """The watches, for which hung is who is silent for half a second; and what they would end with."""
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(guard, "HUNG_SECONDS", 0.5)
    monkeypatch.setattr(guard, "_CHECK_SECONDS", 0.02)
    statuses = []
    monkeypatch.setattr(module.os, "_exit", statuses.append)
    return watches, statuses


def test_a_rank_that_has_stopped_is_named_once_by_the_one_before_it(hasty, capsys):
    watches, statuses = hasty
    for watch in watches:
        watch.ends_process = True
        watch.place = "round 3"
    start(*watches)
    watches[2].place = "round 3, client 9"
    until(lambda: watches[1]._beat and "client 9" in watches[2]._published)
    watches[2].close()
    watches[2]._store.set("watch/beat/2", "7.0")  # not "over": its last beat
    until(lambda: statuses)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "rank 1 of 3 on n1: stopped in round 3, no sign of life for 20 s: "
        "no answer from rank 2 on n2, last seen in round 3, client 9"
    )
    assert statuses[0] == 1


def test_a_program_of_ones_own_is_not_ended(hasty, capsys):
    watches, statuses = hasty
    start(*watches[:2])
    until(lambda: "no answer from rank 2" in capsys.readouterr().err)
    assert statuses == []


def test_who_has_left_or_works_long_in_one_place_has_not_hung(hasty, capsys):
    watches, statuses = hasty
    start(*watches)
    until(lambda: watches[1]._beat)
    watches[2].close()
    until(lambda: watches[1]._beat is None)
    time.sleep(0.8)
    assert (capsys.readouterr().err, statuses) == ("", [])


# --- strangers


@pytest.mark.parametrize("value", ["soon", "nan", "inf", b"\xff\xfe", "\x1b[2J", "1" * 10_000 + "x"])
def test_a_wrong_value_in_the_store_is_ignored_and_said_once(watches, capsys, value):
    start(watches[0])
    until(lambda: watches[0]._looks)
    for key in ("watch/deadline", "watch/place/0", "watch/place/1", "watch/beat/1"):
        watches[0]._store.set(key, value)
    seen = watches[0]._looks
    until(lambda: watches[0]._looks > seen + 5)
    assert watches[0].deadline is None
    assert watches[0]._thread.is_alive()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("a wrong value in the ranks' store is ignored: watch/deadline is ")
    assert "\x1b" not in line
    assert len(line) < 250
    watches[0].own_deadline = lambda: 500.0
    until(lambda: watches[0].deadline == 500.0)
    assert "rank 1 on an unknown host" in watches[0].roll_call()


def test_rank_0_sees_the_clients_of_all_ranks(watches):
    start(*watches)
    first, second, _ = watches
    for watch in (first, second):
        watch.cohort.begin(1, 5)
    first.cohort.trained()
    second.cohort.trained()
    second.cohort.trained()
    until(lambda: first.cohort.done == 3)
    assert second.cohort.seen is None
    first._store.set("watch/clients", "a stranger's")
    until(lambda: first.cohort.seen is None)
    assert first.cohort.done == 1


def test_many_ranks_look_more_seldom_and_none_seems_to_have_hung():
    assert [pace(ranks) for ranks in (1, 64, 128, 256, 4096)] == [1, 1, 2, 4, 8]
    looks = [ranks / (pace(ranks) * module._LOOK_SECONDS) for ranks in (64, 512, 4096)]
    assert looks == [256, 256, 2048]  # a second, of all together
    assert pace(10**6) * module._LOOK_SECONDS < guard.HUNG_SECONDS / 4


def test_a_watch_of_many_ranks_looks_at_its_pace(watches, monkeypatch):
    monkeypatch.setattr(watches[0], "_pace", 8.0)
    start(watches[0], watches[1])
    time.sleep(0.6)
    assert 0 < watches[0]._looks < watches[1]._looks / 2
    watches[1].own_deadline = lambda: 500.25
    until(lambda: watches[0].deadline == 500.25)
