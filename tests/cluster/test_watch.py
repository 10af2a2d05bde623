import time

import pytest
import torch.distributed as dist

from fedmef_dist.cluster import board, guard, relay
from fedmef_dist.cluster import watch as module
from fedmef_dist.cluster.board import Board, Note
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.node_report import names, read_report
from fedmef_dist.cluster.watch import Watch, pace


def environment(rank, size=3, launcher="srun"):
    return Environment(launcher, rank, size, 0, 1, "localhost", 1)


@pytest.fixture
def watches(monkeypatch):
    """Three ranks that share a store and look into it often; each with a host name of its own."""
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "_PUBLISH_SECONDS", 0.01)
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 1.0)  # enough for those who live, also on a busy machine
    store = dist.HashStore()
    ranks = [Watch(environment(rank), store) for rank in range(3)]
    for rank, watch in enumerate(ranks):
        watch._host = f"n{rank}"
    yield ranks
    for watch in ranks:
        watch.close()


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def report(watches, node):
    """What the store has of a node."""
    key = f"watch/node/{node}"
    return watches[0]._store.get(key).decode() if watches[0]._store.check([key]) else ""


def told(watches, rank):
    """What the store has of a rank that has a node of its own."""
    return read_report(report(watches, rank)).ranks.get(rank, Note())


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
    until(lambda: "client 12" in report(watches, 2))
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
    until(lambda: all(told(watches, rank).waiting for rank in (0, 1)))
    until(lambda: "client 12" in report(watches, 2))
    assert watches[0].roll_call() == "not arrived: rank 2 on n2, last seen in round 7, client 12"


def test_nobody_is_blamed_where_all_wait(watches):
    start(*watches)
    for watch in watches:
        watch.waiting = True
    until(lambda: all(told(watches, rank).waiting for rank in range(3)))
    assert watches[0].roll_call() == "every rank answers"


def test_silence_after_a_request_to_stop_means_a_loss(watches, monkeypatch):
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 0.1)
    start(*watches[:2])
    watches[0].own_deadline = lambda: 100.0
    until(lambda: watches[1].lost == "a rank gave no sign of life for 0.1 s")


def test_answers_after_a_request_to_stop_mean_none(watches, monkeypatch):
    start(*watches)
    watches[0].own_deadline = lambda: 100.0
    until(watches[0]._relay.all_are_here)
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 0.1)
    until(lambda: [watch._called_at for watch in watches] == [float("inf")] * 3)  # each has looked for the silent
    assert [watch.lost for watch in watches] == [None] * 3


def test_the_loss_of_the_store_is_noticed_and_its_owner_named(watches, monkeypatch):
    start(*watches)
    watches[0].place = "round 2"
    until(lambda: "round 2" in watches[1]._known.server)

    def gone(keys):
        raise dist.DistNetworkError("Connection reset by peer\nfurther lines")

    monkeypatch.setattr(
        watches[1]._relay, "_store", type("Gone", (), {"multi_get": staticmethod(gone), "set": lambda *_: None})()
    )
    watches[1]._closing.set()
    watches[1]._thread.join()
    watches[1]._closing.clear()
    watches[1]._look()
    assert watches[1].lost == "the ranks' store is gone: Connection reset by peer"
    assert watches[1].without_store() == "no answer from rank 0 on n0, last seen in round 2 (it keeps the ranks' store)"


def test_under_torchrun_the_store_is_the_launchers():
    assert Watch(environment(1, launcher="torchrun")).without_store() == "torchrun's store is gone"


def test_many_ranks_are_not_all_listed(watches):
    text = names(list(range(20)), {})
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
    monkeypatch.setattr(relay, "BEAT_SECONDS", 0.02)
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
    until(lambda: watches[1]._relay.next.beat and "client 9" in report(watches, 2))
    last = report(watches, 2)
    watches[2].close()
    watches[2]._store.set("watch/node/2", last)  # as if it had not said that it leaves
    lines = []
    until(lambda: lines.extend(capsys.readouterr().err.splitlines()) or lines)
    assert lines == [
        "rank 1 of 3 on n1: stopped in round 3, no sign of life for 20 s: "
        "no answer from rank 2 on n2, last seen in round 3, client 9"
    ]
    until(lambda: statuses)
    assert statuses[0] == 1


