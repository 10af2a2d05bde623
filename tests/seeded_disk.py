"""A disk that forgets: real files in a folder of the memory file system, and what a power cut would leave of them.

Every change that a process of the seeded world makes comes through here: before each one the world may stop, slow or
end the process, or have no room. A file's content is safe once it was synced, a name once its folder was. What is not
safe is lost in part at a power cut: of the names in a folder some last changes, of a file any tail, or all of it.
"""

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOOKED = (
    *("open", "close", "fdopen", "fsync", "pwrite", "write", "ftruncate", "utime"),
    *("replace", "rename", "unlink", "remove", "mkdir", "rmdir"),
)
REAL: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in HOOKED}


class Node:
    """A file or a folder: ``names`` as processes see them, ``safe`` what is on the platter."""

    def __init__(self, folder: bool) -> None:
        self.folder = folder
        self.names: dict[str, Node] = {}
        self.pending: list[dict[str, Node | None]] = []
        self.safe: Any = {} if folder else b""

    def rename(self, changes: dict[str, "Node | None"]) -> None:
        """Changes names at once, all of them or, after a power cut, perhaps none."""
        self.pending.append(changes)
        _apply(self.names, changes)

    def sync(self, content: bytes) -> None:
        """Everything is safe; ``content`` is a file's."""
        self.safe = dict(self.names) if self.folder else content
        self.pending = []


