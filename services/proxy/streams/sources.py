"""Streams that tool servers are listened to on, beside any call (mcp.md 7).

Decides when one is opened again, and that several agents' streams share one where nothing on it is
an agent's own. What is done with what is heard is its members' business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from services.proxy.backends.upstream import (
    Backend,
    Hear,
    Heard,
    Listening,
    SessionGone,
    UpstreamFailed,
)
from services.proxy.backends.upstream import Session as Upstream
from services.proxy.calls import Spawn, Visit
from services.proxy.snapshot import Server

FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 30.0
#: HTTP: the server knows no such stream, and will not.
_NO_STREAM: Final = frozenset({400, 404, 405, 501})

#: What was said while nobody listened is lost: whoever cares looks for itself.
Missed = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is listened to, and as whom."""

    backend: Backend
    visit: Visit
    listening: Listening
    session: Upstream | None = None

    async def run(self, hear: Hear, missed: Missed) -> None:
        """Until the server says that there is no such stream. Raises SessionGone."""
        delay_s = FIRST_DELAY_S
        loop = asyncio.get_running_loop()
        listening = self.listening
        last = listening.last_event_id

        def note(heard: Heard) -> None:
            nonlocal last
            last = heard.event_id or last
            hear(heard)

        while True:
            began = loop.time()
            try:
                await self.backend.listen(self.visit, listening, note, self.session)
            except SessionGone:
                raise
            except UpstreamFailed as failure:
                if failure.status in _NO_STREAM:
                    return
            if loop.time() - began > LONGEST_DELAY_S:
                delay_s = FIRST_DELAY_S
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)
            listening = Listening(params=listening.params, last_event_id=last)
            if not last:
                missed()


@dataclass(slots=True, eq=False)
class _Shared:
    server: Server
    members: dict[object, tuple[Hear, Missed]] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    def hear(self, heard: Heard) -> None:
        for hear, _ in list(self.members.values()):
            hear(heard)

    def missed(self) -> None:
        for _, missed in list(self.members.values()):
            missed()


class Sources:
    """One per worker: what is shared runs as long as it has a member."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._shared: dict[tuple[str, ...], _Shared] = {}

    def __len__(self) -> int:
        return len(self._shared)

    @asynccontextmanager
    async def joined(
        self, key: tuple[str, ...], source: Source, hear: Hear, missed: Missed
    ) -> AsyncIterator[None]:
        """The first one's source serves all of the same key, while the server is the same."""
        server, shared = source.visit.server, self._shared.get(key)
        if shared is None or (shared.server is not server and shared.server != server):
            shared = self._shared[key] = _Shared(server)
        member = object()
        shared.members[member] = (hear, missed)
        if shared.task is None:
            shared.task = self._spawn("listen", _quietly(source, shared))
        try:
            yield
        finally:
            del shared.members[member]
            if not shared.members:
                if self._shared.get(key) is shared:
                    del self._shared[key]
                shared.task.cancel()


def _quietly(source: Source, shared: _Shared) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        loop, delay_s = asyncio.get_running_loop(), FIRST_DELAY_S
        while True:
            began = loop.time()
            try:
                await source.run(shared.hear, shared.missed)
            except SessionGone:  # a pooled one: the next is another
                if loop.time() - began > LONGEST_DELAY_S:
                    delay_s = FIRST_DELAY_S
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, LONGEST_DELAY_S)
                shared.missed()
            else:
                return

    return run
