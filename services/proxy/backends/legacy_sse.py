"""Tool servers over HTTP+SSE of 2024-11-05: one stream to read, and an address to post to.

Decides which stream an agent speaks on (as with stdio one per agent, server and capabilities), and
that messages are posted to the server's own origin alone, whatever its stream says (mcp.md 2.2).
What is said on the stream is a conversation's matter, HTTP itself the wire's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import urljoin, urlsplit

from services.common.clock import Clock
from services.common.ids import AgentId, ServerSlug, TenantId
from services.common.sse import MESSAGE, EventParser, EventTooLong
from services.common.telemetry.counters import Counters
from services.proxy import messages
from services.proxy.backends.conversation import Conversation
from services.proxy.backends.upstream import (
    CALL_S,
    CONNECT_S,
    MAX_ANSWER,
    PROBE_S,
    Hear,
    Listening,
    Reply,
    Request,
    Session,
    UpstreamFailed,
    introduced,
)
from services.proxy.bridge import OURS, Facts
from services.proxy.calls import Visit
from services.proxy.eras import NEWEST_LEGACY
from services.proxy.snapshot import Server

IDLE_NS: Final = 1_800 * 1_000_000_000
ENDPOINT: Final = "endpoint"
MAX_ENDPOINT: Final = 2048
#: The version that the transport belongs to; its servers speak nothing newer.
VERSION: Final = "2024-11-05"
_NOTHING: Final = "{}"

_Holder = tuple[TenantId, AgentId, ServerSlug, str]


class Http(Protocol):
    """HTTP to a tool server, with its credential and within all limits."""

    async def read(self, visit: Visit, url: str, feed: Callable[[bytes], bool]) -> None:
        """An event stream, as long as it lasts or until `feed` is satisfied. Raises
        UpstreamFailed.
        """

    async def post(self, visit: Visit, url: str, body: bytes, timeout_s: float) -> int:
        """The status. Raises UpstreamFailed."""


@dataclass(slots=True, eq=False)
class _Line:
    """A stream, once it is open; `endpoint` is where to post."""

    talk: Conversation
    server: Server
    endpoint: asyncio.Future[str]
    reading: asyncio.Task[None] | None = None
    facts: Facts | None = None
    used_ns: int = 0

    @property
    def ready(self) -> bool:
        return self.facts is not None and self.talk.alive


@dataclass(slots=True)
class _Slot:
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    line: _Line | None = None


class LegacySseBackend:
    """One per worker, for all servers of transport `sse`."""

    def __init__(
        self,
        *,
        http: Http,
        clock: Clock,
        counters: Counters,
        spawn: Callable[[str, Callable[[], Any]], asyncio.Task[None]],
    ) -> None:
        self._http = http
        self._clock = clock
        self._dropped = counters.counter("proxy.upstream.dropped")
        self._spawn = spawn
        self._slots: dict[_Holder, _Slot] = {}

    async def facts(self, visit: Visit) -> Facts:
        return _facts(await self._ready(visit, _NOTHING))

    async def open(self, visit: Visit, capabilities: Mapping[str, Any]) -> Session | None:
        told = messages.encode(dict(capabilities), sort=True).decode()
        line = await self._ready(visit, told)
        return Session(told, _facts(line).version)

    async def ask(
        self,
        visit: Visit,
        request: Request,
        session: Session | None = None,
        hear: Hear | None = None,
    ) -> Reply:
        return await (await self._ready(visit, _told(session))).talk.ask(request, hear)

    async def tell(self, visit: Visit, message: Mapping[str, Any], session: Session | None) -> None:
        slot = self._slots.get(_holder(visit, _told(session)))
        if slot is None or slot.line is None or not slot.line.ready:
            raise UpstreamFailed("upstream_unreachable", ran=False)  # it asked nothing, then
        await slot.line.talk.tell(message)

    async def listen(
        self, visit: Visit, listening: Listening, hear: Hear, session: Session | None = None
    ) -> None:
        line = await self._ready(visit, _told(session))
        await line.talk.listen(listening, hear, modern=False)

    async def close(self, visit: Visit, session: Session) -> None:
        """The stream stays: it is the agent's, not the session's."""

    async def sweep(self) -> None:
        """Closes what nobody used for 30 minutes."""
        now_ns = self._clock.monotonic_ns()
        for holder, slot in list(self._slots.items()):
            line = slot.line
            if slot.opening.locked() or (line is not None and line.talk.busy):
                continue
            if line is None or now_ns - line.used_ns > IDLE_NS:
                del self._slots[holder]
                _shut(line)

    def shut(self) -> None:
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            _shut(slot.line)

    async def _ready(self, visit: Visit, told: str) -> _Line:
        slot = self._slots.setdefault(_holder(visit, told), _Slot())
        if not _fits(slot.line, visit):
            async with slot.opening:
                if not _fits(slot.line, visit):
                    _shut(slot.line)
                    slot.line = await self._open(visit, told)
        line = slot.line
        if line is None:
            raise UpstreamFailed("upstream_unreachable", ran=False)
        line.used_ns = self._clock.monotonic_ns()
        return line

    async def _open(self, visit: Visit, told: str) -> _Line:
        """1. the stream  2. where it says to post  3. the handshake. Raises UpstreamFailed."""
        if not visit.server.urls:
            raise UpstreamFailed("upstream_unreachable", ran=False)
        url = visit.server.urls[0]
        endpoint: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def post(message: bytes) -> None:
            status = await self._http.post(visit, endpoint.result(), message, CALL_S)
            if status >= 400:
                raise UpstreamFailed("upstream_protocol", ran=False, status=status)

        talk = Conversation(post, self._dropped, spawn=self._spawn)
        line = _Line(talk, visit.server, endpoint)
        line.reading = self._spawn("read event stream", lambda: self._read(visit, url, line))  # 1
        try:
            async with asyncio.timeout(CONNECT_S + PROBE_S):
                await asyncio.shield(endpoint)  # 2
            params = {
                "protocolVersion": NEWEST_LEGACY,
                "capabilities": messages.decode(told.encode()),
                "clientInfo": OURS,
            }
            hello = Request(method="initialize", params=params, timeout_s=3 * PROBE_S)
            line.facts = introduced(await line.talk.ask(hello), also=VERSION)  # 3
            await line.talk.tell({"method": "notifications/initialized"})
        except TimeoutError:
            _shut(line)
            raise UpstreamFailed("upstream_protocol", ran=False) from None
        except BaseException:
            _shut(line)
            raise
        return line

    async def _read(self, visit: Visit, url: str, line: _Line) -> None:
        parser = EventParser(MAX_ANSWER)

        def feed(chunk: bytes) -> bool:
            try:
                for data in parser.feed(chunk):
                    if parser.event_type == MESSAGE:
                        _message(line.talk, data)
                    elif parser.event_type == ENDPOINT and not line.endpoint.done():
                        _settle(line.endpoint, url, data)
            except EventTooLong:
                return True
            return False

        try:
            await self._http.read(visit, url, feed)
        except UpstreamFailed as failed:
            if not line.endpoint.done():
                line.endpoint.set_exception(failed)
        finally:
            line.talk.end()
            if not line.endpoint.done():
                line.endpoint.set_exception(UpstreamFailed("upstream_protocol", ran=False))
            line.endpoint.exception()  # looked at: nobody may wait for it any more


def _message(talk: Conversation, data: bytes) -> None:
    with contextlib.suppress(messages.Malformed):
        tree = messages.decode(data)
        for one in messages.split(tree):
            if type(one) is dict:
                talk.read(one, len(data))


def _settle(endpoint: asyncio.Future[str], url: str, data: bytes) -> None:
    """The address is on the stream's own origin, or it is none."""
    try:
        endpoint.set_result(_address(url, data))
    except ValueError:
        endpoint.set_exception(UpstreamFailed("upstream_protocol", ran=False))


def _address(url: str, data: bytes) -> str:
    """Raises ValueError."""
    target = urljoin(url, data[:MAX_ENDPOINT].decode().strip())
    own, given = urlsplit(url), urlsplit(target)
    if (own.scheme, own.netloc) != (given.scheme, given.netloc):
        raise ValueError("another origin")
    if not target.isascii() or not target.isprintable() or " " in target:
        raise ValueError("no address")
    return target


def _shut(line: _Line | None) -> None:
    if line is not None and line.reading is not None:
        line.reading.cancel()


def _fits(line: _Line | None, visit: Visit) -> bool:
    """A server whose entry changed is another server."""
    return line is not None and line.ready and line.server == visit.server


def _facts(line: _Line) -> Facts:
    if line.facts is None:
        raise UpstreamFailed("upstream_unreachable", ran=False)
    return line.facts


def _holder(visit: Visit, told: str) -> _Holder:
    return visit.caller.tenant, visit.caller.agent, visit.slug, told


def _told(session: Session | None) -> str:
    return session.id if session is not None and session.id else _NOTHING
