"""The rendezvous of those that are in one process. Never raises RendezvousLost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from services.common.clock import Clock

#: Beyond this many keys, what has expired is dropped.
_SWEEP_AT: Final = 1_000


@dataclass(slots=True)
class _Kept:
    until_ns: int
    parts: dict[str, str] = field(default_factory=dict)


class MemoryRendezvous:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._readers: dict[str, list[asyncio.Queue[str]]] = {}
        self._kept: dict[str, _Kept] = {}
        self._sweep_at = _SWEEP_AT

    async def send(self, box: str, letter: str) -> bool:
        readers = self._readers.get(box, ())
        for reader in readers:
            reader.put_nowait(letter)
        return bool(readers)

    @asynccontextmanager
    async def reading(self, boxes: Sequence[str]) -> AsyncIterator[AsyncIterator[str]]:
        letters: asyncio.Queue[str] = asyncio.Queue()
        for box in boxes:
            self._readers.setdefault(box, []).append(letters)
        try:
            yield _each(letters)
        finally:
            for box in boxes:
                self._readers[box].remove(letters)
                if not self._readers[box]:
                    del self._readers[box]

    async def put(self, key: str, part: str, value: str, *, ttl_s: int) -> None:
        now_ns = self._clock.monotonic_ns()
        kept = self._alive(key, now_ns)
        if kept is None:
            kept = self._kept[key] = _Kept(0)
        kept.parts[part] = value
        kept.until_ns = now_ns + ttl_s * 1_000_000_000
        if len(self._kept) > self._sweep_at:
            self._kept = {one: kept for one, kept in self._kept.items() if kept.until_ns > now_ns}
            self._sweep_at = max(_SWEEP_AT, 2 * len(self._kept))

    async def get(self, key: str) -> dict[str, str]:
        kept = self._alive(key, self._clock.monotonic_ns())
        return dict(kept.parts) if kept is not None else {}

    async def drop(self, key: str, part: str = "") -> None:
        kept = self._kept.get(key)
        if kept is not None and part:
            kept.parts.pop(part, None)
        if kept is not None and not (part and kept.parts):
            del self._kept[key]

    def _alive(self, key: str, now_ns: int) -> _Kept | None:
        kept = self._kept.get(key)
        return kept if kept is not None and kept.until_ns > now_ns else None


async def _each(letters: asyncio.Queue[str]) -> AsyncIterator[str]:
    while True:
        yield await letters.get()