def test_a_program_of_ones_own_is_not_ended(hasty, capsys):
    watches, statuses = hasty
    start(*watches[:2])
    until(lambda: "no answer from rank 2" in capsys.readouterr().err)
    assert statuses == []


def test_who_has_left_or_works_long_in_one_place_has_not_hung(hasty, capsys):
    watches, statuses = hasty
    start(*watches)
    until(lambda: watches[1]._relay.next.beat)
    watches[2].close()
    until(lambda: watches[1]._relay.next.over)
    time.sleep(0.8)
    assert (capsys.readouterr().err, statuses) == ("", [])


# --- strangers


@pytest.mark.parametrize("value", ["soon", "nan", "inf", b"\xff\xfe", "\x1b[2J", "1" * 10_000 + "x"])
def test_a_wrong_value_in_the_store_is_ignored_and_said_once(watches, monkeypatch, capsys, value):
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.05)
    start(watches[0])
    until(lambda: watches[0]._known.looks)
    for key in ("watch/deadline", "watch/clients", "watch/node/0", "watch/node/1"):
        watches[0]._store.set(key, value)
    seen = watches[0]._known.looks
    until(lambda: watches[0]._known.looks > seen + 5)
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


def test_many_nodes_look_more_seldom_and_none_seems_to_have_hung():
    assert [pace(nodes) for nodes in (1, 64, 128, 256, 4096)] == [1, 1, 2, 4, 8]
    looks = [nodes / (pace(nodes) * module._LOOK_SECONDS) for nodes in (64, 512, 4096)]
    assert looks == [256, 256, 2048]  # a second, of all together
    assert pace(10**6) * module._LOOK_SECONDS < guard.HUNG_SECONDS / 4


def test_a_watch_of_many_nodes_asks_at_its_pace(watches):
    watches[0]._relay._look_seconds *= 20
    start(watches[0], watches[1])
    until(lambda: watches[0]._known.looks > 0 and watches[1]._known.looks > 20)
    assert watches[0]._known.looks < watches[1]._known.looks / 2
    watches[1].own_deadline = lambda: 500.25
    until(lambda: watches[0].deadline == 500.25)


# --- ranks that share nodes

LAYOUT = [(0, 2), (1, 3)]  # as srun deals ranks out to nodes in turn


class NodeBoard(Board):
    """A board without a file; ``dead`` holds the ranks of whose end the kernel knows."""

    def __init__(self, memory, members, rank, dead):
        super().__init__(memory, members, rank)
        self.dead = dead

    def is_dead(self, rank):
        return rank in self.dead


