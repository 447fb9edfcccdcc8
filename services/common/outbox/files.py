"""The file operations that the outbox does, one method each, so that a test can count, order, fail
or kill any of them. What they add up to is the journal's business.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final, Protocol

MODE: Final = 0o600
DIR_MODE: Final = 0o700
LOCK: Final = "lock"


class Files(Protocol):
    """Every method may raise OSError. Handles are file descriptors."""

    def create(self, path: Path, size: int) -> int:
        """A new file, exclusively, with `size` bytes reserved that read as zero."""

    def open(self, path: Path) -> int:
        """An existing file, for reading."""

    def close(self, fd: int) -> None: ...

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """All of `data`, or OSError."""

    def read(self, fd: int, size: int, offset: int) -> bytes: ...

    def sync_data(self, fd: int) -> None:
        """fdatasync: the bytes written before are on the disk when this returns."""

    def sync(self, fd: int) -> None:
        """fsync: size and times too."""

    def truncate(self, fd: int, size: int) -> None: ...

    def rename(self, old: Path, new: Path) -> None: ...

    def link(self, old: Path, new: Path) -> None: ...

    def remove(self, path: Path) -> None: ...

    def sync_directory(self, path: Path) -> None: ...

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged process may still write to that file system."""


class DiskFiles:
    """The real ones."""

    __slots__ = ()

    def create(self, path: Path, size: int) -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        try:
            if size:
                _reserve(fd, size)
        except OSError:
            os.close(fd)
            raise
        return fd

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        written = os.pwrite(fd, data, offset)
        while written < len(data):
            step = os.pwrite(fd, memoryview(data)[written:], offset + written)
            if step == 0:
                raise OSError(errno.EIO, "a write wrote nothing")
            written += step

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def sync_data(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def link(self, old: Path, new: Path) -> None:
        new.hardlink_to(old)

    def remove(self, path: Path) -> None:
        path.unlink()

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: Path) -> int:
        stats = os.statvfs(path)
        return stats.f_bavail * stats.f_frsize


def _reserve(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as failure:
        if failure.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
            raise
        os.ftruncate(fd, size)  # a file system without reservation: the disk may fill later


class DirectoryTaken(Exception):
    """Another process owns this outbox directory."""


class DirectoryLock:
    """The ownership of an outbox directory; ends with the process at the latest."""

    def __init__(self, directory: Path) -> None:
        """Takes it or raises DirectoryTaken; never waits."""
        directory.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
        try:
            self._fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
        except FileNotFoundError:  # deleted by its owner between these two lines
            raise DirectoryTaken(str(directory)) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise DirectoryTaken(str(directory)) from None
        if not self._still_there(directory):  # its owner finished and deleted it meanwhile
            os.close(self._fd)
            raise DirectoryTaken(str(directory))

    def _still_there(self, directory: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), (directory / LOCK).stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        os.close(self._fd)
