"""Tool servers over HTTP+SSE that do not do what they should (mcp.md 2.2): where messages are
posted is decided here, and a stream that ends ends its calls.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.proxy.backends import legacy_sse
from services.proxy.backends.upstream import MAX_ANSWERING
from tests.fakes import mcp_wire as wire
from tests.fakes.authorizer import server_entry
from tests.fakes.gateway import Gateway, gateway, until


class SseServer:
    """One that a test bends: what its stream says first, and how it takes what is posted."""

    def __init__(self) -> None:
        self.endpoint = "/post?s=1"
        #: Before the answer of a call: sent as they are, `%d` being the call's id.
        self.before: list[bytes] = []
        self.hangs_up = False
        #: What is posted as an answer is not accepted before this.
        self.accepts = asyncio.Event()
        self.accepts.set()
        self.status = 202
        self.posted: list[dict[str, Any]] = []
        self.streams = 0
        self._out: asyncio.StreamWriter | None = None
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self.accepts.set()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(
            *(writer.wait_closed() for writer in self._writers), return_exceptions=True
        )

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while line := await reader.readline():
            length = 0
            while header := (await reader.readline()).strip().lower():
                if header.startswith(b"content-length:"):
                    length = int(header[15:])
            body = await reader.readexactly(length)
            if line.startswith(b"GET"):
                self.streams += 1
                self._out = writer
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
                self._event(b"endpoint", self.endpoint.encode())
                continue
            message = orjson.loads(body)
            if "method" not in message:
                self.posted.append(message)
                await self.accepts.wait()
            writer.write(b"HTTP/1.1 %d Told\r\ncontent-length: 0\r\n\r\n" % self.status)
            if "method" in message:
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        self.posted.append(message)
        match message.get("method"):
            case "initialize":
                answer = wire.initialized(message, "old")
                answer["result"]["protocolVersion"] = "2024-11-05"
            case "tools/list":
                answer = wire.listed(message, [wire.tool("look", "Looks.", {})])
            case "tools/call":
                for raw in self.before:
                    self._event(b"message", raw % message["id"] if b"%d" in raw else raw)
                if self.hangs_up and self._out is not None:
                    self._out.close()
                    return
                answer = wire.result(message, wire.content("seen"))
            case _:
                return
        self._event(b"message", orjson.dumps(answer))

    def _event(self, kind: bytes, data: bytes) -> None:
        assert self._out is not None
        self._out.write(b"event: %s\ndata: %s\n\n" % (kind, data))


@pytest.fixture
def old() -> SseServer:
    return SseServer()


@asynccontextmanager
async def behind(old: SseServer, state: Path) -> AsyncIterator[Gateway]:
    async with old.serving() as url:
        entry = server_entry(transport="sse", urls=[f"{url}/sse"])
        async with gateway(state, {"notes": entry}) as proxy:
            yield proxy


async def test_calls_are_posted_where_the_stream_says(tmp_path: Path, old: SseServer) -> None:
    async with behind(old, tmp_path) as proxy:
        await proxy.offered("notes", "look")
        _, answer = await proxy.call("look")

    assert "seen" == answer["result"]["content"][0]["text"]
    assert 1 == old.streams


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.2:1/post", "//127.0.0.2/post", "https://{own}/post", "file:///etc/passwd",
        "http://{own}@127.0.0.2/post", "/po st", "/po\u00e9st", "http://[",
    ],
)  # fmt: skip
async def test_nothing_is_posted_to_another_place(
    tmp_path: Path, old: SseServer, endpoint: str
) -> None:
    async with old.serving() as url:
        old.endpoint = endpoint.replace("{own}", url.removeprefix("http://"))
        entry = server_entry(transport="sse", urls=[f"{url}/sse"])
        async with gateway(tmp_path, {"notes": entry}) as proxy:
            _, listed = await proxy.modern("tools/list")

    assert "upstream_protocol" == listed["error"]["message"]
    assert [] == old.posted


async def test_what_answers_nothing_is_dropped(tmp_path: Path, old: SseServer) -> None:
    old.before = [
        b'{"jsonrpc":"2.0","id":987654,"result":{"content":[]}}', b"{]", b"[]", b"3",
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":987654}}',
    ]  # fmt: skip
    async with behind(old, tmp_path) as proxy:
        await proxy.offered("notes", "look")
        _, answer = await proxy.call("look")
        dropped = proxy.running.counters.read()["proxy.upstream.dropped"]

    assert "seen" == answer["result"]["content"][0]["text"]
    assert 2 == dropped


async def test_of_two_answers_the_first_counts(tmp_path: Path, old: SseServer) -> None:
    first = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"first"}]}}'
    old.before = [first]
    async with behind(old, tmp_path) as proxy:
        await proxy.offered("notes", "look")
        _, answer = await proxy.call("look")

    assert "first" == answer["result"]["content"][0]["text"]


async def test_a_stream_that_ends_ends_its_call_and_the_next_opens_another(
    tmp_path: Path, old: SseServer
) -> None:
    async with behind(old, tmp_path) as proxy:
        await proxy.offered("notes", "look")
        old.hangs_up = True
        _, failed = await proxy.call("look")
        old.hangs_up = False
        _, answer = await proxy.call("look")
        statuses = [one["status"] for one in proxy.records("call.outcome")]

    said = failed["result"]["_meta"]["com.behavry/decision"]
    assert "upstream_protocol" == said["reason"]
    assert "seen" == answer["result"]["content"][0]["text"]
    assert (["indeterminate", "ok"], 2) == (statuses, old.streams)


async def test_a_stream_with_an_event_over_the_limit_is_left(
    tmp_path: Path, old: SseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy_sse, "MAX_ANSWER", 1000)
    async with behind(old, tmp_path) as proxy:
        await proxy.offered("notes", "look")
        old.before = [b'{"jsonrpc":"2.0","method":"x","params":{"pad":"%s"}}' % (b"y" * 2000)]
        _, failed = await proxy.call("look")

    said = failed["result"]["_meta"]["com.behavry/decision"]
    assert "upstream_protocol" == said["reason"]


async def test_a_server_that_asks_and_takes_no_answer_answers_its_calls_all_the_same(
    tmp_path: Path, old: SseServer
) -> None:
    old.before = [b'{"jsonrpc":"2.0","id":"p","method":"ping"}'] * (MAX_ANSWERING + 4)
    async with behind(old, tmp_path) as proxy:
        await proxy.offered("notes", "look")
        old.accepts.clear()
        _, answer = await proxy.call("look")
        dropped = proxy.running.counters.read()["proxy.upstream.dropped"]
        old.before = [b'{"jsonrpc":"2.0","id":"q","method":"ping"}']
        old.accepts.set()
        told = [one for one in old.posted if one.get("id") == "p"]
        await until(lambda: len([one for one in old.posted if one.get("id") == "p"]) > 0)
        _, again = await proxy.call("look")
        await until(lambda: {"jsonrpc": "2.0", "id": "q", "result": {}} in old.posted)

    assert ["seen"] * 2 == [one["result"]["content"][0]["text"] for one in (answer, again)]
    assert len(told) <= MAX_ANSWERING
    assert 4 == dropped


async def test_a_message_that_is_refused_ran_nothing(tmp_path: Path, old: SseServer) -> None:
    async with behind(old, tmp_path) as proxy:
        await proxy.offered("notes", "look")
        old.status = 500
        _, failed = await proxy.call("look")
        statuses = [one["status"] for one in proxy.records("call.outcome")]

    assert failed["result"]["isError"]
    assert ["upstream_error"] == statuses
