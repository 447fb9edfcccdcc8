"""Carries messages between the client and the gateway. The file to read first.

Decides, message by message, which era it belongs to (what the client says decides: a version in
`_meta` is modern, `initialize` opens a session), which headers go with it, and what the client
reads when there is no answer. Requests run beside each other; what a client said before a request
arrives before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from services.common.sse import EventParser
from services.mcp_stdio import headers, messages
from services.mcp_stdio.credential import CredentialRefused
from services.mcp_stdio.gateway import Away, Broken, Gateway, Request, Say, contents
from services.mcp_stdio.headers import Param
from services.mcp_stdio.messages import MAX_LINE, Key, Kind, Malformed, Message
from services.mcp_stdio.session import Session, SessionGone, Sessions
from services.mcp_stdio.wanted import Wanted

#: What can be asked twice.
HARMLESS: Final = frozenset({
    "initialize", "server/discover", "ping", "tools/list", "prompts/list", "resources/list",
    "resources/templates/list", "completion/complete", "tasks/get",
})  # fmt: skip
Write = Callable[[bytes], Awaitable[None]]


@dataclass(slots=True)
class Flight:
    """A request on its way. `answered`: its client has read an answer."""

    message: Message
    modern: bool
    answered: bool = False
    cancelled: bool = False
    task: asyncio.Task[None] | None = None


class Relay:
    def __init__(self, gateway: Gateway, write: Write, say: Say) -> None:
        self._gateway = gateway
        self._write = write
        self._say = say
        self._flights: dict[Key, Flight] = {}
        self._tasks: asyncio.TaskGroup
        self._running: set[asyncio.Task[None]] = set()
        self._before: asyncio.Task[None] | None = None
        self._modern_version = ""
        self._wanted = Wanted(gateway)
        self._sessions = Sessions(gateway, lambda raw: self._emit(None, raw), self._spawn)

    async def run(self, lines: AsyncIterator[bytes | None]) -> None:
        """Until the lines end; then everything under way is given up and the session ended. Raises
        CredentialRefused in a group.
        """
        async with asyncio.TaskGroup() as self._tasks:
            async for line in lines:
                await self._take(line)
            legacy = [f for f in self._flights.values() if not f.modern and not f.answered]
            for task in self._running:
                task.cancel()
        await self._sessions.farewell([flight.message.id for flight in legacy])

    # --- what the client says -------------------------------------------------------------------

    async def _take(self, line: bytes | None) -> None:
        try:
            if line is None:
                raise Malformed(messages.PARSE_ERROR, f"a line is longer than {MAX_LINE} bytes")
            message = messages.parse(line)
        except Malformed as bad:
            await self._write(messages.error(None, bad.code, str(bad)))
            return
        match message.kind:
            case Kind.REQUEST:
                await self._begin(message)
            case Kind.NOTIFICATION if message.method == "notifications/cancelled":
                self._cancel(message)
            case _:
                self._send(message)

    async def _begin(self, message: Message) -> None:
        key = messages.key(message.id)
        known = self._flights.get(key)
        if known is not None and not known.answered:
            rule = "a request of that id is still under way"
            await self._write(messages.error(message.id, messages.INVALID_REQUEST, rule))
            return
        version = message.version
        flight = self._flights[key] = Flight(message, version is not None)
        if version is not None:
            self._modern_version = version
        task = flight.task = self._spawn(self._request(flight, self._before))
        task.add_done_callback(lambda _: self._landed(key, flight))
        if message.method == "initialize":  # all else waits for the session
            self._before = task

    def _landed(self, key: Key, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _cancel(self, message: Message) -> None:
        """Of a modern request the stream is closed; a legacy one is told, and may answer yet."""
        given = message.params.get("requestId")
        flight = self._flights.get(messages.key(given))
        if flight is not None:
            flight.cancelled = True
            if flight.modern and flight.task is not None:
                flight.task.cancel()
                return
        if self._sessions.now is not None:
            self._send(message)

    def _send(self, message: Message) -> None:
        """Notifications and answers arrive in the order in which they were said."""
        self._before = self._spawn(self._deliver(message, self._before))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    # --- requests -------------------------------------------------------------------------------

    async def _request(self, flight: Flight, before: asyncio.Task[None] | None) -> None:
        """Whatever becomes of it, the client reads one answer, unless it gave the request up."""
        await _ended(before)
        reason = ""
        try:
            await self._ask(flight)
        except Away as away:
            lost = away.lost and flight.message.method not in HARMLESS
            reason = "upstream_protocol" if lost else "upstream_unreachable"
        except Broken:
            reason = "upstream_protocol"
        except SessionGone:
            reason = "unknown_server"
        except CredentialRefused:
            await self._fail(flight, "unauthenticated")
            raise
        if reason:
            await self._fail(flight, reason)

    async def _ask(self, flight: Flight) -> None:
        """1. sent  2. its session is gone: a new one, and once more  3. its headers were wrong,
        since nobody had listed the tool here: once more with the right ones.
        """
        session, params = self._sessions.now, self._wanted.by(flight.message)
        try:
            unlike = await self._attempt(flight, session, params)  # 1
        except SessionGone:
            await self._sessions.reopen(session)  # 2
            await self._attempt(flight, self._sessions.now, params)
            return
        if unlike is not None:  # 3
            await self._wanted.learn(flight.message)
            known = self._wanted.by(flight.message)
            if known == params:
                await self._emit(flight, unlike)
            else:
                await self._attempt(flight, session, known, last=True)

    async def _attempt(
        self,
        flight: Flight,
        session: Session | None,
        params: tuple[Param, ...],
        *,
        last: bool = False,
    ) -> bytes | None:
        """None; or the refusal of headers that do not agree, unsaid yet. Raises SessionGone."""
        message = flight.message
        request = Request(
            verb="POST",
            headers=self._headers(message, session, params),
            body=message.body,
            harmless=message.method in HARMLESS,
        )
        events = EventParser(MAX_LINE)
        async with self._gateway.exchange(request) as response:
            status, opening = response.status, message.method == "initialize"
            kept = session if not flight.modern and not opening else None
            if status == 404 and kept is not None:
                raise SessionGone
            try:
                async for raw in contents(response, events):
                    if status == 400 and not last and _unlike(flight, raw):
                        return raw
                    if opening:
                        given = response.headers.get("Mcp-Session-Id", "")
                        self._sessions.opened(message, raw, given)
                    await self._emit(flight, raw, status=status)
                    if flight.answered:
                        return None
            except Broken:
                if kept is None or not events.event_id:
                    raise
        if kept is not None and events.event_id:
            await self._resume(flight, kept, events)
        elif not flight.cancelled:
            if status != 200:
                self._say(f"the gateway answered HTTP {status} and said no more")
            await self._fail(flight, _meaning(status))
        return None

    async def _resume(self, flight: Flight, session: Session, events: EventParser) -> None:
        async with aclosing(self._sessions.resumed(session, events)) as rest:
            async for raw in rest:
                await self._emit(flight, raw)
                if flight.answered:
                    return
        if not flight.cancelled:
            raise Broken

    def _headers(
        self, message: Message, session: Session | None, params: tuple[Param, ...]
    ) -> dict[str, str]:
        version = message.version
        if version is not None:
            return headers.modern(message, version, params)
        if message.method == "initialize":
            return {}
        if session is not None:
            return session.headers
        return headers.modern(message, self._modern_version, ()) if self._modern_version else {}

    # --- what the client reads ------------------------------------------------------------------

    async def _emit(self, flight: Flight | None, raw: bytes, *, status: int = 200) -> None:
        """A message of the gateway, in one line. Raises Broken."""
        tree = messages.received(raw)
        if tree is None:
            if flight is not None and status >= 400:
                return
            raise Broken
        if "method" in tree:
            await self._write(messages.one_line(raw))
            return
        answered = tree.get("id")
        if answered is None and flight is not None and "error" in tree:
            flight.answered = True  # refused before its id was read
            await self._write(messages.answer(flight.message.id, "error", tree["error"]))
            return
        owner = self._flights.get(messages.key(answered))
        if owner is None or owner.answered:
            self._say("an answer that nobody waits for was dropped")
            return
        if owner.message.method == "tools/list":
            self._wanted.note(tree)
        owner.answered = True
        await self._write(messages.one_line(raw))

    async def _fail(self, flight: Flight, reason: str) -> None:
        if not flight.answered:
            flight.answered = True
            await self._write(messages.failure(flight.message.id, reason))

    # --- notifications and answers of the client ------------------------------------------------

    async def _deliver(self, message: Message, before: asyncio.Task[None] | None) -> None:
        await _ended(before)
        session = self._sessions.now
        if session is None and message.kind is Kind.RESPONSE:
            self._say("an answer that nobody asked for was dropped")
            return
        try:
            made = self._headers(message, session, ())
            request = Request(verb="POST", headers=made, body=message.body)
            async with self._gateway.exchange(request) as response:
                status = response.status
        except (Away, Broken):
            self._say("a message of the client was lost")
            return
        if status >= 400:
            self._say(f"a message of the client was refused (HTTP {status})")
        elif message.method == "notifications/initialized" and session is not None:
            self._sessions.listen(session)


def _unlike(flight: Flight, raw: bytes) -> bool:
    """Whether a modern call was refused for its headers."""
    if not flight.modern or flight.message.method != "tools/call":
        return False
    error = (messages.received(raw) or {}).get("error")
    return type(error) is dict and error.get("code") == messages.HEADER_MISMATCH


def _meaning(status: int) -> str:
    """What an answer without a message says."""
    match status:
        case 404:
            return "unknown_server"
        case 429:
            return "rate_limited"
        case 503:
            return "upstream_unreachable"
        case _:
            return "upstream_protocol"


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        await asyncio.wait([task])
