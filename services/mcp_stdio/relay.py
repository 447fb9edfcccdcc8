"""Carries messages between the client and the gateway. The file to read first.

Decides, message by message, which era it belongs to (what the client says decides: a version in
`_meta` is modern, `initialize` opens a session), which headers go with it, and what the client
reads when there is no answer. Requests run beside each other; what a client said before a request
arrives before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from services.mcp_stdio import headers, messages
from services.mcp_stdio.credential import CredentialRefused
from services.mcp_stdio.events import Events
from services.mcp_stdio.gateway import Away, Broken, Gateway, Request, Say, contents
from services.mcp_stdio.headers import Param
from services.mcp_stdio.messages import MAX_LINE, Key, Kind, Malformed, Message

#: What can be asked twice.
HARMLESS: Final = frozenset({
    "initialize", "server/discover", "ping", "tools/list", "prompts/list", "resources/list",
    "resources/templates/list", "completion/complete", "tasks/get",
})  # fmt: skip
RESUMES: Final = 5
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
FAREWELL_S: Final = 1.2
MAX_TOOLS: Final = 5_000
MAX_PAGES: Final = 50

Write = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A legacy session with the gateway. `id` is empty where it gave none."""

    id: str
    version: str

    @property
    def headers(self) -> dict[str, str]:
        made = {"MCP-Protocol-Version": self.version} if self.version else {}
        return {**made, "Mcp-Session-Id": self.id} if self.id else made


@dataclass(slots=True)
class Flight:
    """A request on its way. `answered`: its client has read an answer."""

    message: Message
    modern: bool
    answered: bool = False
    cancelled: bool = False
    task: asyncio.Task[None] | None = None


