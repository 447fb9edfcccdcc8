"""HTTP/1.1 to tool servers over kept connections: one request at a time each, bytes in, bytes out.

Decides limits and times (mcp.md 11) and which addresses may be reached. No redirects, no cookies,
no compression. A library's client costs as much per call as the rest of the proxy; this does the
little that is needed, with llhttp for the parsing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import httptools

from services.common.telemetry.counters import Counters
from services.proxy.backends.upstream import (
    CONNECT_S,
    FIRST_BYTE_S,
    MAX_ANSWER,
    SILENCE_S,
    UpstreamFailed,
)

PER_SERVER: Final = 100
WAIT_S: Final = 1.0
#: Below the 5 s after which common servers drop an idle connection.
IDLE_S: Final = 4.0
LINGER_S: Final = 1.0
MAX_HEADER_BYTES: Final = 64 * 1024
METADATA_ADDRESSES: Final = frozenset({"169.254.169.254", "fd00:ec2::254", "100.100.100.200"})

#: Looks at the body's chunks as they come; True ends the exchange early with what it has.
Tap = Callable[[bytes], bool]


@dataclass(slots=True)
class Response:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Connection(asyncio.Protocol):
    """A kept connection. `usable` until either side closed it."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.usable = True

    # --- the owner's side -----------------------------------------------------------------------

    def ask(
        self, head: bytes, body: bytes, timeout_s: float, tap: Tap | None
    ) -> asyncio.Future[Response]:
        """Sends and answers a future. It ends with the response or UpstreamFailed."""
        self._parser = httptools.HttpResponseParser(self)
        self._response = Response()
        self._tap = tap
        self._complete = self._counted = self._kept = False
        self._header_bytes = 0
        self._started = self._heard = self._loop.time()
        self._timeout_s = timeout_s
        self._waiter = self._loop.create_future()
        self._timer = self._loop.call_later(min(FIRST_BYTE_S, timeout_s), self._on_timer)
        if self._transport is None:
            raise UpstreamFailed("upstream_unreachable", ran=False)
        self._transport.write(head + body)
        return self._waiter

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        self._waiter = None
        self._close()

    # --- asyncio's side -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are not subclasses

    def data_received(self, data: bytes) -> None:
        if self._waiter is None and not self._lingering():
            self._close()  # bytes that nobody asked for
            return
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("upstream_protocol")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self.usable = False
        self._origin.lost(self)
        if self._waiter is None:
            return
        if self._response.status and not self._counted and not self._complete:
            self.on_message_complete()  # a body that ends with its connection
        else:
            self._fail("upstream_protocol")

    # --- llhttp's side --------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            self._fail("upstream_protocol")
            return
        key = name.decode("latin-1").lower()
        self._counted |= key in {"content-length", "transfer-encoding"}
        self._response.headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._response.headers.clear()
            return
        self._response.status = status
        self._counted |= status in {204, 304}
        self._kept = self._parser.should_keep_alive() and self._counted

    def on_body(self, body: bytes) -> None:
        if self._waiter is None:
            return
        response = self._response
        if self._tap is not None and response.content_type == "text/event-stream":
            if self._tap(body):
                self._answer()
            return
        response.body += body
        if len(response.body) > MAX_ANSWER:
            self._fail("inbound_blocked")

    def on_message_complete(self) -> None:
        if self._response.status == 0:
            return  # an interim response
        self._complete = True
        self._answer()
        if self._kept and self.usable:
            self._stop_timer()
            self._origin.free(self)
        else:
            self._close()

    # --- ends -----------------------------------------------------------------------------------

    def _answer(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(self._response)
            if not self._complete:  # the rest of an event stream may still come
                self._stop_timer()
                self._timer = self._loop.call_later(LINGER_S, self._close)

    def _lingering(self) -> bool:
        return self._timer is not None and not self._complete

    def _fail(self, reason: str) -> None:
        waiter, self._waiter = self._waiter, None
        self._close()
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

    def _close(self) -> None:
        self.usable = False
        self._stop_timer()
        if self._transport is not None:
            self._transport.close()


class Origin:
    """The connections to one scheme, host and port."""

    def __init__(self, url: str, counters: Counters, tls: ssl.SSLContext) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = tls if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._idle: list[tuple[Connection, float]] = []
        self._open: set[Connection] = set()
        self._connecting = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._opened = counters.counter("proxy.upstream.connections")
        self._requests = counters.counter("proxy.upstream.requests")

    async def request(
        self, head: bytes, body: bytes, *, timeout_s: float, tap: Tap | None = None
    ) -> Response:
        """Raises UpstreamFailed: with `ran=False` only if no byte went out."""
        connection = await self._connection()
        self._requests.value += 1
        waiter = connection.ask(head, body, timeout_s, tap)
        try:
            return await waiter
        except asyncio.CancelledError:
            connection.abandon()
            raise

    def free(self, connection: Connection) -> None:
        self._idle.append((connection, asyncio.get_running_loop().time()))
        self._wake()

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle = [one for one in self._idle if one[0] is not connection]
        self._wake()

    def close(self) -> None:
        for connection in list(self._open):
            connection.abandon()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT_S
        while True:
            while self._idle:
                connection, since = self._idle.pop()
                if connection.usable and loop.time() - since < IDLE_S:
                    return connection
                connection.abandon()
            if len(self._open) + self._connecting < PER_SERVER:
                return await self._connect()
            waiter = loop.create_future()
            self._waiting.append(waiter)
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter
            except TimeoutError:
                raise UpstreamFailed("capacity", ran=False) from None

    async def _connect(self) -> Connection:
        self._connecting += 1
        try:
            async with asyncio.timeout(CONNECT_S):
                addresses = await self._resolve()
                if not addresses or any(_forbidden(address) for address in addresses):
                    raise UpstreamFailed("upstream_unreachable", ran=False)
                _, connection = await self._dial(addresses)
        except (OSError, TimeoutError):
            raise UpstreamFailed("upstream_unreachable", ran=False) from None
        finally:
            self._connecting -= 1
        self._opened.value += 1
        self._open.add(connection)
        return connection

    async def _resolve(self) -> list[str]:
        try:
            return [str(ipaddress.ip_address(self._host))]
        except ValueError:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            return [str(one[4][0]) for one in found]

    async def _dial(self, addresses: list[str]) -> tuple[asyncio.BaseTransport, Connection]:
        """The addresses that were checked, in turn: the name is not resolved a second time."""
        loop = asyncio.get_running_loop()
        failure: OSError = OSError()
        for address in addresses[:4]:
            try:
                return await loop.create_connection(
                    lambda: Connection(self),
                    address,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
            except OSError as refused:
                failure = refused
        raise failure


def _forbidden(address: str) -> bool:
    """Link-local and cloud metadata addresses are no tool servers."""
    number = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped:
        number = number.ipv4_mapped
    return number.is_link_local or number.is_multicast or str(number) in METADATA_ADDRESSES


def tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
