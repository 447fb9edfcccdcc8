"""Tool servers that lie, hang, leave or ask: each call ends, with the outcome that is true."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.fakes import mcp_wire as wire
from tests.fakes.gateway import BOTH, MODERN_META, Gateway, gateway, http_server, until
from tests.fakes.tool_server import ToolServer
from tests.promises import promise

#: behaviour -> (reason, outcome, whether the tool ran for all that anybody knows)
FAILING: dict[str, tuple[dict[str, Any], str, str]] = {
    "closes the connection": ({"drop": True}, "upstream_protocol", "indeterminate"),
    "answers another id": ({"lie": "other_id"}, "upstream_protocol", "indeterminate"),
    "answers no JSON": ({"lie": "not_json"}, "upstream_protocol", "indeterminate"),
    "answers nothing": ({"lie": "no_result"}, "upstream_protocol", "indeterminate"),
    "redirects": ({"status": 302}, "upstream_protocol", "indeterminate"),
    "fails": ({"status": 500}, "upstream_protocol", "indeterminate"),
    "is away behind its own gateway": ({"status": 502}, "upstream_unreachable", "indeterminate"),
    "wants a credential": ({"status": 401}, "upstream_auth", "upstream_error"),
    "has had enough": ({"status": 429}, "upstream_rate_limited", "upstream_error"),
}


@pytest.mark.parametrize(("told", "reason", "outcome"), FAILING.values(), ids=FAILING)
@promise("failure:upstream")
async def test_a_failing_server_ends_the_call_with_a_reason(
    proxy: Gateway, tools: ToolServer, told: dict[str, Any], reason: str, outcome: str
) -> None:
    tools.behave(**told)
    status, failed = await proxy.call("read_note", {"call": "c1"})
    tools.behave()
    _, after = await proxy.call("read_note", {"call": "c2"})

    meta = failed["result"]["_meta"]["com.behavry/decision"]
    assert (200, True) == (status, failed["result"]["isError"])
    assert ("allow", reason) == (meta["verdict"], meta["reason"])
    assert "c2 read_note" == after["result"]["content"][0]["text"]
    first, second = proxy.records("call.outcome")
    assert (outcome, reason) == (first["status"], first["error"])
    assert "ok" == second["status"]
    assert [one["id"] for one in proxy.records("call.intent")] == [
        first["decision"], second["decision"],
    ]  # fmt: skip
    assert 1 == tools.ran().count("c1")  # never sent again


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    entry = http_server("http://127.0.0.1:1/mcp")
    async with gateway(tmp_path / "state", {"notes": entry}) as proxy:
        _, listed = await proxy.modern("tools/list")
        _, called = await proxy.call("read_note")

        assert 5020 == listed["error"]["code"]
        meta = called["result"]["_meta"]["com.behavry/decision"]
        assert ("deny", "upstream_unreachable") == (meta["verdict"], meta["reason"])
        assert "upstream_unreachable" == proxy.records("call.denied")[0]["reason"]


@pytest.mark.parametrize("address", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]"])
async def test_metadata_addresses_are_no_tool_servers(tmp_path: Path, address: str) -> None:
    entry = http_server(f"http://{address}:8/latest")
    async with gateway(tmp_path / "state", {"notes": entry}) as proxy:
        _, listed = await proxy.modern("tools/list")

        assert 5020 == listed["error"]["code"]


async def test_a_server_that_leaves_and_comes_back_needs_no_hand(
    proxy: Gateway, tools: ToolServer
) -> None:
    """Its tool ran once for each call that it answered."""
    answers = []
    for number in range(12):
        tools.behave(drop=number % 3 == 1)
        answers.append(await proxy.call("read_note", {"call": f"c{number}"}))

    failed = [number for number, (_, body) in enumerate(answers) if body["result"].get("isError")]
    assert [1, 4, 7, 10] == failed
    assert [f"c{number}" for number in range(12)] == tools.ran()


class Scripted:
    """A tool server whose every answer is a test's."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.result: dict[str, Any] = wire.content("fine")
        self.events: list[bytes] | None = None
        self.after: asyncio.Event | None = None
        self.headers: dict[str, str] = {}
        #: So many requests are of a version that it does not know; it knows these.
        self.rejects = 0
        self.supported = [wire.MODERN]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        message = orjson.loads(await request.read())
        self.requests.append((dict(request.headers), message))
        if self.rejects:
            self.rejects -= 1
            data = {"supported": self.supported, "requested": "x"}
            refused = wire.error(message, wire.UNSUPPORTED_VERSION, "Unsupported", data)
            return self._json(refused, status=400)
        match message.get("method"):
            case "server/discover":
                return self._json(wire.discovered(message, "scripted"))
            case "tools/list":
                return self._json(wire.listed(message, [wire.tool("read_note", "Reads.", {})]))
            case "tools/call" if self.events is not None:
                return await self._stream(request, message)
            case "tools/call":
                return self._json(wire.result(message, self.result))
            case "initialize":
                return self._json(wire.initialized(message, "scripted"))
            case _:
                return web.Response(status=202)

    def _json(self, tree: dict[str, Any], status: int = 200) -> web.Response:
        return web.Response(
            body=orjson.dumps(tree),
            status=status,
            content_type="application/json",
            headers=self.headers,
        )

    async def _stream(self, request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in self.events or []:
            await response.write(event.replace(b"ID", orjson.dumps(message["id"])))
        if self.after is not None:
            await self.after.wait()
        return response


@asynccontextmanager
async def scripted(tmp_path: Path, **entry: Any) -> AsyncIterator[tuple[Gateway, Scripted]]:
    server = Scripted()
    app = web.Application()
    app.router.add_post("/mcp", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
    try:
        async with gateway(
            tmp_path / "state", {"notes": http_server(server.url, **entry)}
        ) as proxy:
            yield proxy, server
    finally:
        await runner.cleanup()


RESULT = (
    b'{"jsonrpc":"2.0","id":ID,"result":{"resultType":"complete","content":[],"isError":false}}'
)
STREAMS: dict[str, tuple[list[bytes], str]] = {
    "one event": ([b"event: message\ndata: " + RESULT + b"\n\n"], "ok"),
    "notifications first": (
        [b'data: {"jsonrpc":"2.0","method":"notifications/progress","params":{}}\n\n',
         b": ping\r\n\r\ndata: " + RESULT + b"\r\n\r\n"], "ok",
    ),
    "split anywhere": ([b"da", b"ta: " + RESULT[:20], RESULT[20:] + b"\n", b"\n"], "ok"),
    "carriage returns": ([b"data: " + RESULT + b"\r\r"], "ok"),
    "lines of one event": ([b'data: {"jsonrpc":"2.0","id":ID,\ndata: "result":{}}\n\n'], "ok"),
    "ends without an answer": ([b": nothing\n\n"], "indeterminate"),
    "another id": ([b"data: " + RESULT.replace(b"ID", b"4711") + b"\n\n"], "indeterminate"),
    "no JSON": ([b"data: {]\n\n"], "indeterminate"),
}  # fmt: skip


@pytest.mark.parametrize(("events", "outcome"), STREAMS.values(), ids=STREAMS)
async def test_answers_may_come_as_events(
    tmp_path: Path, events: list[bytes], outcome: str
) -> None:
    async with scripted(tmp_path) as (proxy, server):
        await proxy.offered("notes", "read_note")
        server.events = events

        await proxy.call("read_note")

        assert [outcome] == [one["status"] for one in proxy.records("call.outcome")]


async def test_the_answer_ends_the_wait_even_if_the_stream_stays_open(tmp_path: Path) -> None:
    async with scripted(tmp_path) as (proxy, server):
        await proxy.offered("notes", "read_note")
        server.events = [b"data: " + RESULT + b"\n\n"]
        server.after = asyncio.Event()

        async with asyncio.timeout(5):
            status, _ = await proxy.call("read_note")
        server.after.set()

        assert 200 == status


async def test_a_server_that_asks_its_client_is_told_that_nobody_answers(tmp_path: Path) -> None:
    asked = b'data: {"jsonrpc":"2.0","id":"q","method":"sampling/createMessage","params":{}}\n\n'
    async with scripted(tmp_path) as (proxy, server):
        await proxy.offered("notes", "read_note")
        server.events = [asked, b"data: " + RESULT + b"\n\n"]

        await proxy.call("read_note")
        await until(lambda: "error" in server.requests[-1][1])

        told = server.requests[-1][1]
        assert ("q", -32601) == (told["id"], told["error"]["code"])


SAMPLING = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1}}
RESULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "asks for input": (
        {"resultType": "input_required", "inputRequests": {"a": SAMPLING}},
        "capability_not_granted", "upstream_error",
    ),
    "asks for nothing": (
        {"resultType": "input_required", "inputRequests": {}}, "upstream_protocol",
        "upstream_error",
    ),
    "of an unknown type": ({"resultType": "odd"}, "upstream_protocol", "upstream_error"),
}  # fmt: skip