class SessionGone(Exception):
    """The gateway does not know the session any more: nothing ran."""


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
        self._params: dict[str, tuple[Param, ...]] = {}
        self._opening: Message | None = None
        self._session: Session | None = None
        self._reopening = asyncio.Lock()
        self._stream: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)

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
        await self._farewell(legacy)

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
            if flight.modern:
                _give_up(flight.task)
                return
        if self._session is not None:
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
        session = self._session
        params = self._params.get(_tool(flight.message), ())
        try:
            unlike = await self._attempt(flight, session, params)  # 1
        except SessionGone:
            await self._reopen(session)  # 2
            await self._attempt(flight, self._session, params)
            return
        if unlike is not None:  # 3
            await self._learn(flight.message)
            known = self._params.get(_tool(flight.message), ())
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
        events = Events(MAX_LINE)
        async with self._gateway.exchange(request) as response:
            opening = message.method == "initialize"
            if response.status == 404 and session and not flight.modern and not opening:
                raise SessionGone
            async for raw in contents(response, events):
                if response.status == 400 and not last and _unlike(flight, raw):
                    return raw
                if opening:
                    self._opened(message, raw, response.headers.get("Mcp-Session-Id", ""))
                await self._emit(flight, raw, status=response.status)
                if flight.answered:
                    return None
            plain = response.status
        if events.last_id and session and not flight.modern:
            await self._resume(flight, session, events)
        elif not flight.cancelled:
            if plain != 200:
                self._say(f"the gateway answered HTTP {plain} and said no more")
            await self._fail(flight, _meaning(plain))
        return None

    async def _resume(self, flight: Flight, session: Session, events: Events) -> None:
        """The stream ended before the answer: it goes on where it was left."""
        for _ in range(RESUMES):
            await asyncio.sleep(events.retry_s or FIRST_PAUSE_S)
            request = self._listening(session, events.last_id)
            with contextlib.suppress(Away, Broken):
                async with self._gateway.exchange(request) as response:
                    if response.status != 200:
                        break
                    async for raw in contents(response, events):
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
        if (
            answered is None and flight is not None and "error" in tree
        ):  # refused before it was read
            flight.answered = True
            await self._write(messages.answer(flight.message.id, "error", tree["error"]))
            return
        owner = self._flights.get(messages.key(answered))
        if owner is None or owner.answered:
            self._say("an answer that nobody waits for was dropped")
            return
        if owner.message.method == "tools/list":
            self._note_tools(tree)
        owner.answered = True
        await self._write(messages.one_line(raw))

    async def _fail(self, flight: Flight, reason: str) -> None:
        if not flight.answered:
            flight.answered = True
            await self._write(messages.failure(flight.message.id, reason))

    # --- notifications and answers of the client ------------------------------------------------

    async def _deliver(self, message: Message, before: asyncio.Task[None] | None) -> None:
        await _ended(before)
        session = self._session
        if session is None and message.kind is Kind.RESPONSE:
            self._say("an answer that nobody asked for was dropped")
            return
        try:
            async with self._gateway.exchange(self._saying(message, session)) as response:
                status = response.status
        except (Away, Broken):
            self._say("a message of the client was lost")
            return
        if status >= 400:
            self._say(f"a message of the client was refused (HTTP {status})")
        elif message.method == "notifications/initialized" and session is not None:
            self._listen(session)

    def _saying(self, message: Message, session: Session | None) -> Request:
        made = self._headers(message, session, ())
        return Request(verb="POST", headers=made, body=message.body)

    # --- the session ----------------------------------------------------------------------------

    def _opened(self, message: Message, raw: bytes, id: str) -> None:
        tree = messages.received(raw) or {}
        result = tree.get("result")
        if type(result) is dict:
            version = result.get("protocolVersion")
            self._opening = message
            self._session = Session(id=id, version=version if type(version) is str else "")

    async def _reopen(self, gone: Session | None) -> None:
        """A session ends by time or a restart; its client knows of none. Raises SessionGone where
        there is no new one.
        """
        async with self._reopening:
            if self._session is not gone:
                return
            opening = self._opening
            if opening is None:
                raise SessionGone
            request = Request(verb="POST", headers={}, body=opening.body, harmless=True)
            async with self._gateway.exchange(request) as response:
                given = response.headers.get("Mcp-Session-Id", "")
                async for raw in contents(response, Events(MAX_LINE)):
                    self._opened(opening, raw, given)
            session = self._session
            if session is gone or session is None:
                raise SessionGone
            note = messages.encode({"jsonrpc": "2.0", "method": "notifications/initialized"})
            request = Request(verb="POST", headers=session.headers, body=note)
            async with self._gateway.exchange(request):
                self._listen(session)

    def _listen(self, session: Session) -> None:
        _give_up(self._stream)
        self._stream = self._spawn(self._follow(session))

    async def _follow(self, session: Session) -> None:
        """The stream on which the gateway speaks unasked, where it offers one."""
        events, failures = Events(MAX_LINE), 0
        while True:
            with contextlib.suppress(Away, Broken):
                request = self._listening(session, events.last_id)
                async with self._gateway.exchange(request) as response:
                    if response.status != 200:
                        return
                    failures = -1
                    async for raw in contents(response, events):
                        await self._emit(None, raw)
            failures += 1
            pause_s = (events.retry_s or FIRST_PAUSE_S) * 2 ** min(failures, 10)
            await asyncio.sleep(min(pause_s, LONGEST_PAUSE_S))

    def _listening(self, session: Session, last_id: str) -> Request:
        made = {**session.headers, "Accept": "text/event-stream"}
        if last_id:
            made["Last-Event-ID"] = last_id
        return Request(verb="GET", headers=made, harmless=True)

    async def _farewell(self, legacy: list[Flight]) -> None:
        """Legacy requests are told that nobody waits, then the session that it is over."""
        session = self._session
        if session is None or not session.id:
            return
        with contextlib.suppress(TimeoutError, CredentialRefused, Away, Broken):
            async with asyncio.timeout(FAREWELL_S):
                for flight in legacy:
                    note = {
                        "jsonrpc": "2.0",
                        "method": "notifications/cancelled",
                        "params": {"requestId": flight.message.id, "reason": "the client ended"},
                    }
                    body = messages.encode(note)
                    await self._pass(Request(verb="POST", headers=session.headers, body=body))
                await self._pass(Request(verb="DELETE", headers=session.headers))

    async def _pass(self, request: Request) -> None:
        async with self._gateway.exchange(request):
            return

    # --- what schemas want repeated in headers --------------------------------------------------

    def _note_tools(self, tree: dict[str, Any]) -> str | None:
        """Remembers what each tool of a list wants; answers the list's cursor."""
        result = tree.get("result")
        if type(result) is not dict or type(result.get("tools")) is not list:
            return None
        for tool in result["tools"]:
            if type(tool) is dict and type(tool.get("name")) is str:
                if len(self._params) >= MAX_TOOLS:
                    self._params.clear()
                self._params[tool["name"]] = headers.annotated(tool.get("inputSchema"))
        cursor = result.get("nextCursor")
        return cursor if type(cursor) is str else None

    async def _learn(self, message: Message) -> None:
        """Lists the tools as the call's client would."""
        meta = {k: v for k, v in message.params["_meta"].items() if k != "progressToken"}
        params: dict[str, Any] = {"_meta": meta}
        for _ in range(MAX_PAGES):
            own = f"behavry-mcp-stdio-{next(self._numbers)}"
            body = {"jsonrpc": "2.0", "id": own, "method": "tools/list", "params": params}
            asked = messages.parse(messages.encode(body))
            made = headers.modern(asked, asked.version or "", ())
            request = Request(verb="POST", headers=made, body=asked.body, harmless=True)
            cursor: str | None = None
            async with self._gateway.exchange(request) as response:
                async for raw in contents(response, Events(MAX_LINE)):
                    tree = messages.received(raw)
                    if tree is not None and tree.get("id") == own:
                        cursor = self._note_tools(tree)
            if cursor is None:
                return
            params = {**params, "cursor": cursor}


def _tool(message: Message) -> str:
    name = message.params.get("name")
    return name if message.method == "tools/call" and type(name) is str else ""


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


def _give_up(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        await asyncio.wait([task])