@pytest.fixture
def nodes(monkeypatch):
    """Two nodes of two ranks whose store notes who asks what; and the set of dead ranks."""
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "_PUBLISH_SECONDS", 0.01)
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(relay, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(guard, "_CHECK_SECONDS", 0.02)
    store, dead, found = dist.HashStore(), set(), []
    memories = [bytearray(2 * board._SLOT) for _ in LAYOUT]
    for rank in range(4):
        watch = Watch(Environment("srun", rank, 4, rank // 2, 2, "localhost", 1), Counting(store))
        node = rank % 2
        watch.share(LAYOUT, NodeBoard(memories[node], LAYOUT[node], rank, dead))
        watch._host, watch.place = f"n{node}", f"round 3, client {rank}"
        found.append(watch)
    yield found, dead
    for watch in found:
        watch.close()


class Counting:
    """A store that counts what it is asked."""

    def __init__(self, store):
        self._to, self.requests = store, 0

    def __getattr__(self, name):
        self.requests += 1
        return getattr(self._to, name)


def test_one_rank_of_each_node_asks_the_store(nodes):
    watches, _ = nodes
    start(*watches)
    until(lambda: all(watch._known.looks > 3 for watch in watches))
    before = [watch._store.requests for watch in watches]
    until(lambda: all(watch._known.looks > 20 for watch in watches))
    assert [watch._store.requests > count for watch, count in zip(watches, before, strict=True)] == [
        True,
        True,
        False,
        False,
    ]


def test_a_deadline_and_clients_of_those_who_do_not_ask_reach_all(nodes):
    watches, _ = nodes
    start(*watches)
    for watch in watches:
        watch.cohort.begin(1, 9)
    for rank in (1, 2, 3, 3):
        watches[rank].cohort.trained()
    watches[3].own_deadline = lambda: 500.25
    until(lambda: [watch.deadline for watch in watches] == [500.25] * 4)
    until(lambda: watches[0].cohort.done == 4)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_dead_rank_alone_is_named_whether_or_not_it_asked_for_its_node(nodes, rank):
    watches, dead = nodes
    start(*watches)
    until(lambda: f"client {rank}" in report(watches, 1))
    kill(watches[rank])
    dead.add(rank)
    assert watches[0].roll_call() == f"no answer from rank {rank} on n1, last seen in round 3, client {rank}"
    until(lambda: watches[4 - rank].lost == "another rank has lost its peers")


def kill(watch):
    """Its threads end, without a word."""
    watch._leave = lambda: None
    watch._guard.close()
    watch._closing.set()
    watch._thread.join()


@pytest.mark.parametrize(("rank", "speaker"), [(1, 3), (3, 1), (2, 0)])
def test_a_rank_that_has_stopped_is_named_by_one_of_its_node(nodes, capsys, monkeypatch, rank, speaker):
    watches, _ = nodes
    monkeypatch.setattr(guard, "HUNG_SECONDS", 0.5)
    monkeypatch.setattr(board, "_STALE_SECONDS", 0.1)
    start(*watches)
    until(lambda: f"client {rank}" in report(watches, rank % 2))
    kill(watches[rank])
    lines = []
    until(lambda: lines.extend(capsys.readouterr().err.splitlines()) or lines)
    assert lines == [
        f"rank {speaker} of 4 on n{rank % 2}: stopped in round 3, client {speaker}, no sign of life for 20 s: "
        f"no answer from rank {rank} on n{rank % 2}, last seen in round 3, client {rank}"
    ]


def test_a_node_that_has_stopped_is_named_by_the_one_before_it(nodes, capsys, monkeypatch):
    watches, _ = nodes
    monkeypatch.setattr(guard, "HUNG_SECONDS", 0.5)
    start(*watches)
    until(lambda: all(f"client {rank}" in report(watches, 1) for rank in (1, 3)))
    kill(watches[1])
    kill(watches[3])
    lines = []
    until(lambda: lines.extend(capsys.readouterr().err.splitlines()) or lines)
    assert lines == [
        "rank 0 of 4 on n0: stopped in round 3, client 0, no sign of life for 20 s: no answer from "
        "rank 1 on n1, last seen in round 3, client 1; rank 3 on n1, last seen in round 3, client 3"
    ]


def test_all_ranks_of_a_node_that_make_no_progress_are_seen_from_the_next(nodes):
    watches, _ = nodes
    start(*watches)
    watches[0].waiting = True
    with watches[1].progress.expected(), watches[3].progress.expected():
        until(lambda: watches[0]._signs().node_mark is not None)
        watches[3].waiting = True  # then rank 3 looks after rank 1
        until(lambda: watches[0]._signs().node_mark is None)
        until(lambda: watches[3]._signs().mark is not None)


def test_a_node_has_left_when_all_of_its_ranks_have(nodes):
    watches, _ = nodes
    start(*watches)
    until(lambda: watches[0]._relay.next.beat)
    watches[1].close()
    until(lambda: watches[3]._leads)
    assert watches[0]._signs().node_beat is not None
    watches[3].close()
    until(lambda: watches[0]._relay.next.over)
    assert watches[0]._signs().node_beat is None
