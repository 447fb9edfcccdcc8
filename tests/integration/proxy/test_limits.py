"""The limits on what agents send (mcp.md 1.3, 3.2, 11): at each of them all is well, one over it is
refused as written, and nothing of it reaches a tool server.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from services.proxy.admission import MAX_BODY
from services.proxy.pipeline import AT_ONCE
from services.proxy.transports.listener import MAX_HEADER_BYTES, MAX_HEADERS
from tests.fakes import mcp_wire as wire
from tests.fakes.authorizer import OTHER_TENANT
from tests.fakes.gateway import BOTH, MODERN_META, Gateway, until
from tests.fakes.raw_http import RawHttp, connected, request
from tests.fakes.tool_server import ToolServer

Lines = list[tuple[str, str]]


def call(size: int = 0, **arguments: str) -> bytes:
    """A call of so many bytes."""
    params = {"name": "read_note", "arguments": {**arguments, "text": ""}, "_meta": MODERN_META}
    made = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    return made.replace(b'"text":""', b'"text":"%s"' % (b"x" * (size - len(made))))


@pytest.fixture
def lines(proxy: Gateway) -> Lines:
    """The headers of a good call."""
    return [
        ("host", proxy.url.removeprefix("http://")),
        ("authorization", f"Bearer {proxy.issuer.token()}"),
        ("content-type", "application/json"),
        ("accept", BOTH),
        ("mcp-protocol-version", wire.MODERN),
        ("mcp-method", "tools/call"),
        ("mcp-name", "read_note"),
    ]


@asynccontextmanager
async def nothing_runs(tools: ToolServer) -> AsyncIterator[None]:
    before = tools.bodies_seen()
    yield
    assert before == tools.bodies_seen()


async def status(proxy: Gateway, lines: Lines, body: bytes) -> int:
    async with connected(proxy.url) as http:
        return (await http.ask(request(proxy.mcp(), lines, body))).status


def weight(lines: Lines) -> int:
    return sum(len(name) + len(value) + 4 for name, value in lines)


async def test_a_body_has_4_mib(proxy: Gateway, tools: ToolServer, lines: Lines) -> None:
    assert 200 == await status(proxy, lines, call(MAX_BODY))

    async with nothing_runs(tools):
        assert 413 == await status(proxy, lines, call(MAX_BODY + 1))


async def test_a_body_in_chunks_has_no_more(
    proxy: Gateway, tools: ToolServer, lines: Lines
) -> None:
    async def chunked(size: int) -> int:
        body = call(size)
        parts = [body[at : at + 65_536] for at in range(0, size, 65_536)]
        chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
        head = request(proxy.mcp(), [*lines, ("transfer-encoding", "chunked")])
        async with connected(proxy.url) as http:
            return (await http.ask(b"".join([head, *chunks, b"0\r\n\r\n"]))).status

    assert 200 == await chunked(MAX_BODY)
    async with nothing_runs(tools):
        assert 413 == await chunked(MAX_BODY + 1)
    assert "body_too_large" == proxy.records("call.rejected")[0]["reason"]


async def test_there_are_100_headers(proxy: Gateway, tools: ToolServer, lines: Lines) -> None:
    def some(count: int) -> Lines:
        """With the length that `request` adds."""
        return [*lines, *((f"x-{i}", "v") for i in range(count - 1 - len(lines)))]

    assert 200 == await status(proxy, some(MAX_HEADERS), call())
    async with nothing_runs(tools):
        assert 431 == await status(proxy, some(MAX_HEADERS + 1), call())


async def test_headers_have_32_kib(proxy: Gateway, tools: ToolServer, lines: Lines) -> None:
    body = call()
    length = weight([("content-length", str(len(body)))])

    def heavy(total: int) -> Lines:
        return [*lines, ("x", "v" * (total - weight(lines) - length - 5))]

    assert 200 == await status(proxy, heavy(MAX_HEADER_BYTES), body)
    async with nothing_runs(tools):
        assert 431 == await status(proxy, heavy(MAX_HEADER_BYTES + 1), body)


@pytest.mark.parametrize(
    "start",
    ["POST /mcp/v1/notes HTTP/1.1\r\nx: ", "POST /mcp/v1/notes HTTP/1.1\r\nx", "POST /", "\r\n"],
    ids=["a value", "a name", "a path", "nothing"],
)
async def test_a_head_that_does_not_end_is_not_waited_for(proxy: Gateway, start: str) -> None:
    """Nobody has said who they are yet: what they send is kept for 32 KiB and no longer."""
    filling = (b"\r\n" if start == "\r\n" else b"v") * 1000
    async with connected(proxy.url) as http:
        http.send(start.encode())
        answer = asyncio.create_task(http.ask(b""))
        sent = 0
        while not answer.done() and sent < 4 * 1024 * 1024:
            await asyncio.sleep(0)
            http.send(filling)
            sent += len(filling)

        assert 431 == (await answer).status


@pytest.mark.parametrize("start", [b"", b"POST /mcp/v1/notes HTTP/1.1\r\nx: y\r\n"])
@pytest.mark.parametrize("first", [True, False], ids=["the first", "a later one"])
async def test_a_head_that_does_not_come_is_not_waited_for_for_ever(
    proxy: Gateway, lines: Lines, monkeypatch: pytest.MonkeyPatch, start: bytes, first: bool
) -> None:
    """And who is between two requests keeps the connection."""
    async with connected(proxy.url) as kept, connected(proxy.url) as slow:
        ask = request(proxy.mcp(), lines, call(call="c"))
        assert 200 == (await kept.ask(ask)).status
        monkeypatch.setattr("services.proxy.transports.listener.HEAD_S", 0.2)
        async with connected(proxy.url) as late:
            if first:
                ended = await late.ask(start)
            elif start:
                assert 200 == (await slow.ask(ask)).status
                ended = await slow.ask(start)
            else:
                ended = await late.ask(start)

        assert (0, True) == (ended.status, ended.closed)
        assert 200 == (await kept.ask(ask)).status


async def test_a_key_that_is_not_sent_whole_is_not_waited_for_for_ever(
    proxy: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for a token has not said yet who it is."""
    monkeypatch.setattr("services.proxy.transports.entry.BODY_S", 0.2)
    url = f"{proxy.url}/api/v1/auth/token"
    host = ("host", proxy.url.removeprefix("http://"))
    async with connected(proxy.url) as http:
        reply = await http.ask(request(url, [host, ("content-length", "10")]) + b"grant")

    assert 408 == reply.status


