"""One kept HTTP/1.1 connection to a tool server: a request at a time, bytes in, bytes out.

Decides the limits of one exchange (mcp.md 11): how long it may be silent, how much it may say, what
a compressed byte may become. No redirects, no cookies. Which connection is taken is wire.py's
choice, what the bytes mean is its users' business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import httptools

from services.proxy.backends.inflating import Inflater, NotInflated
from services.proxy.backends.upstream import MAX_ANSWER, SILENCE_S, UpstreamFailed

LINGER_S: Final = 1.0
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 256
EVENTS: Final = "text/event-stream"

#: Looks at an event stream's chunks as they come; True ends the exchange with what it has.
Tap = Callable[[bytes], bool]


@dataclass(slots=True)
class Response:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    #: Empty for an event stream, whose events went to the tap.
    body: bytearray = field(default_factory=bytearray)
    #: Its body is in an encoding that nobody asked for or can read.
    unreadable: bool = False
    #: Its body is an event stream.
    streams: bool = False


class Owner(Protocol):
    """Whose connection it is."""

    def free(self, connection: Connection) -> None:
        """Its exchange is over, and it can have another."""

    def lost(self, connection: Connection) -> None:
        """It is no connection any more."""


class Connection(asyncio.Protocol):
    """`usable` until either side closed it."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.usable = True

    # --- the owner's side -----------------------------------------------------------------------

    def ask(
        self, head: bytes, body: bytes, timeout_s: float, first_byte_s: float, tap: Tap | None
    ) -> asyncio.Future[Response]:
        """Sends and answers a future. It ends with the response or UpstreamFailed; of an event
        stream that breaks off, with what came.
        """
        self._parser = httptools.HttpResponseParser(self)
        self._response = Response()
        self._tap = tap
        self._inflater: Inflater | None = None
        self._complete = self._counted = self._kept = self._streams = False
        self._no_body_bytes = self._header_count = 0
        self._started = self._heard = self._loop.time()
        self._timeout_s = timeout_s
        self._waiter = self._loop.create_future()
        self._timer = self._loop.call_later(min(first_byte_s, timeout_s), self._on_timer)
        if self._transport is None:
            raise UpstreamFailed("upstream_unreachable", ran=False)
        self._transport.write(head + body)
        return self._waiter

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        self._waiter = None
        self.close()

    def close(self) -> None:
        self.usable = False
        self._stop_timer()
        if self._transport is not None:
            self._transport.close()

    # --- asyncio's side -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are not subclasses

    def data_received(self, data: bytes) -> None:
        if self._waiter is None and not self._lingering():
            self.close()  # bytes that nobody asked for
            return
        self._heard = self._loop.time()
        self._no_body_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("upstream_protocol")
            return
        if self._no_body_bytes > MAX_HEADER_BYTES:  # headers, or trailers, without an end
            self._fail("upstream_protocol")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self.usable = False
        self._owner.lost(self)
        if self._waiter is not None:
            ends_with_connection = self._streams or not self._counted
            if self._response.status and ends_with_connection and not self._complete:
                self.on_message_complete()
            else:
                self._fail("upstream_protocol")
        self._forget()
        self._parser = httptools.HttpResponseParser(None)  # it and we would keep one another

    # --- llhttp's side --------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        if self._header_count > MAX_HEADERS:
            self._fail("upstream_protocol")
            return
        if self._response.status:
            return  # a trailer says nothing about what it follows
        key = name.decode("latin-1").lower()
        self._counted |= key in {"content-length", "transfer-encoding"}
        self._response.headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        response = self._response
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            response.headers.clear()
            return
        response.status = status
        self._counted |= status in {204, 304}
        self._kept = self._parser.should_keep_alive() and self._counted
        content_type = response.headers.get("content-type", "")
        if content_type[:17].lower() == EVENTS and 200 <= status < 300:
            response.streams = content_type.partition(";")[0].strip().lower() == EVENTS
            self._streams = response.streams and self._tap is not None
        encoding = response.headers.get("content-encoding")
        if encoding is not None and encoding.lower() != "identity":
            try:
                self._inflater = Inflater(encoding)
            except NotInflated:
                response.unreadable = True

    def on_body(self, body: bytes) -> None:
        self._no_body_bytes = 0
        if self._response.unreadable:
            return
        if self._inflater is None:
            self._take(body)
            return
        try:
            for piece in self._inflater.feed(body):
                self._take(piece)
        except NotInflated:
            self._fail("upstream_protocol")

    def on_message_complete(self) -> None:
        if self._response.status == 0:
            return  # an interim response
        if self._complete:
            self.close()  # a second answer: it was given back already, and must not be twice
            return
        self._complete = True
        self._answer()
        if self._kept and self.usable:
            self._stop_timer()
            self._forget()
            self._owner.free(self)
        else:
            self.close()

    # --- ends -----------------------------------------------------------------------------------

    def _take(self, body: bytes) -> None:
        if self._streams:
            if self._tap is not None and self._tap(body):
                self._answer()
            return
        if self._waiter is None:
            return
        self._response.body += body
        if len(self._response.body) > MAX_ANSWER:
            self._fail("upstream_protocol" if self._inflater else "inbound_blocked")

    def _answer(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(self._response)
            if not self._complete:  # the rest of an event stream may still come
                self._stop_timer()
                self._timer = self._loop.call_later(LINGER_S, self.close)

    def _forget(self) -> None:
        """What was asked and answered: a kept connection does not keep it."""
        self._tap = None
        self._response = Response()  # a server that says more than it was asked writes into it

    def _lingering(self) -> bool:
        return self._timer is not None and not self._complete

    def _fail(self, reason: str) -> None:
        waiter, self._waiter = self._waiter, None
        self.close()
        if waiter is not None and not waiter.done():
            status = self._response.status or None
            waiter.set_exception(UpstreamFailed(reason, ran=None, status=status))

    def _on_timer(self) -> None:
        now = self._loop.time()
        until = self._started + self._timeout_s
        if self._response.status:
            until = min(until, self._heard + SILENCE_S)
            if until > now:
                self._timer = self._loop.call_at(until, self._on_timer)
                return
        self._fail("upstream_timeout")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
