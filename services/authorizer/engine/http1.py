"""A small HTTP/1.1 client for one peer: kept-alive connections, one request at a time on each.

Made for the call path to OPA: a general client costs more CPU per request than OPA's own work.
Knows nothing of policies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

MAX_RESPONSE_BYTES: Final = 32 << 20
MAX_IDLE: Final = 16
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class ConnectionFailed(Exception):
    """The peer could not be reached, or went away before it answered."""


class ConnectionRefused(ConnectionFailed):
    """Nobody listens there."""


class ResponseInvalid(Exception):
    """What came back is not an HTTP response that we take."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Address:
    """`unix:/path` or `http://host:port` on this machine."""

    host: str = "localhost"
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        if url.startswith("unix:"):
            return cls(path=url.removeprefix("unix:").replace("//", "", 1))
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in {"", "/"}:
            raise ValueError("an address is unix:/path or http://host:port")
        if parts.hostname not in LOOPBACK:
            raise ValueError("policy input leaves this machine over mTLS only: use loopback")
        return cls(host=parts.hostname, port=parts.port or 80)


class HttpClient:
    """A pool of connections to one address."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[_Connection] = []
        self._closed = False

    async def post(self, target: str, body: bytes, *, deadline: float) -> Response:
        return await self._request("POST", target, body, deadline)

    async def get(self, target: str, *, deadline: float) -> Response:
        return await self._request("GET", target, b"", deadline)

    def close(self) -> None:
        self._closed = True
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def _request(self, method: str, target: str, body: bytes, deadline: float) -> Response:
        """Raises TimeoutError at the deadline, ConnectionFailed, ResponseInvalid. What is not
        finished takes its connection with it: the peer stops working on it.
        """
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: opa\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        async with asyncio.timeout_at(deadline):
            connection = self._idle.pop() if self._idle else await self._connect()
            finished = False
            try:
                response = await connection.exchange(head.encode() + body)
                finished = True
            finally:
                if not finished:
                    connection.abort()
        if connection.reusable and not self._closed and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.abort()
        return response

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            if self._address.path:
                _, made = await loop.create_unix_connection(
                    lambda: _Connection(self._forget), self._address.path
                )
            else:
                _, made = await loop.create_connection(
                    lambda: _Connection(self._forget), self._address.host, self._address.port
                )
        except (ConnectionRefusedError, FileNotFoundError) as refused:
            raise ConnectionRefused from refused
        except OSError as failed:
            raise ConnectionFailed from failed
        return made

    def _forget(self, connection: _Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)


class _Connection(asyncio.Protocol):
    """One request at a time; httptools calls the `on_...` methods."""

    def __init__(self, forget: Callable[[_Connection], None]) -> None:
        self.reusable = False
        self._forget = forget
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._answer: asyncio.Future[Response] | None = None

    async def exchange(self, request: bytes) -> Response:
        if self._transport is None or self._transport.is_closing():
            raise ConnectionFailed
        self._parser = httptools.HttpResponseParser(self)
        self._parts, self._size = [], 0
        self.reusable = False
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._answer is None or self._answer.done():
            self.abort()  # nothing was asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(ResponseInvalid())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self.reusable = False
        self._fail(ConnectionFailed())
        self._forget(self)

    # httptools.HttpResponseParser

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_RESPONSE_BYTES:
            self._fail(ResponseInvalid())
            return
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._parser is None or self._answer is None or self._answer.done():
            return
        self.reusable = self._parser.should_keep_alive()
        self._answer.set_result(Response(self._parser.get_status_code(), b"".join(self._parts)))

    def _fail(self, failure: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(failure)
        if self._transport is not None:
            self._transport.abort()
