"""Rights taken away since the active bundle was built. Only a newer bundle gives any back.

A signal counts at once in memory and is on the disk before it is acknowledged, so that a restart
forgets none. A file that cannot be read may have held anything: then everything stands still until
control has confirmed a bundle `SURE_AFTER_S` after the loss was seen. Control keeps sending what no
bundle says yet, and has a bundle within seconds; so by then one of the two has said it all again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec

from services.authorizer.kill_switch import FLEET, Switch
from services.common import durable_file

SURE_AFTER_S: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A signal of the link. Of no effect once a bundle of `min_serial` or newer is active."""

    signal_id: str
    tenant: str
    agents: frozenset[str]
    sessions: frozenset[str]
    stops: frozenset[Switch] = frozenset()
    min_serial: int


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    version: Literal[1]
    signals: tuple[Revocation, ...]
    #: Before this one there was an unreadable file, and nothing has made up for it yet.
    lost: bool = False


class RevocationsLost(Exception):
    """The file is there and cannot be read. Everything stands still."""


@dataclass(slots=True)
class Revocations:
    """Without a file it forgets with the process."""

    file: Path | None = None
    _signals: dict[str, Revocation] = field(default_factory=dict)
    _active_serial: int = 0
    #: On the monotonic clock: when the loss was seen, or heard of from the process before.
    _lost_at_ns: int | None = None
    _agents: set[tuple[str, str]] = field(default_factory=set)
    _sessions: set[tuple[str, str]] = field(default_factory=set)
    _saved: bytes = b""
    _saving: asyncio.Lock = field(default_factory=asyncio.Lock)

    def restore(self, *, now_ns: int) -> None:
        """What the file holds, at start. Raises RevocationsLost, and then is a fleet's stop."""
        if self.file is None:
            return
        try:
            document = msgspec.json.decode(self.file.read_bytes(), type=_Document)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as bad:
            self._lost_at_ns = now_ns
            raise RevocationsLost from bad
        self._signals = {signal.signal_id: signal for signal in document.signals}
        self._lost_at_ns = now_ns if document.lost else None
        self._index()

    def add(self, signal: Revocation, *, active_serial: int) -> None:
        """Counts from now on; `save` before it is acknowledged. The same signal twice is one."""
        self._active_serial = active_serial
        self._signals[signal.signal_id] = signal
        self._index()

    def settle(self, active_serial: int, *, oldest_serial: int | None = None) -> None:
        """A bundle is active that speaks for itself. Signals newer than the oldest bundle on the
        disk are kept without effect, for a restart that can use no newer one.
        """
        oldest = active_serial if oldest_serial is None else min(oldest_serial, active_serial)
        self._active_serial = active_serial
        self._signals = {
            signal_id: signal
            for signal_id, signal in self._signals.items()
            if signal.min_serial > oldest
        }
        self._index()

    def confirm(self, *, now_ns: int) -> bool:
        """Control has just said that the active bundle is its newest. True where that ends the
        standstill after a loss.
        """
        if self._lost_at_ns is None or now_ns - self._lost_at_ns < SURE_AFTER_S * 1_000_000_000:
            return False
        self._lost_at_ns = None
        return True

    async def save(self) -> None:
        """Returns once all that was added before is on the disk. Raises OSError."""
        if self.file is None:
            return
        async with self._saving:
            signals = tuple(self._signals.values())
            lost = self._lost_at_ns is not None
            content = msgspec.json.encode(_Document(version=1, signals=signals, lost=lost))
            if content != self._saved:
                await asyncio.to_thread(durable_file.replace, self.file, content)
                self._saved = content

    def agent(self, tenant: str, agent: str) -> bool:
        return (tenant, agent) in self._agents

    def session(self, tenant: str, session: str) -> bool:
        return (tenant, session) in self._sessions

    def sessions_of(self, tenant: str) -> Collection[str]:
        return [session for owner, session in self._sessions if owner == tenant]

    def stops(self) -> frozenset[Switch]:
        """The kill switches that signals have thrown and the active bundle may not know yet."""
        lost = () if self._lost_at_ns is None else (FLEET,)
        thrown = (stop for signal in self._in_effect() for stop in signal.stops)
        return frozenset((*lost, *thrown))

    def _in_effect(self) -> list[Revocation]:
        return [one for one in self._signals.values() if one.min_serial > self._active_serial]

    def _index(self) -> None:
        signals = self._in_effect()
        self._agents = {(one.tenant, agent) for one in signals for agent in one.agents}
        self._sessions = {(one.tenant, session) for one in signals for session in one.sessions}