def _apply(names: dict[str, Node], changes: dict[str, Node | None]) -> None:
    for name, node in changes.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """The folder ``root``, through the functions of :mod:`os`.

    Args:
        root: an empty folder.
        world: says which process calls (``caller``, None outside the world), and takes ``step(what)`` before a change.
        rng: what is lost at a power cut.

    Attributes:
        full: whether there is no room.
    """

    def __init__(self, root: Path, world: Any, rng: random.Random) -> None:
        self.root, self.world, self.rng = str(root), world, rng
        self.tree, self.full = Node(True), False
        self.open_files: dict[int, tuple[str, Node | None, Any]] = {}

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """While the body runs, the functions of :mod:`os` go through this disk."""
        try:
            for name in HOOKED:
                setattr(os, name, self._hook(name))
            yield
        finally:
            for name, function in REAL.items():
                setattr(os, name, function)

    def _hook(self, name: str) -> Callable[..., Any]:
        own, real = getattr(self, f"_{name}"), REAL[name]

        def call(*arguments: Any, **options: Any) -> Any:
            return real(*arguments, **options) if self.world.caller is None else own(*arguments, **options)

        return call

    # --- what processes call

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        full = self._full(path, dir_fd)
        if full is None:
            return REAL["open"](path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT and not os.path.lexists(full):
            self._change(f"create {self._short(full)}")
        self.world.alive()
        handle = REAL["open"](full, flags, mode)
        parent, name = self._place(full)
        node = parent.names.get(name) if parent is not None else self.tree
        if node is None and parent is not None:
            node = Node(False)
            parent.rename({name: node})
        self.open_files[handle] = full, node, self.world.caller
        return handle

    def _close(self, handle: int) -> None:
        if handle not in self.open_files:
            if self.world.caller.alive:
                REAL["close"](handle)
        elif self.open_files[handle][2] is self.world.caller:
            self._let_go(handle)

    def _let_go(self, handle: int) -> None:
        self.world.unlock(handle)
        del self.open_files[handle]
        REAL["close"](handle)

    def _fdopen(self, handle: int, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        return _File(handle) if handle in self.open_files else REAL["fdopen"](handle, mode, *arguments, **options)

    def _fsync(self, handle: int) -> None:
        full, node, _ = self.open_files[handle]
        self._change(f"sync {self._short(full)}", grows=False)
        assert node is not None
        node.sync(b"" if node.folder else self._content(handle))

    def _write(self, handle: int, data: Any) -> int:
        return self._pwrite(handle, data, os.lseek(handle, 0, os.SEEK_CUR), moves=True)

    def _pwrite(self, handle: int, data: Any, offset: int, *, moves: bool = False) -> int:
        self._change(f"write {len(data)} bytes into {self._short(self.open_files[handle][0])}", grows=False)
        half = data[: len(data) // 2]
        if self.full and not half:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = REAL["pwrite"](handle, half if self.full else data, offset)
        if self.full and self.rng.random() < 0.5:
            raise OSError(errno.ENOSPC, "No space left on device")
        if moves:
            os.lseek(handle, done, os.SEEK_CUR)
        return int(done)

    def _ftruncate(self, handle: int, length: int) -> None:
        self._change(f"cut {self._short(self.open_files[handle][0])} to {length} bytes", grows=False)
        REAL["ftruncate"](handle, length)

    def _utime(self, path: Any, *arguments: Any, **options: Any) -> None:
        self._change(f"touch {self._short(str(path))}", grows=False)
        REAL["utime"](path, *arguments, **options)

    def _replace(self, source: Any, target: Any) -> None:
        before, after = str(source), str(target)
        self._change(f"rename {self._short(before)} to {Path(after).name}")
        REAL["replace"](before, after)
        (folder, old), (same, new) = self._place(before), self._place(after)
        assert folder is same
        folder.rename({old: None, new: folder.names[old]})

    _rename = _replace

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove(path, dir_fd=dir_fd)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove(path, "rmdir", dir_fd=dir_fd)

    def _remove(self, path: Any, how: str = "unlink", *, dir_fd: int | None = None) -> None:
        full = self._full(path, dir_fd)
        assert full is not None
        self._change(f"remove {self._short(full)}", grows=False)
        REAL[how](full)
        folder, name = self._place(full)
        folder.rename({name: None})

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        full = self._full(path, dir_fd)
        assert full is not None
        self._change(f"make folder {self._short(full)}")
        REAL["mkdir"](full, mode)
        folder, name = self._place(full)
        folder.rename({name: Node(True)})

    # --- what the world does

    def close_all(self, caller: Any) -> None:
        """The process is gone, and with it what it had open."""
        for handle in [handle for handle, (_, _, owner) in self.open_files.items() if owner is caller]:
            self._let_go(handle)

    def cut_power(self) -> None:
        """Keeps what is safe, and of the rest what chance leaves; no process may be alive."""
        contents: dict[Node, bytes] = {}
        self._read(self.tree, self.root, contents)
        for entry in Path(self.root).iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self._write_back(self.tree, self.root, contents)

    def _read(self, node: Node, path: str, contents: dict[Node, bytes]) -> None:
        for name, child in node.names.items():
            below = f"{path}/{name}"
            if child.folder:
                self._read(child, below, contents)
            else:
                contents[child] = Path(below).read_bytes()

    def _write_back(self, node: Node, path: str, contents: dict[Node, bytes]) -> None:
        left = dict(node.safe)
        for changes in node.pending[: self.rng.randint(0, len(node.pending))]:
            _apply(left, changes)
        node.names, node.safe, node.pending = left, dict(left), []
        for name, child in left.items():
            below = f"{path}/{name}"
            if child.folder:
                Path(below).mkdir()
                self._write_back(child, below, contents)
            else:
                child.safe = self._what_is_left(child.safe, contents.get(child, child.safe))
                Path(below).write_bytes(child.safe)

    def _what_is_left(self, safe: bytes, written: bytes) -> bytes:
        if safe == written:
            return safe
        grown = written.startswith(safe)
        return self.rng.choice([safe, written, written[: self.rng.randint(len(safe) if grown else 0, len(written))]])

    # --- help

    def _change(self, what: str, *, grows: bool = True) -> None:
        self.world.step(what)
        if grows and self.full and self.rng.random() < 0.5:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _full(self, path: Any, dir_fd: int | None) -> str | None:
        text = os.fspath(path)
        full = f"{self.open_files[dir_fd][0]}/{text}" if dir_fd in self.open_files else str(text)
        return full if full.startswith(self.root) else None

    def _place(self, full: str) -> tuple[Any, str]:
        """The folder's node and the name in it; None for the root itself."""
        if full == self.root:
            return None, ""
        *folders, name = full.removeprefix(f"{self.root}/").split("/")
        node = self.tree
        for folder in folders:
            node = node.names[folder]
        return node, name

    def _short(self, full: str) -> str:
        return full.removeprefix(f"{self.root}/")

    def _content(self, handle: int) -> bytes:
        return Path(f"/proc/self/fd/{handle}").read_bytes()  # the handle itself may be one for writing alone


class _File:
    """What :func:`os.fdopen` gives: unbuffered, every write is a change of the disk."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def write(self, data: bytes) -> int:
        done = 0
        while done < len(data):
            done += os.write(self._handle, data[done:])
        return done

    def flush(self) -> None:
        """Nothing is held back."""

    def fileno(self) -> int:
        return self._handle
