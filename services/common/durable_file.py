"""Replaces a small private file as a whole, so that a reader or a crash sees the old content or
the new one, and what was written is still there after the power went.
"""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Writes 0600 beside `path`, syncs, renames, syncs the directory. Raises OSError."""
    making = path.with_name(f".{path.name}.making")
    descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    making.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """What was created, renamed or removed in it stays so."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
