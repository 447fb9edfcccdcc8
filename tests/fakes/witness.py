"""A tool server in the test's own process that keeps every call it was sent, byte for byte.

It speaks one era, and answers a call with the number under which it keeps it: as JSON, or as an
event stream cut anywhere, with other things said before. What it should have been sent is for the
test to know.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, cast

import httptools
import orjson

from tests.fakes import mcp_wire as wire

TEXT: Final = {"type": "string"}
TOOLS: Final = tuple(
    wire.tool(name, f"Will {name}.", {"call": TEXT})
    for name in ("read_note", "write_note", "drop_notes")
)
#: What is answered to other methods than calls, and where their numbers begin.
ANSWERS: Final[dict[str, dict[str, Any]]] = {
    "prompts/list": {"prompts": [{"name": "p", "arguments": [{"name": "a"}]}]},
    "prompts/get": {"messages": [{"role": "user", "content": {"type": "text", "text": "t"}}]},
    "resources/list": {"resources": [{"uri": "file:///a", "name": "a"}], "nextCursor": "c"},
    "resources/templates/list": {
        "resourceTemplates": [{"uriTemplate": "file:///{a}", "name": "t"}]
    },
    "resources/read": {"contents": [{"uri": "file:///a", "text": "t"}]},
    "resources/subscribe": {},
    "resources/unsubscribe": {},
    "completion/complete": {"completion": {"values": ["x"], "total": 1, "hasMore": False}},
    "logging/setLevel": {},
    "tasks/get": {"taskId": "t", "status": "completed", "result": wire.content("done")},
    "tasks/update": {},
    "tasks/cancel": {},
}
OTHERS: Final = 10_000_000
CAPABILITIES: Final = {
    "tools": {"listChanged": True}, "prompts": {"listChanged": True}, "completions": {},
    "resources": {"listChanged": True, "subscribe": True}, "logging": {},
    "extensions": {"io.modelcontextprotocol/tasks": {}},
}  # fmt: skip
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n"

#: What is sent instead of the answer to a call, by its number and its bytes: pieces of HTTP, and
#: whether the connection ends with them; None for the answer as it is.
Hostility = Callable[[int, bytes], tuple[list[bytes], bool] | None]


class Witness:
    """`calls` of all servers that it stands behind; `others` counts what else they were asked."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.calls: list[bytes] = []
        self.others: Counter[str] = Counter()
        self.hostility: Hostility = lambda _number, _answer: None
        #: What is said to who listens beside any call, by the number of the stream; else nothing
        #: is to be heard here.
        self.stream: Callable[[int], tuple[list[bytes], bool]] | None = None
        self.streams = 0

    def answer(self, body: bytes, era: str) -> tuple[bytes | None, int | None]:
        """The answer, or None for what has none; and a number, if it may come as events or be a
        hostile one.
        """
        message = orjson.loads(body)
        method = message.get("method", "")
        if method == "tools/call":
            self.calls.append(body)
            number = len(self.calls) - 1
            return orjson.dumps(wire.result(message, wire.content(f"#{number}"))), number
        self.others[method] += 1
        if "id" not in message or "method" not in message:
            return None, None
        if method in ANSWERS:
            number = OTHERS + sum(self.others.values())
            return orjson.dumps(wire.result(message, ANSWERS[method])), number
        return orjson.dumps(lifecycle(message, method, era)), None


def lifecycle(message: dict[str, Any], method: str, era: str) -> dict[str, Any]:
    if method == "tools/list":
        return wire.listed(message, TOOLS, ttl_ms=300_000)
    if method == "server/discover" and era == "modern":
        found = wire.discovered(message, "witness")
        return {**found, "result": {**found["result"], "capabilities": CAPABILITIES}}
    if method == "initialize" and era == "legacy":
        found = wire.initialized(message, "witness")
        return {**found, "result": {**found["result"], "capabilities": CAPABILITIES}}
    return wire.error(message, wire.METHOD_NOT_FOUND, "unknown method")


