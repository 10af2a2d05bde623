"""The files of a checkpoint: found, read, written and checked, whatever they hold."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from fedmef_dist.base.atomic import sync_directory, write_bytes, write_json
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.regular import open_regular, read_regular

CHECKPOINTS, TENSORS, STATE = "checkpoints", "state.safetensors", "state.json"
_NAME = re.compile(r"round-([0-9]{6,18})")
_LARGEST_STATE = 1 << 26  # bytes; what the disk did not take of the metrics may be in it
_PIECE = 1 << 24


def folder_of(round_number: int) -> str:
    """The name of a round's directory."""
    return f"round-{round_number:06d}"


def complete_rounds(run_dir: Path) -> list[int]:
    """Rounds whose directory has both files, oldest first; whether they are whole shows when they are read.

    Raises UserError where the directories cannot be read.
    """
    return sorted(number for name in _folders(run_dir) if (number := _round_of(run_dir, name)) is not None)


def passed_over(run_dir: Path) -> list[str]:
    """Directories that look like a checkpoint and have not got its files. Raises as :func:`complete_rounds`."""
    return sorted(name for name in _folders(run_dir) if _NAME.fullmatch(name) and _round_of(run_dir, name) is None)


def read_checkpoint(run_dir: Path, round_number: int) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the tensors and the state of a round, both as they were written.

    Raises OSError or ValueError where they are not.
    """
    state, sealed = _read_state(run_dir, round_number)
    data = read_regular(run_dir, _below(round_number, TENSORS), _memory())
    _check(hashlib.sha256(data), len(data), state, sealed)
    return data, state


def read_sealed_state(run_dir: Path, round_number: int) -> dict[str, Any]:
    """The state of a round whose files are both as they were written; takes no memory for the tensors.

    Raises OSError or ValueError where they are not.
    """
    state, sealed = _read_state(run_dir, round_number)
    total, size = hashlib.sha256(), 0
    with open_regular(run_dir, _below(round_number, TENSORS)) as handle:
        if sealed.get("bytes", os.fstat(handle).st_size) != os.fstat(handle).st_size:
            raise ValueError(_CHANGED)
        while piece := os.read(handle, _PIECE):
            total.update(piece)
            size += len(piece)
    _check(total, size, state, sealed)
    return state


def is_whole(run_dir: Path, round_number: int) -> bool:
    """Whether a round's files are as they were written."""
    try:
        read_sealed_state(run_dir, round_number)
    except (OSError, ValueError, RecursionError):
        return False
    return True


def write_checkpoint(directory: Path, data: bytes, state: Mapping[str, Any]) -> None:
    """Makes ``directory`` and writes both files, the state sealed. Raises OSError where that cannot be done."""
    directory.parent.mkdir(exist_ok=True)  # never the run's own: where that was removed, nothing brings it back
    sync_directory(directory.parent.parent)
    directory.mkdir()
    write_bytes(directory / TENSORS, data)
    write_json(directory / STATE, seal(data, state))


def seal(data: bytes, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with what tells whether both files are those that were written: a size and a SHA-256 over both."""
    return {**state, "bytes": len(data), "sha256": _digest(hashlib.sha256(data), state)}


_CHANGED = "its content is not what was written"


def _folders(run_dir: Path) -> list[str]:
    """Names of the directories among the checkpoints.

    Raises UserError where the run has no directory of its own, or one that cannot be read.
    """
    directory = run_dir / CHECKPOINTS
    if not _is_directory(directory):
        if os.path.lexists(directory):
            what = f"{CHECKPOINTS} is a link or a file: a run keeps its checkpoints in its own directory"
            raise UserError(what, where=str(directory), mend="move it away, or make the whole run directory a link")
        return []
    try:
        return [path.name for path in directory.iterdir() if _is_directory(path)]
    except OSError as error:
        raise _unreadable(directory, error) from None


def _is_directory(path: Path) -> bool:
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """The mode of what lies there, 0 where nothing does.

    Raises UserError where that cannot be told: a checkpoint that is there must not count as missing, or its run would
    start again and remove it.
    """
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"the checkpoints cannot be read: {error.strerror}", where=str(path), mend="make them readable, or try again"
    )


def _round_of(run_dir: Path, name: str) -> int | None:
    match = _NAME.fullmatch(name)
    if match is None or folder_of(int(match[1])) != name:
        return None
    directory = run_dir / CHECKPOINTS / name
    return int(match[1]) if all(stat.S_ISREG(_mode(directory / file)) for file in (TENSORS, STATE)) else None


def _below(round_number: int, name: str) -> str:
    return f"{CHECKPOINTS}/{folder_of(round_number)}/{name}"


def _read_state(run_dir: Path, round_number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state, and apart from it what seals it."""
    content = read_regular(run_dir, _below(round_number, STATE), _LARGEST_STATE)
    state = json.loads(content, parse_constant=_refuse)
    if not isinstance(state, dict):
        raise ValueError(_CHANGED)
    sealed = {key: state.pop(key) for key in ("sha256", "bytes") if key in state}
    if state.get("round") != round_number and "sha256" in sealed:
        raise ValueError(f"it is of round {state.get('round')}")
    return state, sealed


def _check(total: Any, size: int, state: Mapping[str, Any], sealed: Mapping[str, Any]) -> None:
    # Checkpoints of the first version say no size.
    if sealed.get("sha256") != _digest(total, state) or sealed.get("bytes", size) != size:
        raise ValueError(_CHANGED)


def _digest(total: Any, state: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, over both files' content; ``total`` is that of the tensors."""
    total.update(json.dumps(state, sort_keys=True).encode())
    return str(total.hexdigest())


def _memory() -> int:
    """Bytes of this machine's memory: no checkpoint that can be loaded is larger."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no value")
