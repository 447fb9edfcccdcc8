"""Disks that fail, count, or lose their power, for tests of what is written to them.

All of them write real files. `ScriptedFiles` calls a hook before each operation, which may raise,
kill the process or take notes. `PowerCutFiles` remembers what a real disk would still hold if the
power went now: only what was synced, and whatever else it likes.
"""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from services.common.outbox.files import DiskFiles

Hook = Callable[[str], None]


class ScriptedFiles(DiskFiles):
    """`hook(operation)` runs before each one."""

    __slots__ = ("hook", "operations")

    def __init__(self, hook: Hook | None = None) -> None:
        self.hook = hook
        self.operations: list[str] = []

    def _did(self, operation: str) -> None:
        self.operations.append(operation)
        if self.hook is not None:
            self.hook(operation)

    def create(self, path: Path, size: int) -> int:
        self._did("create")
        return super().create(path, size)

    def close(self, fd: int) -> None:
        self._did("close")
        super().close(fd)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        self._did("write")
        super().write(fd, data, offset)

    def sync_data(self, fd: int) -> None:
        self._did("sync_data")
        super().sync_data(fd)

    def sync(self, fd: int) -> None:
        self._did("sync")
        super().sync(fd)

    def truncate(self, fd: int, size: int) -> None:
        self._did("truncate")
        super().truncate(fd, size)

    def rename(self, old: Path, new: Path) -> None:
        self._did("rename")
        super().rename(old, new)

    def link(self, old: Path, new: Path) -> None:
        self._did("link")
        super().link(old, new)

    def remove(self, path: Path) -> None:
        self._did("remove")
        super().remove(path)

    def sync_directory(self, path: Path) -> None:
        self._did("sync_directory")
        super().sync_directory(path)


class Broken:
    """A hook: the operations named fail with `code` while `on` is set."""

    def __init__(self, *operations: str, code: int = errno.EIO) -> None:
        self.operations = operations
        self.code = code
        self.on = True
        self.failures = 0
        #: Fail this many times, then heal; None: for ever.
        self.left: int | None = None

    def __call__(self, operation: str) -> None:
        if not self.on or operation not in self.operations or self.left == 0:
            return
        if self.left is not None:
            self.left -= 1
        self.failures += 1
        raise OSError(self.code, "injected")


class PowerCut(OSError):
    """The power went; whatever the process still does reaches no disk."""


@dataclass(slots=True)
class _Inode:
    synced: bytes = b""
    size: int = 0
    pending: list[tuple[int, bytes]] = field(default_factory=list)


class PowerCutFiles(DiskFiles):
    """Cuts the power before operation number `cut_at` (from 0; None: by `cut` only)."""

    __slots__ = ("_inodes", "_lock", "_names", "_open", "_synced_names", "count", "cut_at", "dead")

    def __init__(self, cut_at: int | None = None) -> None:
        self.cut_at = cut_at
        self.count = 0
        self.dead = False
        self._lock = threading.Lock()
        self._inodes: list[_Inode] = []
        self._open: dict[int, _Inode] = {}
        self._names: dict[Path, _Inode] = {}
        self._synced_names: dict[Path, _Inode] = {}

    def _did(self) -> None:
        if self.dead or self.count == self.cut_at:
            self.dead = True
            raise PowerCut
        self.count += 1

    def create(self, path: Path, size: int) -> int:
        with self._lock:
            self._did()
            fd = super().create(path, size)
            inode = _Inode(size=size)
            self._open[fd] = self._names[path] = inode
            return fd

    def open(self, path: Path) -> int:
        fd = super().open(path)
        self._open[fd] = self._names[path]
        return fd

    def write(self, fd: int, data: bytes, offset: int) -> None:
        with self._lock:
            self._did()
            super().write(fd, data, offset)
            self._open[fd].pending.append((offset, data))

    def sync_data(self, fd: int) -> None:
        with self._lock:
            self._did()
            self._settle(self._open[fd])

    def sync(self, fd: int) -> None:
        self.sync_data(fd)

    def truncate(self, fd: int, size: int) -> None:
        with self._lock:
            self._did()
            super().truncate(fd, size)
            inode = self._open[fd]
            inode.size = size
            inode.synced = inode.synced[:size]

    def rename(self, old: Path, new: Path) -> None:
        with self._lock:
            self._did()
            super().rename(old, new)
            self._names[new] = self._names.pop(old)

    def remove(self, path: Path) -> None:
        with self._lock:
            self._did()
            super().remove(path)
            self._names.pop(path, None)

    def sync_directory(self, path: Path) -> None:
        with self._lock:
            self._did()
            self._synced_names = {p: i for p, i in self._names.items() if p.parent == path}

    def _settle(self, inode: _Inode) -> None:
        content = bytearray(inode.synced.ljust(inode.size, b"\0"))
        for offset, data in inode.pending:
            content[offset : offset + len(data)] = data
        inode.synced = bytes(content)
        inode.pending = []

    def wreck(self, into: Path, chosen: random.Random) -> None:
        """Writes what the disk holds after the cut into `into`. Of what was not synced, any write
        may be there, in part, or not at all; so may any change of a name.
        """
        self.dead = True
        names = dict(self._synced_names)
        for path, inode in self._names.items():
            if path not in names and chosen.random() < 0.5:
                names[path] = inode
        for path in list(names):
            if path not in self._names and chosen.random() < 0.5:
                del names[path]
        into.mkdir(parents=True)
        for path, inode in names.items():
            content = bytearray(inode.synced.ljust(inode.size, b"\0"))
            for offset, data in inode.pending:
                if chosen.random() < 0.6:
                    kept = (
                        data[: chosen.randrange(len(data) + 1)] if chosen.random() < 0.5 else data
                    )
                    content[offset : offset + len(kept)] = kept
            (into / path.name).write_bytes(bytes(content))
