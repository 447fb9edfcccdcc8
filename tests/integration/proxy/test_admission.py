"""The door through a running proxy: one path per resource, one credential, and what pages of other
sites may do (mcp.md 1.1 to 1.3). The rules one by one: tests/unit/proxy/test_admission.py.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from tests.fakes import mcp_wire as wire
from tests.fakes.gateway import BOTH, MODERN_META, Gateway, gateway, http_server
from tests.fakes.raw_http import Reply, connected, request
from tests.fakes.tool_server import ToolServer

PAGE = "https://page.example"
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": MODERN_META}}
Lines = list[tuple[str, str]]


@pytest.fixture
async def open_to_a_page(tmp_path: Path, tools: ToolServer) -> AsyncIterator[Gateway]:
    assert tools.url is not None
    servers = {"notes": http_server(tools.url)}
    origins = {"BEHAVRY_PROXY_CORS_ORIGINS": PAGE}
    async with gateway(tmp_path / "state", servers, **origins) as made:
        yield made


def lines(proxy: Gateway, **changes: str) -> Lines:
    return [
        ("host", proxy.url.removeprefix("http://")),
        ("authorization", f"Bearer {proxy.issuer.token()}"),
        ("content-type", "application/json"),
        ("accept", BOTH),
        ("mcp-protocol-version", wire.MODERN),
        ("mcp-method", "tools/list"),
        *((name.replace("_", "-"), value) for name, value in changes.items()),
    ]


async def answer(
    proxy: Gateway, sent: Lines, *, path: str = "/mcp/v1/notes", verb: str = "POST"
) -> Reply:
    body = orjson.dumps(LIST) if verb == "POST" else None
    async with connected(proxy.url) as http:
        return await http.ask(request(proxy.url + path, sent, body, verb=verb))


async def test_a_resource_has_one_spelling(proxy: Gateway, tools: ToolServer) -> None:
    before = tools.headers_seen()

    async def status(path: str) -> int:
        return (await answer(proxy, lines(proxy), path=path)).status

    good = ("/mcp/v1/notes", "/mcp/v1/notes/key")
    assert [200, 200] == [await status(path) for path in good]
    server = proxy.authorizer.snapshot["tenants"][proxy.tenant]["servers"]["notes"]
    assert 200 == await status(f"/mcp/v1/{server['id']}")
    for bad in (
        "/mcp/v1/notes/", "/mcp/v1/notes//key", "/mcp/v1/notes%2Fkey", "/mcp/v1/n%6Ftes",
        "/mcp/v1/notes/k%65y", "/mcp/v1//notes", "/mcp/v1/./notes", "/mcp/v1/notes/../notes",
        "/MCP/v1/notes", "/mcp/v1/notes;x", "/mcp/v1/", "/mcp/v1/notes/key/", "/mcp/v1/notes%00",
        f"/mcp/v1/{server['id'].upper()}",
    ):  # fmt: skip
        assert 404 == await status(bad), bad
    assert before == tools.headers_seen()
    assert [] == proxy.records("call.rejected", "auth.failed")


async def test_lines_of_one_header_are_one_list(proxy: Gateway) -> None:
    sent = [line for line in lines(proxy) if line[0] != "accept"]
    both = [*sent, ("accept", "application/json"), ("accept", "text/event-stream")]

    assert 200 == (await answer(proxy, both)).status
    host = ("host", proxy.url.removeprefix("http://"))
    assert 421 == (await answer(proxy, [*lines(proxy), host])).status
    twice = [*lines(proxy), ("content-type", "application/json")]
    assert 415 == (await answer(proxy, twice)).status
    token = ("authorization", f"Bearer {proxy.issuer.token()}")
    assert 401 == (await answer(proxy, [*lines(proxy), token])).status


async def test_an_mcp_header_twice_is_a_mismatch_even_with_itself(
    proxy: Gateway, tools: ToolServer
) -> None:
    before = tools.headers_seen()
    for name, value in (
        ("mcp-method", "tools/list"), ("mcp-protocol-version", wire.MODERN), ("mcp-name", "x"),
        ("mcp-param-a", "1"),
    ):  # fmt: skip
        sent = [line for line in lines(proxy) if line[0] != name]
        reply = await answer(proxy, [*sent, (name, value), (name, value)])
        assert (400, -32020) == (reply.status, orjson.loads(reply.body)["error"]["code"]), name
    assert ["header_mismatch"] * 4 == [one["reason"] for one in proxy.records("call.rejected")]
    assert before == tools.headers_seen()


async def test_a_credential_in_the_query_is_refused_and_recorded(proxy: Gateway) -> None:
    for query in ("access%5Ftoken=x", "a=b;token=x", f"q={proxy.issuer.token()}"):
        reply = await answer(proxy, lines(proxy), path=f"/mcp/v1/notes?{query}")
        assert 401 == reply.status, query
    harmless = await answer(proxy, lines(proxy), path="/mcp/v1/notes?page=2")

    assert 200 == harmless.status
    reasons = [one["reason"] for one in await proxy.recorded("auth.failed", count=3)]
    assert ["ambiguous_credentials"] * 3 == reasons


async def test_a_page_of_a_listed_site_may_ask_and_read(open_to_a_page: Gateway) -> None:
    proxy = open_to_a_page
    asked = [
        ("host", proxy.url.removeprefix("http://")),
        ("origin", PAGE),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type,mcp-method"),
    ]
    preflight = await answer(proxy, asked, verb="OPTIONS")
    reply = await answer(proxy, lines(proxy, origin=PAGE))
    refused = await answer(
        proxy, [line for line in lines(proxy, origin=PAGE) if line[0] != "authorization"]
    )
    document = "/.well-known/oauth-protected-resource/mcp/v1/notes"
    metadata = await answer(proxy, lines(proxy, origin=PAGE), path=document, verb="GET")

    assert (204, b"") == (preflight.status, preflight.body)
    assert (
        "authorization, content-type, mcp-method"
        == (preflight.headers["access-control-allow-headers"])
    )
    assert [200, 401, 200] == [one.status for one in (reply, refused, metadata)]
    for one in (preflight, reply, refused, metadata):
        assert PAGE == one.headers["access-control-allow-origin"]
        assert "access-control-allow-credentials" not in one.headers
        assert "origin" == one.headers["vary"]
    assert "www-authenticate" in refused.headers["access-control-expose-headers"]


async def test_no_other_page_may(open_to_a_page: Gateway) -> None:
    proxy = open_to_a_page
    evil = "https://page.example.evil"
    asked = [("host", "x"), ("origin", evil), ("access-control-request-method", "POST")]
    preflight = await answer(proxy, asked, verb="OPTIONS")
    reply = await answer(proxy, lines(proxy, origin=evil))
    plain = await answer(proxy, lines(proxy))

    assert [403, 403, 200] == [one.status for one in (preflight, reply, plain)]
    for one in (preflight, reply, plain):
        assert "access-control-allow-origin" not in one.headers


async def test_without_the_setting_no_page_of_another_site_may(proxy: Gateway) -> None:
    asked = [
        ("host", proxy.url.removeprefix("http://")), ("origin", PAGE),
        ("access-control-request-method", "POST"),
    ]  # fmt: skip
    preflight = await answer(proxy, asked, verb="OPTIONS")
    reply = await answer(proxy, lines(proxy, origin=PAGE))
    own = await answer(proxy, lines(proxy, origin=proxy.url))

    assert [405, 403, 200] == [one.status for one in (preflight, reply, own)]
    for one in (preflight, reply, own):
        assert "access-control-allow-origin" not in one.headers