@asynccontextmanager
async def witnessing(witness: Witness, era: Literal["modern", "legacy"]) -> AsyncIterator[str]:
    """Serves on a port of its own; gives the URL."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(witness, era), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
    finally:
        server.close()


class _Connection(asyncio.Protocol):
    def __init__(self, witness: Witness, era: str) -> None:
        self._witness = witness
        self._era = era
        self._body = bytearray()
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        witness, posted = self._witness, self._parser.get_method() == b"POST"
        listens = self._body.find(b'"subscriptions/listen"') >= 0 if posted else True
        if listens and witness.stream is not None:
            witness.streams += 1
            self._say(*witness.stream(witness.streams))
            return
        if not posted:
            self._transport.write(b"HTTP/1.1 405 No\r\ncontent-length: 0\r\n\r\n")
            return
        answer, number = witness.answer(bytes(self._body), self._era)
        if answer is None:
            self._transport.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
            return
        rng = random.Random(f"{witness.seed}:{number}")
        hostile = witness.hostility(number, answer) if number is not None else None
        if hostile is not None:
            self._say(*hostile)
        elif number is not None and rng.random() < 0.5:
            pieces = cut(rng, events(rng, answer))
            chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece]
            head = HEAD % (b"text/event-stream", b"transfer-encoding: chunked\r\n")
            self._say([head, *chunks, b"0\r\n\r\n"], closing=False)
        else:
            length = b"content-length: %d\r\n" % len(answer)
            self._transport.write(HEAD % (b"application/json", length) + answer)

    def _say(self, pieces: list[bytes], closing: bool) -> None:  # of a pair
        """Each in a turn of the loop of its own."""
        if self._transport.is_closing():
            return
        self._transport.write(pieces[0])
        if len(pieces) > 1:
            self._loop.call_soon(self._say, pieces[1:], closing)
        elif closing:
            self._transport.close()


def cut(rng: random.Random, content: bytes) -> list[bytes]:
    """In up to six pieces, some of them empty."""
    cuts = sorted(rng.randrange(len(content) + 1) for _ in range(rng.randrange(6)))
    return [content[at:end] for at, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]


def events(rng: random.Random, answer: bytes) -> bytes:
    """An event stream that ends with this answer; line ends, comments and fields as it comes."""
    begin = rng.choice((b"", b"\xef\xbb\xbf"))
    before = (rng.choice((_comment, _nothing, _note, _foreign)) for _ in range(rng.randrange(4)))
    return b"".join((begin, *(one(rng) for one in before), event(rng, answer)))


def _comment(rng: random.Random) -> bytes:
    return b": still here" + _end(rng) * rng.choice((1, 2))


def _nothing(rng: random.Random) -> bytes:
    return rng.choice((b"id: 7", b"data:", b"data", b"retry: 5", b"event: x")) + _end(rng) * 2


def _note(rng: random.Random) -> bytes:
    params = {"level": "info", "data": "\u00e9"}
    note = {"jsonrpc": "2.0", "method": "notifications/message", "params": params}
    return event(rng, orjson.dumps(note))


def _foreign(rng: random.Random) -> bytes:
    """An answer to somebody else."""
    other = {"jsonrpc": "2.0", "id": rng.choice((0, "x", 10**9)), "result": wire.content("#0")}
    return event(rng, orjson.dumps(other))


def event(rng: random.Random, content: bytes) -> bytes:
    """Over several lines where JSON has room for a line end."""
    end = _end(rng)
    fields = [rng.choice((b"", b"event: message" + end, b"id: 1" + end))]
    lines = content.replace(b",", b",\n").split(b"\n") if rng.random() < 0.3 else [content]
    fields += [b"data:" + rng.choice((b"", b" ")) + line + end for line in lines]
    return b"".join([*fields, end])


def _end(rng: random.Random) -> bytes:
    return rng.choice((b"\n", b"\r\n", b"\r"))
