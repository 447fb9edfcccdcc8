"""The kill switch's local source: a file that the operator of this machine writes when nothing else
answers. Looked at five times a second, off the path of decisions.

Decides what the file's bytes stop. It fails closed: only a missing file, or a list that says so,
stops nothing; an empty file stops the fleet, and so does one that cannot be read or understood.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from services.authorizer.kill_switch import FLEET, Switch, switch

POLL_S: Final = 0.2
MAX_BYTES: Final = 1 << 20


class _Stop(msgspec.Struct, frozen=True, kw_only=True):
    scope: Literal["agent", "class", "server", "tenant", "fleet"]
    tenant: str = ""
    subject: str = ""


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    """`{"version": 1, "stops": [{"scope", "tenant", "subject", "reason", "at"}]}`. Without a tenant
    a stop holds in all of them; `reason` and `at` are for people.
    """

    version: Literal[1]
    stops: tuple[_Stop, ...]


_decoder: Final = msgspec.json.Decoder(_Document)


def parse(content: bytes) -> frozenset[Switch]:
    """What a file with this content stops."""
    try:
        document = _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return frozenset({FLEET})
    return frozenset(switch(stop.scope, stop.tenant, stop.subject) for stop in document.stops)


@dataclass(slots=True, kw_only=True)
class KillFile:
    """`tell` gets what the file stops whenever its content is another one."""

    path: Path
    tell: Callable[[Iterable[Switch]], None]
    _seen: bytes | None = None

    def look(self) -> None:
        """Reads it once: before the first decision, and then by `run`."""
        try:
            content = _content(self.path)
        except OSError:
            content = b""  # it is there, or may be, and cannot be read: as an empty one
        if content != self._seen:
            self._seen = content
            self.tell(frozenset() if content is None else parse(content))

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            self.look()


def _content(path: Path) -> bytes | None:
    """None where there is no such file. Raises OSError where that cannot be told."""
    try:
        # A pipe under that name must not hold the loop until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        path.parent.stat()  # a directory that went away says nothing about the file
        if path.is_symlink():
            raise
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        content = os.read(descriptor, MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    return content if len(content) <= MAX_BYTES else b""