@pytest.mark.parametrize(("result", "reason", "outcome"), RESULTS.values(), ids=RESULTS)
async def test_results_that_nobody_granted(
    tmp_path: Path, result: dict[str, Any], reason: str, outcome: str
) -> None:
    async with scripted(tmp_path) as (proxy, server):
        await proxy.offered("notes", "read_note")
        server.result = result

        _, answer = await proxy.call("read_note")

        assert reason == answer["result"]["_meta"]["com.behavry/decision"]["reason"]
        assert [outcome] == [one["status"] for one in proxy.records("call.outcome")]


async def test_a_server_cannot_speak_in_our_name(tmp_path: Path) -> None:
    async with scripted(tmp_path) as (proxy, server):
        await proxy.offered("notes", "read_note")
        server.result = {
            **wire.content("x"),
            "_meta": {"com.behavry/decision": 1, "own": 2},
            "new": 3,
        }

        _, answer = await proxy.call("read_note")

        assert {"own": 2} == answer["result"]["_meta"]
        assert 3 == answer["result"]["new"]


@asynccontextmanager
async def impatient(tmp_path: Path, tools: ToolServer) -> AsyncIterator[Gateway]:
    """In front of a server that is to begin each answer within a second."""
    assert tools.url is not None
    entry = http_server(tools.url, first_byte_s=1)
    async with gateway(tmp_path / "state", {"notes": entry}) as proxy:
        await proxy.offered("notes", "read_note")
        proxy.forget_records()
        yield proxy


