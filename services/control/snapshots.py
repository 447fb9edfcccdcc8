"""The copy on disk of what entitlements last said, which serves a restart while entitlements is
away. It may be lost: then the core alone is offered until entitlements speaks.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import msgspec

from services.common import durable_file
from services.common.telemetry.logging import Log
from services.control.features import Features, Kept

#: Changes that come close together are written once.
GATHER_S: Final = 0.2
_FORM: Final = b"behavry.entitlements/1\n"


def read(path: Path) -> Kept | None:
    """None: there is none that can be used."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if not content.startswith(_FORM):
        return None
    try:
        return msgspec.msgpack.decode(content[len(_FORM) :], type=Kept)
    except msgspec.DecodeError:
        return None


def write(path: Path, kept: Kept) -> None:
    """Raises OSError."""
    durable_file.replace(path, _FORM + msgspec.msgpack.encode(kept))


class DiskCopy:
    """Writes what changed, soon after it did; `run` it under a supervisor."""

    def __init__(self, path: Path, features: Features, log: Log) -> None:
        self._path = path
        self._features = features
        self._log = log
        self._changed = asyncio.Event()
        features.listen(lambda _: self._changed.set())

    async def run(self) -> None:
        try:
            while True:
                await self._changed.wait()
                await asyncio.sleep(GATHER_S)
                self._changed.clear()
                await asyncio.to_thread(self._write, self._features.kept())
        finally:
            if self._changed.is_set():
                self._write(self._features.kept())

    def _write(self, kept: Kept) -> None:
        try:
            write(self._path, kept)
        except OSError as failure:
            # What is held in memory goes on; the next change tries again.
            self._log.error("entitlements_copy_not_written", error=type(failure).__name__)
