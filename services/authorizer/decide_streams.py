"""The Decide streams that are open: what waits to be written to each, and news for all of them.

Verdicts go out as many at once as wait; news (an escalation changed, rights ended) go to every
stream at once, before verdicts that were ready no earlier.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from behavry.authorizer.v1 import authorizer_pb2 as wire

#: A reader that lets more news wait has its stream ended: a new stream starts from what is.
MAX_NEWS: Final = 4_096


class DecideStream:
    """What one open stream has still to be sent. Iterating ends with the stream."""

    def __init__(self) -> None:
        self._verdicts: list[wire.Verdict] = []
        self._news: deque[wire.DecideResponse] = deque()
        self._wake = asyncio.Event()
        self._ended = False

    def put(self, verdict: wire.Verdict) -> None:
        self._verdicts.append(verdict)
        self._wake.set()

    def tell(self, news: wire.DecideResponse) -> None:
        if len(self._news) >= MAX_NEWS:
            self.end()
            return
        self._news.append(news)
        self._wake.set()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    def __aiter__(self) -> DecideStream:
        return self

    async def __anext__(self) -> wire.DecideResponse:
        while not self._verdicts and not self._news:
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        if self._news:
            return self._news.popleft()
        ready, self._verdicts = self._verdicts, []
        return wire.DecideResponse(verdicts=wire.Verdicts(verdicts=ready))


class DecideStreams:
    """Every stream that is open. Telling nobody is no error."""

    def __init__(self) -> None:
        self._open: set[DecideStream] = set()

    def opened(self) -> DecideStream:
        stream = DecideStream()
        self._open.add(stream)
        return stream

    def closed(self, stream: DecideStream) -> None:
        self._open.discard(stream)

    def ticket_changed(self, *, tenant: str, escalation: str, state: str) -> None:
        changed = wire.TicketChanged(tenant_id=tenant, escalation_id=escalation, state=state)
        self._tell(wire.DecideResponse(ticket_changed=changed))

    def revoked(
        self, tenant: str, *, agents: tuple[str, ...] = (), sessions: tuple[str, ...] = ()
    ) -> None:
        """Nothing named means everybody of the tenant; no tenant means everybody."""
        revoked = wire.Revoked(tenant_id=tenant, agent_ids=agents, session_ids=sessions)
        self._tell(wire.DecideResponse(revoked=revoked))

    def _tell(self, news: wire.DecideResponse) -> None:
        for stream in list(self._open):
            stream.tell(news)
