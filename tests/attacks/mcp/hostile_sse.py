"""The hostility of hostile.py over HTTP+SSE of 2024-11-05: answers come on the one stream that an
agent has, between whatever else is said there.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import httptools
import orjson

from tests.attacks.mcp.hostile_child import Child
from tests.fakes.witness import event

_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"


class _Desk:
    def __init__(self, seed: int) -> None:
        self.child = Child("legacy", f"sse:{seed}")
        self.rng = random.Random(f"sse:{seed}")
        self.numbers = itertools.count()
        self.streams: dict[bytes, _Connection] = {}


@asynccontextmanager
async def speaking(seed: int) -> AsyncIterator[str]:
    """Gives the URL of its stream."""
    loop, desk = asyncio.get_running_loop(), _Desk(seed)
    server = await loop.create_server(lambda: _Connection(desk), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/sse"
    finally:
        server.close()


class _Connection(asyncio.Protocol):
    def __init__(self, desk: _Desk) -> None:
        self._desk = desk
        self._url = self._body = b""
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"GET":
            place = b"/messages/%d" % next(self._desk.numbers)
            self._desk.streams[place] = self
            self._transport.write(_STREAM)
            self.say(b"event: endpoint\ndata: %s\n\n" % place)
            return
        self._transport.write(_ACCEPTED)
        stream = self._desk.streams[self._url]
        for line in self._desk.child.lines(orjson.loads(self._body)):
            stream.say(event(self._desk.rng, line))

    def say(self, content: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"%x\r\n%s\r\n" % (len(content), content))
