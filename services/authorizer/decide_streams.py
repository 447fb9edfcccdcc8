"""The Decide streams that are open: what waits to be written to each, and news for all of them.

Verdicts go out as many at once as wait; news (an escalation changed, rights ended) go to every
stream at once, and before verdicts. What they look like on the wire is the servicer's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

#: A reader that lets more news wait has its stream ended: a new stream starts from what is.
MAX_NEWS: Final = 4_096

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketChanged:
    tenant: str
    escalation: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RightsEnded:
    """Nothing named means everybody of the tenant; no tenant means everybody."""

    tenant: str
    agents: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()


News = TicketChanged | RightsEnded


class DecideStream(Generic[V]):
    """What one open stream has still to be sent. Iterating ends with the stream."""

    def __init__(self) -> None:
        self._verdicts: list[V] = []
        self._news: deque[News] = deque()
        self._wake = asyncio.Event()
        self._ended = False

    def put(self, verdict: V) -> None:
        self._verdicts.append(verdict)
        self._wake.set()

    def tell(self, news: News) -> None:
        if len(self._news) >= MAX_NEWS:
            self.end()
            return
        self._news.append(news)
        self._wake.set()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    def __aiter__(self) -> DecideStream[V]:
        return self

    async def __anext__(self) -> News | list[V]:
        while not self._verdicts and not self._news:
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        if self._news:
            return self._news.popleft()
        ready, self._verdicts = self._verdicts, []
        return ready


class DecideStreams(Generic[V]):
    """Every stream that is open. Telling nobody is no error."""

    def __init__(self) -> None:
        self._open: set[DecideStream[V]] = set()

    def opened(self) -> DecideStream[V]:
        stream = DecideStream[V]()
        self._open.add(stream)
        return stream

    def closed(self, stream: DecideStream[V]) -> None:
        self._open.discard(stream)

    def ticket_changed(self, *, tenant: str, escalation: str, state: str) -> None:
        self._tell(TicketChanged(tenant=tenant, escalation=escalation, state=state))

    def revoked(
        self, tenant: str, *, agents: tuple[str, ...] = (), sessions: tuple[str, ...] = ()
    ) -> None:
        self._tell(RightsEnded(tenant=tenant, agents=agents, sessions=sessions))

    def _tell(self, news: News) -> None:
        for stream in list(self._open):
            stream.tell(news)
