"""Notes that the ranks of a node leave each other in memory they share, so that one of them asks the store for all.

Each rank has a slot: a counter, which shows that its process runs, and a note. It writes its own slot and reads all;
no rank waits for another, and what a dead one has written stays. The kernel takes a dead process's lock away, so that
the others know at once.
"""

import fcntl
import json
import mmap
import os
import secrets
import socket
import struct
import tempfile
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from fedmef_dist.cluster.environment import Environment

_SLOT, _HEAD = 8192, struct.Struct("<QII")  # the counter, the note's length and checksum
_TEXT = 200  # characters of each text in a note
# Without a beat for so long another member asks the store; a dead process is noticed at once.
_STALE_SECONDS = 3.0
_TRY = fcntl.LOCK_EX | fcntl.LOCK_NB
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class Note:
    """What a rank tells the others of its node.

    Attributes:
        host, place, waiting, mark: where its main thread is and how it gets on.
        trained: clients, of all rounds.
        answered: whether it has answered a roll call or a request to stop.
        over: whether it has left.
        lost: why the run cannot go on.
        deadline: Unix time by which the run has to stop, as far as it knows.
        called: whether it knows that a roll is called.
        looks: how often the store has answered it or those who asked before it; as the following ones 0 or empty where
            it has never asked the store.
        seen: clients that all ranks have trained, as the store had it.
        added: clients of this node that are in the store's sum.
        server: rank 0 and where it was seen last, in words.
    """

    host: str = ""
    place: str = "start-up"
    waiting: bool = False
    mark: str = ""
    trained: int = 0
    answered: bool = False
    over: bool = False
    lost: str | None = None
    deadline: float | None = None
    called: bool = False
    looks: int = 0
    seen: int | None = None
    added: int = 0
    server: str = ""


class Board:
    """The slots of a node's ranks; this one without a lock, in the memory that it is given.

    Args:
        memory: a slot for each member, zeros at first.
        members: the node's ranks, ascending.
        rank: whose notes it writes.
    """

    def __init__(self, memory: bytearray | mmap.mmap, members: Sequence[int], rank: int) -> None:
        self.members, self.rank = tuple(members), rank
        self._memory, self._count = memory, 0
        self._read: dict[int, tuple[bytes, Note]] = {}
        self._beats: dict[int, tuple[int, float]] = {}

    @classmethod
    def alone(cls, rank: int) -> "Board":
        """That of a rank which shares memory with nobody."""
        return cls(bytearray(_SLOT), (rank,), rank)

    def beat(self) -> None:
        """Shows that this process runs."""
        self._count += 1
        struct.pack_into("<Q", self._memory, self._place(self.rank), self._count)

    def beat_of(self, rank: int) -> int:
        """What another one's counter shows; 0 before its first beat."""
        return int(struct.unpack_from("<Q", self._memory, self._place(rank))[0])

    def write(self, note: Note) -> None:
        """Puts this rank's note in the place of its former one."""
        short = {key: value[:_TEXT] if isinstance(value, str) else value for key, value in asdict(note).items()}
        text = json.dumps(short, ensure_ascii=False).encode(errors="replace")
        start = self._place(self.rank) + _HEAD.size
        self._memory[start : start + len(text)] = text
        struct.pack_into("<II", self._memory, start - 8, len(text), zlib.crc32(text))

    def read(self) -> dict[int, Note]:
        """The notes of all members who have written one; of one that is just being written the former."""
        for rank in self.members:
            start = self._place(rank)
            head = bytes(self._memory[start + 8 : start + _HEAD.size])
            length, checksum = struct.unpack("<II", head)
            if length and (rank not in self._read or self._read[rank][0] != head):
                text = bytes(self._memory[start + _HEAD.size : start + _HEAD.size + length])
                if zlib.crc32(text) == checksum:
                    self._read[rank] = head, Note(**json.loads(text))
        return {rank: note for rank, (_, note) in sorted(self._read.items())}

    def leader(self) -> int:
        """Who asks the store for all: the first member that lives; every member comes to the same answer."""
        notes = self.read()
        return next(rank for rank in self.members if rank == self.rank or self._lives(rank, notes.get(rank)))

    def is_dead(self, rank: int) -> bool:
        """Whether another member's process is known to have ended."""
        return False

    def close(self) -> None:
        """Gives up what shows the others that this process lives."""

    def _lives(self, rank: int, note: Note | None) -> bool:
        if note is None or note.over or self.is_dead(rank):
            return False
        beat, now = self.beat_of(rank), time.monotonic()
        seen, since = self._beats.get(rank, (-1, now))
        self._beats[rank] = beat, since if seen == beat else now
        return now - self._beats[rank][1] < _STALE_SECONDS

    def _place(self, rank: int) -> int:
        return self.members.index(rank) * _SLOT