async def test_what_follows_the_body_changes_nothing(
    proxy: Gateway, tools: ToolServer, lines: Lines
) -> None:
    """Trailers come after the decision."""
    body = call(call="c1")
    head = request(proxy.mcp(), [*lines, ("transfer-encoding", "chunked")])
    trailers = b"mcp-name: drop_notes\r\nmcp-param-a: 1\r\nauthorization: Bearer x\r\n"
    async with connected(proxy.url) as http:
        sent = b"%s%x\r\n%s\r\n0\r\n%s\r\n" % (head, len(body), body, trailers)
        reply = await http.ask(sent)

    assert (200, ["c1"]) == (reply.status, tools.ran())
    assert "mcp-param-a" not in tools.headers_seen()[-1]


async def test_a_body_that_breaks_off_runs_nothing(
    proxy: Gateway, tools: ToolServer, lines: Lines
) -> None:
    """However whole it looks: its sender said that there is more."""
    body = call(call="c1")
    cut = [*lines, ("content-length", str(len(body) + 1))]
    async with nothing_runs(tools):
        async with connected(proxy.url) as http:
            http.send(request(proxy.mcp(), cut) + body)
            http.close()
        whole = [*lines, ("content-length", str(len(body)))]
        async with connected(proxy.url) as http:
            http.send(request(proxy.mcp(), whole) + body[:-1])
            http.close()
        _, answer = await proxy.modern("tools/list")
        assert "result" in answer
    assert [] == tools.ran()
    assert [] == proxy.records("call.")