async def test_a_server_that_never_answers_is_given_up_on(
    tmp_path: Path, tools: ToolServer
) -> None:
    async with impatient(tmp_path, tools) as proxy:
        tools.behave(hang=True)

        _, answer = await proxy.call("read_note", {"call": "c1"})

        assert "upstream_timeout" == answer["result"]["_meta"]["com.behavry/decision"]["reason"]
        assert ["indeterminate"] == [one["status"] for one in proxy.records("call.outcome")]


async def test_a_stream_that_falls_silent_is_given_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had begun in time; and one that says something now and then goes on."""
    monkeypatch.setattr("services.proxy.backends.connection.SILENCE_S", 0.5)
    async with scripted(tmp_path, first_byte_s=1) as (proxy, server):
        await proxy.offered("notes", "read_note")
        server.events, server.after = [b": thinking\n\n"], asyncio.Event()
        _, silent = await proxy.call("read_note")
        server.events, server.after = [b": thinking\n\n", b"data: " + RESULT + b"\n\n"], None
        _, said = await proxy.call("read_note")

    assert "upstream_timeout" == silent["result"]["_meta"]["com.behavry/decision"]["reason"]
    assert not said["result"].get("isError")
    assert ["indeterminate", "ok"] == [one["status"] for one in proxy.records("call.outcome")]


async def test_a_long_wait_is_kept_open_by_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.transports.reply.PATIENCE_S", 0.05)
    async with scripted(tmp_path) as (proxy, server):
        await proxy.offered("notes", "read_note")
        server.events = [b": thinking\n\n"]
        server.after = asyncio.Event()
        asyncio.get_running_loop().call_later(0.3, server.after.set)
        headers = {
            "authorization": f"Bearer {proxy.issuer.token()}", "accept": BOTH,
            "mcp-protocol-version": wire.MODERN, "mcp-method": "tools/call",
            "mcp-name": "read_note",
        }  # fmt: skip
        params = {"name": "read_note", "_meta": MODERN_META}
        body = {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": params}

        async with proxy.http.post(proxy.mcp(), json=body, headers=headers) as response:
            content = await response.read()

        assert ("text/event-stream", "no") == (
            response.content_type, response.headers["x-accel-buffering"],
        )  # fmt: skip
        assert content.startswith(b":\n\n")
        assert content.count(b"data: ") == 1
        assert orjson.loads(content.partition(b"data: ")[2])["id"] == 3


async def test_an_agent_has_so_many_requests_at_once(
    tmp_path: Path, tools: ToolServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with impatient(tmp_path, tools) as proxy:
        monkeypatch.setattr("services.proxy.pipeline.AT_ONCE", 2)
        tools.behave(hang=True)
        async with asyncio.TaskGroup() as group:
            for number in range(2):
                group.create_task(proxy.call("read_note", {"call": f"c{number}"}))
            await until(lambda: len(tools.ran()) == 2)
            _, refused = await proxy.modern("tools/list")

        assert 4290 == refused["error"]["code"]
        assert "rate_limited" == proxy.records("call.rejected")[0]["reason"]
        assert "result" in (await proxy.modern("tools/list"))[1]


async def test_compressed_answers_are_not_taken(tmp_path: Path) -> None:
    async with scripted(tmp_path) as (proxy, server):
        await proxy.offered("notes", "read_note")
        server.headers = {"content-encoding": "identity-not"}

        _, answer = await proxy.call("read_note")

        assert "upstream_protocol" == answer["result"]["_meta"]["com.behavry/decision"]["reason"]


async def test_a_response_over_the_limit_stops_the_reading(tmp_path: Path) -> None:
    async with scripted(tmp_path) as (proxy, server):
        await proxy.offered("notes", "read_note")
        server.result = wire.content("x" * (8 * 1024 * 1024))

        _, answer = await proxy.call("read_note")

        assert "inbound_blocked" == answer["result"]["_meta"]["com.behavry/decision"]["reason"]
        assert ["blocked"] == [one["status"] for one in proxy.records("call.outcome")]


async def test_a_server_that_names_another_version_is_asked_in_that(tmp_path: Path) -> None:
    async with scripted(tmp_path) as (proxy, server):
        server.rejects = 1

        _, listed = await proxy.modern("tools/list")

        assert "result" in listed
        methods = [message["method"] for _, message in server.requests]
        assert ["server/discover", "server/discover", "tools/list"] == methods


async def test_a_server_that_names_only_legacy_versions_is_one(tmp_path: Path) -> None:
    async with scripted(tmp_path) as (proxy, server):
        server.rejects, server.supported = 1, ["2025-06-18"]

        _, listed = await proxy.modern("tools/list")

        assert "result" in listed
        methods = [message["method"] for _, message in server.requests]
        assert ["server/discover", "initialize", "notifications/initialized"] == methods[:3]


async def test_a_version_refused_later_is_no_answer_for_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.backends.sites.DOUBT_NS", 0)
    async with scripted(tmp_path) as (proxy, server):
        await proxy.offered("notes", "read_note")
        server.rejects = 1

        _, answer = await proxy.call("read_note")
        _, after = await proxy.call("read_note")

        assert "upstream_protocol" == answer["result"]["_meta"]["com.behavry/decision"]["reason"]
        assert "fine" == after["result"]["content"][0]["text"]
        assert ["upstream_error", "ok"] == [one["status"] for one in proxy.records("call.outcome")]


async def test_a_credential_comes_from_a_file_and_only_from_there(tmp_path: Path) -> None:
    credential = {"kind": "header", "name": "X-Api-Key", "value": "secret://notes-key"}
    async with scripted(tmp_path, credential=credential) as (proxy, server):
        _, before = await proxy.modern("tools/list")
        (proxy.settings.secrets_dir / "notes-key").write_text("s3cr3t\n")

        _, listed = await proxy.modern("tools/list")

        assert (5023, "secret_unresolved") == (before["error"]["code"], before["error"]["message"])
        assert "result" in listed
        assert {"s3cr3t"} == {headers.get("X-Api-Key") for headers, _ in server.requests}


async def test_catalogues_are_fetched_once_and_views_are_cached(
    proxy: Gateway, tools: ToolServer
) -> None:
    """M-CHEAP: what is cached costs no round trip."""
    tools.behave(ttl_ms=60_000)
    proxy.forget_catalog()
    await proxy.modern("tools/list")
    await proxy.recorded("catalog.served")
    proxy.forget_records()
    views, requests = proxy.authorizer.views, len(tools.headers_seen())

    for _ in range(50):
        await proxy.modern("tools/list")
        await proxy.modern("server/discover")

    assert (views, requests) == (proxy.authorizer.views, len(tools.headers_seen()))
    assert [] == proxy.records("catalog.served")  # the view did not change
    _, listed = await proxy.modern("tools/list")
    assert ("private", "complete") == (
        listed["result"]["cacheScope"],
        listed["result"]["resultType"],
    )
    assert listed["result"]["ttlMs"] <= 30_000


async def test_what_a_server_offers_is_reported_with_its_digest(proxy: Gateway) -> None:
    seen = await proxy.authorizer.seen("notes", "read_note")

    assert seen.schema_hash == f"sha256:{hashlib.sha256(seen.definition).hexdigest()}"
    definition = orjson.loads(seen.definition)
    assert ["description", "inputSchema", "name"] == sorted(definition)
    assert seen.definition == orjson.dumps(definition, option=orjson.OPT_SORT_KEYS)


async def test_a_thousand_calls_cost_what_the_rules_say(proxy: Gateway, tools: ToolServer) -> None:
    """One Decide ask each, no new connections, two records each."""
    tools.behave(ttl_ms=60_000)
    proxy.forget_catalog()
    await proxy.call("read_note", {"call": "warm"})
    before = proxy.running.counters.read()

    for number in range(200):
        await proxy.call("read_note", {"call": f"c{number}"})

    after = proxy.running.counters.read()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert 200 == grown["proxy.decide.asks"] == grown["proxy.decide.messages"]
    assert 200 == grown["proxy.allowed"] == grown["proxy.upstream.requests"]
    assert 0 == grown["proxy.upstream.connections"] == grown["proxy.decide.streams"]
    assert 0 == grown.get("proxy.control.requests", 0)
    assert 201 == len(tools.ran())