class _SharedBoard(Board):
    """Slots in a file that the members have mapped; each holds a lock in it for as long as it lives."""

    def __init__(self, file: BinaryIO, members: Sequence[int], rank: int) -> None:
        super().__init__(mmap.mmap(file.fileno(), len(members) * _SLOT), members, rank)
        self._file = file

    def is_dead(self, rank: int) -> bool:
        """Whether nobody holds the lock of a member."""
        if rank == self.rank:  # whose lock would be its own again
            return False
        try:
            fcntl.lockf(self._file, _TRY, 1, rank)
        except OSError:
            return False
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, rank)
        return True

    def close(self) -> None:
        """Releases the lock."""
        self._file.close()


class Gathering(Protocol):
    """What the ranks need to find those of their node."""

    environment: Environment

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Every rank's tensor, stacked."""


def open_board(group: Gathering) -> tuple[tuple[tuple[int, ...], ...], Board]:
    """The ranks of each node, and the board of this rank's; every rank must call it.

    A rank that cannot share memory with the others of its machine counts as a node of its own.
    """
    place = group.environment
    founds = place.local_rank == 0 and place.local_world_size > 1
    token = secrets.randbits(62) if founds else 0
    if founds:
        _create(_path(token), place.world_size)
    try:
        layout, file = _meet(group, token)
    finally:
        if founds:
            _path(token).unlink(missing_ok=True)  # whoever opens it has done so
    if file is None:
        return layout, Board.alone(place.rank)
    return layout, _SharedBoard(file, next(ranks for ranks in layout if place.rank in ranks), place.rank)


def _meet(group: Gathering, token: int) -> tuple[tuple[tuple[int, ...], ...], BinaryIO | None]:
    """The ranks of each node, and the file that this rank shares with the others of its own."""
    rank = group.environment.rank
    told = group.all_gather(torch.tensor([_machine(), token])).tolist()
    here = [other for other, (machine, _) in enumerate(told) if machine == told[rank][0]]
    file = _join(_path(told[here[0]][1]), rank) if len(here) > 1 else None
    if file is not None and not _has_room(file, len(here)):
        file.close()
        file = None
    joined = group.all_gather(torch.tensor([int(file is not None)])).flatten().tolist()
    nodes: dict[tuple[int, int], list[int]] = {}
    for other, (machine, _) in enumerate(told):
        nodes.setdefault((machine, -1 if joined[other] else other), []).append(other)
    return tuple(sorted(tuple(ranks) for ranks in nodes.values())), file


def _machine() -> int:
    """A number for this machine, or for what Slurm takes as a node, that no other one has."""
    boot = _BOOT.read_text() if _BOOT.exists() else ""
    words = (socket.gethostname(), boot, os.environ.get("SLURMD_NODENAME", ""))
    return int.from_bytes(sha256("\n".join(words).encode()).digest()[:7], "big")


def _path(token: int) -> Path:
    memory = Path("/dev/shm")
    return (memory if memory.is_dir() else Path(tempfile.gettempdir())) / f"fedmef-{token:016x}"


def _create(path: Path, ranks: int) -> None:
    """A file with room for the slots of so many ranks; none where there is no room."""
    with suppress(OSError):
        path.touch(0o600, exist_ok=False)
        os.truncate(path, ranks * _SLOT)  # takes no memory yet


def _join(path: Path, rank: int) -> BinaryIO | None:
    """The file, with this rank's lock in it; None where that is impossible."""
    try:
        file = path.open("r+b", buffering=0)
        fcntl.lockf(file, _TRY, 1, rank)
    except OSError:
        return None
    return file


def _has_room(file: BinaryIO, ranks: int) -> bool:
    """Whether there is memory for so many slots; to write where there is none ends a process with SIGBUS."""
    if hasattr(os, "posix_fallocate"):  # not on every system
        try:
            os.posix_fallocate(file.fileno(), 0, ranks * _SLOT)
        except OSError:
            return False
    return True
