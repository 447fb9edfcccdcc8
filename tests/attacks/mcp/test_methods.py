"""A20: methods that nobody knows, that were removed, or that belong to the other era. Each is
refused and in the chain, and no tool server hears of it.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.fakes import tool_server
from tests.fakes.gateway import Gateway, gateway, http_server
from tests.fakes.tool_server import ToolServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOBODYS: Final = (
    "tools/Call", "tools/call/", "TOOLS/CALL", "tools/run", "x", "rpc.discover", "tasks/list",
    "tasks/result", "sampling/createMessage", "elicitation/create", "roots/list", "completion",
)  # fmt: skip
MODERN: Final = (
    "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe", "initialize",
)  # fmt: skip
LEGACY: Final = (
    "server/discover",
    "subscriptions/listen",
    "tasks/get",
    "tasks/cancel",
    "tasks/update",
)
HELLO: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "old", "version": "1"},
}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToolServer]:
    with tool_server.serving(tmp_path_factory.mktemp("tools")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(
    tmp_path_factory: pytest.TempPathFactory, tools: ToolServer
) -> AsyncIterator[Gateway]:
    assert tools.url is not None
    state: Path = tmp_path_factory.mktemp("state")
    async with gateway(state, {"notes": http_server(tools.url)}) as made:
        await made.offered("notes", "read_note")
        yield made


async def legacy(proxy: Gateway, method: str, params: dict[str, Any]) -> tuple[int, Any]:
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}
    await proxy.post(hello)
    session = {"mcp-session-id": proxy.session}
    proxy.forget_records()
    body = {"jsonrpc": "2.0", "id": 2, "method": method, "params": params}
    return await proxy.post(body, headers=session)


def heard(tools: ToolServer) -> list[str]:
    return [one.get("mcp-method", "") for one in tools.headers_seen()]


@pytest.mark.parametrize("method", NOBODYS + MODERN)
async def test_a_modern_agent_is_told_that_there_is_no_such_method(
    proxy: Gateway, tools: ToolServer, method: str
) -> None:
    proxy.forget_records()
    before = heard(tools)
    status, answer = await proxy.modern(method, {"name": "read_note", "arguments": {"call": "a"}})

    assert (404, -32601) == (status, answer["error"]["code"])
    assert ["call.rejected"] == [one["type"] for one in proxy.records()]
    assert (before, []) == (heard(tools), tools.ran())


@pytest.mark.parametrize("method", NOBODYS + LEGACY)
async def test_a_legacy_agent_is_told_so_too(
    proxy: Gateway, tools: ToolServer, method: str
) -> None:
    status, answer = await legacy(proxy, method, {"name": "read_note", "arguments": {"call": "a"}})

    assert (200, -32601) == (status, answer["error"]["code"])
    assert ["call.rejected"] == [one["type"] for one in proxy.records()]
    assert [] == tools.ran()


async def test_methods_that_there_are_serve_both(proxy: Gateway, tools: ToolServer) -> None:
    """The innocent twins."""
    _, modern = await proxy.call("read_note", {"call": "modern"})
    _, old = await legacy(proxy, "ping", {})

    assert "resultType" in modern["result"]
    assert {} == old["result"]
    assert ["modern"] == tools.ran()