@pytest.mark.parametrize("sent", [0, 100], ids=["nothing of it", "a part of it"])
async def test_a_body_that_does_not_come_is_not_waited_for_for_ever(
    proxy: Gateway, lines: Lines, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request would keep one of the places."""
    monkeypatch.setattr("services.proxy.transports.reply.PATIENCE_S", 0.3)
    monkeypatch.setattr("services.proxy.transports.reply.BODY_S", 0.4)
    body = call()
    announced = [*lines, ("content-length", str(len(body)))]
    async with connected(proxy.url) as http:
        reply = await http.ask(request(proxy.mcp(), announced) + body[:sent])

    assert (0, True) == (reply.status, reply.closed)
    assert [] == proxy.records("call.")


@asynccontextmanager
async def crowded(proxy: Gateway, tools: ToolServer) -> AsyncIterator[None]:
    """All places are taken by calls that wait for their tool."""

    async def call(name: str) -> None:
        while True:  # so many at once on a busy machine may get no decision in time
            await proxy.call("read_note", {"call": name})

    tools.behave(hang=True)
    waiting = [asyncio.create_task(call(f"c{i}")) for i in range(64)]
    try:
        await until(lambda: len(tools.ran()) == AT_ONCE == 64, seconds=20)
        yield
    finally:
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_64_requests_run_at_once(proxy: Gateway, tools: ToolServer) -> None:
    async with crowded(proxy, tools), nothing_runs(tools):
        _, refused = await proxy.call("read_note", {"call": "one more"})
        listing = {"jsonrpc": "2.0", "id": "l", "method": "tools/list",
                   "params": {"_meta": MODERN_META}}  # fmt: skip
        sent = {"mcp-protocol-version": wire.MODERN, "mcp-method": "tools/list"}
        unlisted = await proxy.post(listing, headers=sent)

    told = refused["result"]["_meta"]["com.behavry/decision"]
    assert (7, True) == (refused["id"], refused["result"]["isError"])
    assert ("deny", "rate_limited", 1000) == (
        told["verdict"], told["reason"], told["retry_after_ms"],
    )  # fmt: skip
    assert (200, "l", 4290) == (unlisted[0], unlisted[1]["id"], unlisted[1]["error"]["code"])
    recorded = [(one["reason"], one["error"]) for one in proxy.records("call.rejected")]
    assert [("rate_limited", "4290")] * 2 == recorded


async def test_another_agent_and_what_is_no_request_find_a_place(
    proxy: Gateway, tools: ToolServer
) -> None:
    """Else nothing that is running could be given up or answered."""
    await proxy.post({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}})
    session = {"mcp-session-id": proxy.session}
    given_up = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
    async with crowded(proxy, tools):
        note, _ = await proxy.post(given_up, headers=session)
        other, _ = await proxy.modern("tools/list", token=proxy.issuer.token(tid=OTHER_TENANT))

    assert (202, 200) == (note, other)


async def test_16_headers_that_no_schema_knows_travel_on(
    proxy: Gateway, tools: ToolServer, lines: Lines
) -> None:
    def more(count: int, size: int = 1) -> Lines:
        return [*lines, *((f"mcp-param-x{i}", "v" * size) for i in range(count))]

    assert 200 == await status(proxy, more(16, 1024), call(call="c1"))
    seen = tools.headers_seen()[-1]
    assert ["v" * 1024] * 16 == [seen[f"mcp-param-x{i}"] for i in range(16)]
    async with nothing_runs(tools):
        assert 431 == await status(proxy, more(17), call())
        assert 431 == await status(proxy, more(1, 1025), call())
    refused = [(one["reason"], one["error"]) for one in proxy.records("call.rejected")]
    assert [("headers_too_large", "-32600")] * 2 == refused


async def answered(http: RawHttp, sent: bytes) -> tuple[int, bytes]:
    reply = await http.ask(sent)
    return reply.status, reply.body


async def test_after_a_refusal_the_connection_goes_on(proxy: Gateway, lines: Lines) -> None:
    """And the next request on it is read as itself."""
    good, bad = call(call="c1"), b'{"jsonrpc":"2.0","id":9,"method":"tools/call","params":[]}'
    async with connected(proxy.url) as http:
        for sent in (bad, good, call(MAX_BODY + 1), good, b"{", good):
            status_found, content = await answered(http, request(proxy.mcp(), lines, sent))
            wanted = 200 if sent is good else 413 if len(sent) > MAX_BODY else 400
            assert wanted == status_found
            if sent is good:
                assert json.loads(content)["id"] == 1
            if http.closed:
                break
