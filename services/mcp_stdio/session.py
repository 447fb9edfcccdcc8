"""The session of a legacy client, kept for it: opened anew when it ended, its stream followed, its
end told.

Decides when that is due; what the client reads of it is relay.py's work.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.common.sse import EventParser
from services.mcp_stdio import messages
from services.mcp_stdio.credential import CredentialRefused
from services.mcp_stdio.gateway import Away, Broken, Gateway, Request, contents
from services.mcp_stdio.messages import MAX_LINE, Message

RESUMES: Final = 5
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
FAREWELL_S: Final = 1.2

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class SessionGone(Exception):
    """The gateway does not know the session any more: nothing ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """`id` is empty where the gateway gave none."""

    id: str
    version: str

    @property
    def headers(self) -> dict[str, str]:
        made = {"MCP-Protocol-Version": self.version} if self.version else {}
        return {**made, "Mcp-Session-Id": self.id} if self.id else made


class Sessions:
    """One at a time. `hear` takes what the gateway says unasked."""

    def __init__(
        self, gateway: Gateway, hear: Callable[[bytes], Awaitable[None]], spawn: Spawn
    ) -> None:
        self._gateway = gateway
        self._hear = hear
        self._spawn = spawn
        self._opening: Message | None = None
        self._reopening = asyncio.Lock()
        self._stream: asyncio.Task[None] | None = None
        self.now: Session | None = None

    def opened(self, opening: Message, raw: bytes, id: str) -> None:
        """`raw` came in answer to `initialize`."""
        result = (messages.received(raw) or {}).get("result")
        if type(result) is dict:
            version = result.get("protocolVersion")
            self._opening = opening
            self.now = Session(id=id, version=version if type(version) is str else "")

    async def reopen(self, gone: Session | None) -> None:
        """A session ends by time or a restart; its client knows of none. Raises SessionGone where
        there is no new one.
        """
        async with self._reopening:
            if self.now is not gone:  # whoever came first did it
                return
            opening = self._opening
            if opening is None:
                raise SessionGone
            request = Request(verb="POST", headers={}, body=opening.body, harmless=True)
            async with self._gateway.exchange(request) as response:
                given = response.headers.get("Mcp-Session-Id", "")
                async for raw in contents(response, EventParser(MAX_LINE)):
                    self.opened(opening, raw, given)
            session = self.now
            if session is gone or session is None:
                raise SessionGone
            await self._tell(session, "notifications/initialized")
            self.listen(session)

    def listen(self, session: Session) -> None:
        if self._stream is not None:
            self._stream.cancel()
        self._stream = self._spawn(self._follow(session))

    async def resumed(self, session: Session, events: EventParser) -> AsyncGenerator[bytes]:
        """An answer's stream ended before the answer: it goes on where it was left."""
        for _ in range(RESUMES):
            await asyncio.sleep(_pause_s(events))
            with contextlib.suppress(Away, Broken):
                async with self._gateway.exchange(_listening(session, events)) as response:
                    if response.status != 200:
                        return
                    async for raw in contents(response, events):
                        yield raw

    async def farewell(self, given_up: Sequence[Any]) -> None:
        """Requests of these ids are told that nobody waits, then the session that it is over."""
        session = self.now
        if session is None or not session.id:
            return
        with contextlib.suppress(TimeoutError, CredentialRefused, Away, Broken):
            async with asyncio.timeout(FAREWELL_S):
                for one in given_up:
                    why = {"requestId": one, "reason": "the client ended"}
                    await self._tell(session, "notifications/cancelled", params=why)
                request = Request(verb="DELETE", headers=session.headers)
                async with self._gateway.exchange(request):
                    return

    async def _follow(self, session: Session) -> None:
        """The stream on which the gateway speaks unasked, where it offers one."""
        events, failures = EventParser(MAX_LINE), 0
        while True:
            with contextlib.suppress(Away, Broken):
                async with self._gateway.exchange(_listening(session, events)) as response:
                    if response.status != 200:
                        return
                    failures = -1
                    async for raw in contents(response, events):
                        await self._hear(raw)
            failures += 1
            pause_s = _pause_s(events) * 2 ** min(failures, 10)
            await asyncio.sleep(min(pause_s, LONGEST_PAUSE_S))

    async def _tell(self, session: Session, method: str, **more: Any) -> None:
        note = messages.encode({"jsonrpc": "2.0", "method": method, **more})
        request = Request(verb="POST", headers=session.headers, body=note)
        async with self._gateway.exchange(request):
            return


def _pause_s(events: EventParser) -> float:
    return FIRST_PAUSE_S if events.retry_ms is None else events.retry_ms / 1000


def _listening(session: Session, events: EventParser) -> Request:
    made = {**session.headers, "Accept": "text/event-stream"}
    if events.event_id:
        made["Last-Event-ID"] = events.event_id
    return Request(verb="GET", headers=made, harmless=True)
