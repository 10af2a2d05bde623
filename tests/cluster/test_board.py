import errno
import os
import signal

import pytest
from thread_group import on_ranks

from fedmef_dist.cluster import board as module
from fedmef_dist.cluster.board import Board, Note, open_board
from fedmef_dist.cluster.environment import Environment

MEMBERS = (2, 5, 7)


@pytest.fixture(autouse=True)
def own_memory(monkeypatch, tmp_path):
    """Where ranks of this process meet: other tests' processes have files in the shared memory, and may leave some."""
    monkeypatch.setattr(module, "_path", lambda token: tmp_path / f"fedmef-{token:016x}")


@pytest.fixture
def boards():
    """Those of three ranks in one memory."""
    memory = bytearray(len(MEMBERS) * module._SLOT)
    return [Board(memory, MEMBERS, rank) for rank in MEMBERS]


def test_what_each_writes_all_read(boards):
    notes = {
        2: Note("n1", "round 3, client 17", True, "7 0.200", 4, answered=True, deadline=5.5),
        5: Note(lost="gone", called=True, looks=9, seen=3, added=2, server="rank 0"),
        7: Note("höst", over=True),
    }
    for board in boards:
        board.write(notes[board.rank])
    assert [board.read() for board in boards] == [notes] * 3


def test_a_note_that_is_just_being_written_counts_as_the_former_one(boards):
    boards[0].write(Note(place="round 1"))
    assert boards[1].read() == {2: Note(place="round 1")}
    boards[0].write(Note(place="round 2"))
    boards[0]._memory[30] ^= 1
    assert boards[1].read() == {2: Note(place="round 1")}


def test_texts_of_any_length_fit(boards):
    boards[0].write(Note("\U0001f40c" * 5000, "\x01" * 5000, mark="x" * 5000, lost="\x01" * 5000, server="\x01" * 5000))
    boards[1].write(Note("n2"))
    assert boards[2].read()[5] == Note("n2")
    assert boards[2].read()[2].host == "\U0001f40c" * 200


def test_the_first_that_lives_leads(boards, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    assert boards[1].leader() == 5  # nobody else has come yet
    for board in boards:
        board.beat()
        board.write(Note())
    assert [board.leader() for board in boards] == [2, 2, 2]
    for _ in range(7):
        now[0] += 0.5
        boards[1].beat()
        boards[2].beat()
        found = [board.leader() for board in boards]
    assert found == [2, 5, 5]  # it has stopped, and does not know
    boards[0].beat()
    assert [board.leader() for board in boards] == [2, 2, 2]
    boards[0].write(Note(over=True))
    assert boards[2].leader() == 5


@pytest.fixture
def shared(tmp_path):
    """A board in a file, of this process, which is rank 0, and of rank 1, a process that sleeps."""
    path = tmp_path / "board"
    module._create(path, 2)
    ready, done = os.pipe()
    child = os.fork()
    if not child:
        mine = module._SharedBoard(module._join(path, 1), (0, 1), 1)
        mine.beat()
        mine.write(Note("n1", "round 2"))
        os.write(done, b"1")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    board = module._SharedBoard(module._join(path, 0), (0, 1), 0)
    yield board, child
    board.close()
    os.close(ready)
    os.close(done)


def test_processes_share_a_board_and_a_dead_one_is_known_at_once(shared):
    board, child = shared
    assert board.read() == {1: Note("n1", "round 2")}
    assert board.beat_of(1) == 1
    assert [board.is_dead(rank) for rank in (0, 1)] == [False, False]
    os.kill(child, signal.SIGKILL)
    os.waitid(
        os.P_PID, child, os.WEXITED | os.WNOWAIT
    )  # nobody has asked for its status: what launchers leave for a while
    assert [board.is_dead(rank) for rank in (0, 1)] == [False, True]
    assert board.read() == {1: Note("n1", "round 2")}
    os.waitpid(child, 0)


def open_on(world, local, monkeypatch=None):
    def work(group):
        group.environment = Environment("srun", group.rank, world, group.rank % local, local, "n", 1)
        nodes, board = open_board(group)
        return nodes, board.members

    return on_ranks(world, work)


def leftovers():
    return [*module._path(0).parent.glob("fedmef-*")]


def test_ranks_of_a_machine_find_each_other_and_leave_no_file(monkeypatch):
    assert open_on(3, 3) == [(((0, 1, 2),), (0, 1, 2))] * 3
    assert leftovers() == []


def test_a_peer_that_is_lost_while_they_meet_leaves_no_file():
    class Lost:
        environment = Environment("srun", 0, 2, 0, 2, "n", 1)

        def all_gather(self, tensor):
            assert leftovers()
            raise RuntimeError("Connection closed by peer")

    with pytest.raises(RuntimeError, match="closed by peer"):
        open_board(Lost())
    assert leftovers() == []


def test_a_rank_that_cannot_share_memory_counts_as_a_node(monkeypatch):
    join = module._join
    monkeypatch.setattr(module, "_join", lambda path, rank: None if rank == 1 else join(path, rank))
    assert open_on(3, 3) == [(((0, 2), (1,)), members) for members in ((0, 2), (1,), (0, 2))]
    monkeypatch.setattr(module, "_create", lambda path, ranks: None)  # no room
    assert open_on(2, 2) == [(((0,), (1,)), (rank,)) for rank in range(2)]
    assert leftovers() == []


def test_full_shared_memory_leaves_each_rank_alone(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert open_on(2, 2) == [(((0,), (1,)), (rank,)) for rank in range(2)]
    assert leftovers() == []


def test_a_launcher_without_shared_nodes_gives_each_rank_its_own():
    assert open_on(2, 1) == [(((0,), (1,)), (rank,)) for rank in range(2)]
