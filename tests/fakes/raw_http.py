"""HTTP/1.1 byte by byte: what no client library would send, and thousands of requests a second.

One kept connection, one request at a time. It judges nothing; an answer is what came.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from tests.fakes.neighbour import unseen

ANSWER_S = 30.0


@dataclass(slots=True)
class Reply:
    """`closed`: the other side ended the connection, perhaps before it had answered (status 0)."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    closed: bool = False


class RawHttp(asyncio.Protocol):
    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._reply = Reply()
        self._waiter: asyncio.Future[Reply] | None = None
        self._hear: Callable[[bytes], None] | None = None
        self.closed = False

    async def ask(
        self,
        sent: bytes,
        *,
        timeout_s: float = ANSWER_S,
        hear: Callable[[bytes], None] | None = None,
    ) -> Reply:
        """The answer to these bytes; `hear` gets its body piece by piece as well. Raises
        TimeoutError: nothing may hang.
        """
        self._hear = hear
        self._reply = Reply()
        self._parser = httptools.HttpResponseParser(self)
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(sent)
        async with asyncio.timeout(timeout_s):
            reply = await self._waiter
        unseen(reply.body, reply.headers)
        return reply

    def send(self, sent: bytes) -> None:
        """No answer is waited for."""
        self._transport.write(sent)

    def close(self) -> None:
        self._transport.close()

    # --- asyncio's and llhttp's side ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # asyncio's signature
        self.closed = True
        self._end(closed=True)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_status(self, status: bytes) -> None:
        pass

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reply.headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._reply.body += body
        if self._hear is not None:
            self._hear(body)

    def on_message_complete(self) -> None:
        self._end(closed=False)

    def _end(self, *, closed: bool) -> None:
        self._reply.closed = closed
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            status = 0 if closed and not self._reply.headers else self._parser.get_status_code()
            self._reply.status = status
            waiter.set_result(self._reply)


@asynccontextmanager
async def connected(url: str, *, source: str = "127.0.0.1") -> AsyncIterator[RawHttp]:
    """To the host and port of this URL; from any address of this machine."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        RawHttp, parts.hostname or "", parts.port or 80, local_addr=(source, 0)
    )
    try:
        yield connection
    finally:
        connection.close()


def request(
    url: str, headers: Iterable[tuple[str, str]], body: bytes | None = None, *, verb: str = "POST"
) -> bytes:
    """Headers exactly as given, in their order; with a body also its length."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    lines = [f"{verb} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
