"""HTTP requests to tool servers, each within its limits and under the server's credential.

Decides what happens to one request until it has its answer: a token renewed after a 401 (mcp.md
10.2), a legacy stream taken up where it broke off (SEP-1699), a server told that its request was
given up. What each failure says of an address goes to its circuit. Which address, which dialect and
which session a request has is streamable.py's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from services.common.clock import Clock
from services.common.sse import RETRY_MS
from services.common.telemetry.counters import Counters
from services.proxy import messages
from services.proxy.backends import host_wire
from services.proxy.backends.circuit import is_away
from services.proxy.backends.connection import Response, Tap
from services.proxy.backends.conversation import with_progress
from services.proxy.backends.credentials import Credentials, Header
from services.proxy.backends.exchange import Exchange
from services.proxy.backends.sites import Door, Site
from services.proxy.backends.upstream import (
    CALL_S,
    MAX_ANSWERING,
    PAUSED,
    PROBE_S,
    Hear,
    Heard,
    Reply,
    Request,
    Session,
    SessionGone,
    UpstreamFailed,
)
from services.proxy.calls import Visit

_LONGEST_S: Final = RETRY_MS[1] / 1000


@dataclass(slots=True, eq=False)
class Way:
    """How a message gets to a server: `lines` are the headers of its dialect and session."""

    visit: Visit
    site: Site
    door: Door
    lines: bytes = b""
    session: Session | None = None
    modern: bool = False
    #: Whether the server was met in this dialect; else it is being asked.
    settled: bool = True

    @property
    def in_session(self) -> bool:
        return self.session is not None and bool(self.session.id)


class Sender:
    def __init__(
        self,
        *,
        credentials: Credentials,
        clock: Clock,
        counters: Counters,
        spawn: Callable[[str, Callable[[], Any]], Any],
    ) -> None:
        self._credentials = credentials
        self._clock = clock
        self._dropped = counters.counter("proxy.upstream.dropped")
        self._spawn = spawn
        self._next_id = 0

    async def ask(
        self, way: Way, request: Request, hear: Hear | None = None
    ) -> tuple[Reply, Response]:
        """1. the request  2. its answer, on this stream or one that goes on with it  3. what that
        says of the address and of the era. Cancelled or out of time: a legacy server is told.
        Raises UpstreamFailed.
        """
        number = self._number()
        params = request.params
        if request.progress is not None and hear is not None:
            params = with_progress(params, number)
        body = messages.encode(
            {"jsonrpc": "2.0", "id": number, "method": request.method, "params": params}
        )
        exchange = Exchange(
            number,
            self._dropped,
            partial(self._respond, way),
            hear=hear,
            asks=not way.modern,
            progress=request.progress,
        )
        timeout_s = min(request.timeout_s, CALL_S)
        until = asyncio.get_running_loop().time() + timeout_s
        try:
            head = way.door.post + way.lines
            response = await self.request(way, head, body, timeout_s, exchange.feed)  # 1
            if response.streams and exchange.answer is None and not way.modern:
                response = await self._resumed(way, exchange, response, until, hear)  # 2
            reply = exchange.reply(response, modern=way.modern, in_session=way.in_session)  # 3
        except asyncio.CancelledError:
            self._give_up(way, number)
            raise
        except UpstreamFailed as failure:
            self._failed(way, exchange, failure)
            if failure.reason == "upstream_timeout":
                self._give_up(way, number)
            raise
        way.door.circuit.succeeded()
        way.door.seen_ns = max(way.door.seen_ns, way.site.used_ns)  # looked after without use
        if exchange.era_shaped and way.settled:
            way.site.doubt(self._clock.monotonic_ns())
            raise UpstreamFailed("upstream_protocol", ran=False, status=reply.status)
        return reply, response

    async def tell(self, way: Way, message: Mapping[str, Any]) -> None:
        """Until it is accepted. Raises UpstreamFailed."""
        body = messages.encode({"jsonrpc": "2.0", **message})
        response = await self.request(way, way.door.post + way.lines, body, PROBE_S, None)
        if response.status == 404 and way.in_session:
            raise SessionGone
        if response.status in {401, 403}:
            raise UpstreamFailed("upstream_auth", ran=False, status=response.status)
        if response.status >= 300:
            raise UpstreamFailed("upstream_protocol", ran=False, status=response.status)

    async def subscribe(self, way: Way, method: str, params: dict[str, Any], hear: Hear) -> None:
        """A request whose answer is the end of its stream. Raises UpstreamFailed."""
        number = self._number()
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        body = messages.encode(message)
        head = way.door.post + way.lines
        exchange = self._listener(way, hear, number)
        response = await self._listen(way, head, body, exchange)
        if response is None or (response.streams and exchange.answer is None):
            return
        if exchange.reply(response, modern=way.modern).error is not None:
            raise UpstreamFailed("upstream_protocol", ran=False, status=405)

    async def follow(self, way: Way, last_event_id: str, hear: Hear) -> None:
        """The stream of a legacy session, until the server ends it. Raises UpstreamFailed."""
        exchange = self._listener(way, hear, None)
        head = way.door.get + way.lines + _after(last_event_id)
        response = await self._listen(way, head, b"", exchange)
        if response is None or response.streams:
            return
        exchange.reply(response, modern=False, in_session=way.in_session)
        raise UpstreamFailed("upstream_protocol", ran=False, status=response.status)

    async def end(self, way: Way) -> None:
        """The session is over; never raises."""
        with contextlib.suppress(UpstreamFailed):
            await self.request(way, way.door.delete + way.lines, b"", PROBE_S, None)

    async def request(
        self, way: Way, head: bytes, body: bytes, timeout_s: float, tap: Tap | None
    ) -> Response:
        """One HTTP request, under the server's credential: a token that is refused is renewed once.
        Without an end where the time has none. Raises UpstreamFailed.
        """
        visit, origin = way.visit, way.door.origin
        send = origin.listen if math.isinf(timeout_s) else origin.request
        first_byte_s = visit.server.first_byte_s
        proof = None
        if visit.server.credential.kind != "none":
            proof = await self._credentials.header(visit)
        response = await send(_headed(head, proof, body), body, timeout_s, first_byte_s, tap)
        if way.door.hosted:
            host_wire.check(response.headers)
        if response.status != 401 or not self._credentials.forget(visit, proof):
            return response
        again = _headed(head, await self._credentials.header(visit), body)
        return await send(again, body, timeout_s, first_byte_s, tap)

    # --- one request ----------------------------------------------------------------------------

    async def _listen(
        self, way: Way, head: bytes, body: bytes, exchange: Exchange
    ) -> Response | None:
        """None where the stream was silent for too long, which is no failure of anybody's."""
        try:
            return await self.request(way, head, body, math.inf, exchange.feed)
        except UpstreamFailed as failure:
            if failure.reason == "upstream_timeout" and failure.status == 200:
                return None
            self._failed(way, exchange, failure)
            raise

    # --- an answer's further way ----------------------------------------------------------------

    async def _resumed(
        self,
        way: Way,
        exchange: Exchange,
        response: Response,
        until: float,
        hear: Hear | None,
    ) -> Response:
        """The stream that broke off without an answer, taken up after its last event as often as it
        takes: the last response.
        """
        loop = asyncio.get_running_loop()
        wait_s = 0.0
        while exchange.event_id:
            wait_s = min(max(2 * wait_s, exchange.retry_s), _LONGEST_S)
            if loop.time() + wait_s >= until:
                raise UpstreamFailed("upstream_timeout", ran=None)
            if hear is not None:
                hear(Heard(method=PAUSED, params={"retryMs": int(wait_s * 1000)}))
            await asyncio.sleep(wait_s)
            events = exchange.events
            head = way.door.get + way.lines + _after(exchange.event_id)
            exchange.again()
            try:
                response = await self.request(way, head, b"", until - loop.time(), exchange.feed)
            except UpstreamFailed as failure:
                if failure.reason != "upstream_unreachable":
                    raise
                continue  # it may come back
            if not response.streams and response.status < 500:
                raise UpstreamFailed("upstream_protocol", ran=None, status=response.status)
            if exchange.events > events:
                wait_s = 0.0
        return response

    def _failed(self, way: Way, exchange: Exchange, failure: UpstreamFailed) -> None:
        if is_away(failure):
            if not way.door.hosted:  # its children come and go one by one, and the host is near
                way.door.circuit.failed(self._clock.monotonic_ns())
        elif failure.status is not None:
            way.door.circuit.succeeded()
        if exchange.era_shaped and way.settled:
            way.site.doubt(self._clock.monotonic_ns())

    def _give_up(self, way: Way, number: int) -> None:
        """A modern server sees that its stream is closed."""
        if not way.modern:
            note = {"method": "notifications/cancelled", "params": {"requestId": number}}
            self._spawn("cancel request", partial(self._tell_quietly, way, note))

    def _respond(self, way: Way, message: Mapping[str, Any]) -> None:
        """What the server asked and no agent is asked for; the stream that it asked on goes on. A
        server that asks faster than it takes answers has to do without.
        """
        if way.door.answering >= MAX_ANSWERING:
            self._dropped.value += 1
            return
        way.door.answering += 1
        self._spawn("answer tool server", partial(self._answer, way, message))

    async def _answer(self, way: Way, message: Mapping[str, Any]) -> None:
        try:
            await self._tell_quietly(way, message)
        finally:
            way.door.answering -= 1

    async def _tell_quietly(self, way: Way, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(UpstreamFailed):
            await self.tell(way, message)

    def _listener(self, way: Way, hear: Hear, number: int | None) -> Exchange:
        respond = partial(self._respond, way)
        return Exchange(number, self._dropped, respond, hear=hear, asks=not way.modern)

    def _number(self) -> int:
        self._next_id += 1
        return self._next_id


def _headed(head: bytes, proof: Header | None, body: bytes) -> bytes:
    if proof is None:
        return b"%scontent-length: %d\r\n\r\n" % (head, len(body))
    return b"%s%s: %s\r\ncontent-length: %d\r\n\r\n" % (head, *proof, len(body))


def _after(event_id: str) -> bytes:
    return b"last-event-id: %s\r\n" % event_id.encode() if event_id else b""
