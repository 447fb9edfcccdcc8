"""Sessions of legacy agents: for whom they open, and when they end (mcp.md 9)."""

from typing import Any

import pytest

from tests.altered import altered
from tests.fakes.authorizer import OTHER_AGENT, OTHER_TENANT
from tests.fakes.gateway import Gateway
from tests.fakes.tool_server import ToolServer

OPEN = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {"sampling": {}, "elicitation": {}},
        "clientInfo": {"name": "old", "version": "1"},
    },
}
LIST = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}


async def opened(proxy: Gateway, **options: Any) -> str:
    status, answer = await proxy.post(OPEN, **options)
    assert (200, "2025-06-18") == (status, answer["result"]["protocolVersion"])
    return proxy.session


async def test_a_session_serves_its_holder_and_nobody_else(proxy: Gateway) -> None:
    session = await opened(proxy)
    agents = proxy.authorizer.snapshot["tenants"][proxy.tenant]["agents"]
    everyone = {**agents, OTHER_AGENT: {**agents[proxy.agent], "servers": ["notes", "other"]}}
    everyone[proxy.agent] = {**agents[proxy.agent], "servers": ["notes", "other"]}
    await proxy.authorizer.publish(agents=everyone)
    await proxy.settled()
    sent = {"mcp-session-id": session}

    async def status(**options: Any) -> int:
        return (await proxy.post(LIST, headers=sent, **options))[0]

    assert 200 == await status()
    assert 404 == await status(token=proxy.issuer.token(sub=OTHER_AGENT))
    assert 404 == await status(token=proxy.issuer.token(tid=OTHER_TENANT))
    assert 404 == await status(server="other")
    other_class = {**everyone, proxy.agent: {**everyone[proxy.agent], "class": "critical"}}
    await proxy.authorizer.publish(agents=other_class)
    await proxy.settled()
    assert 404 == await status()


BENDS = {
    "cut": lambda one: one[:-1],
    "flipped": lambda one: altered(one, -2),
    "of another version": lambda one: one.replace("b1.", "b2."),
    "of yesterday": lambda one: "b1." + str(int(one.split(".")[1]) - 1) + "." + one.split(".")[2],
    "of long ago": lambda one: "b1.0." + one.split(".")[2],
    "empty": lambda one: "",
    "endless": lambda one: "x" * 9000,
    "padded": lambda one: one + "=",
}


@pytest.mark.parametrize("bend", BENDS.values(), ids=BENDS)
async def test_a_bent_session_is_none(proxy: Gateway, bend: Any) -> None:
    session = await opened(proxy)

    status, _ = await proxy.post(LIST, headers={"mcp-session-id": bend(session)})

    assert status in {404, 431}
    assert 200 == (await proxy.post(LIST, headers={"mcp-session-id": session}))[0]


async def test_after_delete_it_is_as_if_it_never_was(proxy: Gateway) -> None:
    session = await opened(proxy)
    headers = {"authorization": f"Bearer {proxy.issuer.token()}", "mcp-session-id": session}

    async def delete() -> int:
        async with proxy.http.delete(proxy.mcp(), headers=headers) as response:
            return response.status

    assert (204, 404) == (await delete(), await delete())
    assert 404 == (await proxy.post(LIST, headers={"mcp-session-id": session}))[0]


async def test_a_session_keeps_its_version(proxy: Gateway) -> None:
    sent = {"mcp-session-id": await opened(proxy)}

    same = {**sent, "mcp-protocol-version": "2025-06-18"}
    other = {**sent, "mcp-protocol-version": "2025-11-25"}
    assert 200 == (await proxy.post(LIST, headers=same))[0]
    assert 400 == (await proxy.post(LIST, headers=other))[0]


async def test_lifecycle_messages_are_answered_here(proxy: Gateway, tools: ToolServer) -> None:
    sent = {"mcp-session-id": await opened(proxy)}
    asked = len(tools.headers_seen())

    ping = await proxy.post({"jsonrpc": "2.0", "id": 3, "method": "ping"}, headers=sent)
    note = await proxy.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=sent)
    level = await proxy.post(
        {"jsonrpc": "2.0", "id": 4, "method": "logging/setLevel", "params": {"level": "info"}},
        headers=sent,
    )

    assert (200, {"jsonrpc": "2.0", "id": 3, "result": {}}) == ping
    assert (202, None) == note
    assert -32601 == level[1]["error"]["code"]
    assert asked == len(tools.headers_seen())


async def test_there_are_two_hundred_and_no_more(proxy: Gateway) -> None:
    for _ in range(200):
        await opened(proxy)

    status, refused = await proxy.post(OPEN)

    assert (503, 5030) == (status, refused["error"]["code"])


async def test_the_tool_servers_own_session_ends_with_a_404(
    proxy: Gateway, tools: ToolServer
) -> None:
    """It lost its sessions: the agent must hear of it, for its state there is gone."""
    tools.behave(eras=("legacy",), sessions=True)
    proxy.forget_upstreams()
    await proxy.offered("notes", "read_note")
    sent = {"mcp-session-id": await opened(proxy)}
    call = {
        "jsonrpc": "2.0",
        "id": 5,
        "method": "tools/call",
        "params": {"name": "read_note", "arguments": {"call": "c1"}},
    }
    assert "result" in (await proxy.post(call, headers=sent))[1]
    for known in tools.directory.glob("session-*"):
        known.unlink()

    lost_status, lost = await proxy.post(call, headers=sent)

    assert (404, 4040) == (lost_status, lost["error"]["code"])
    assert ["c1"] == tools.ran()
    assert "upstream_error" == proxy.records("call.outcome")[-1]["status"]
    sent = {"mcp-session-id": await opened(proxy)}
    assert "result" in (await proxy.post(call, headers=sent))[1]


async def test_a_modern_agent_does_not_notice_that_a_legacy_server_forgot_it(
    proxy: Gateway, tools: ToolServer
) -> None:
    tools.behave(eras=("legacy",), sessions=True)
    proxy.forget_upstreams()
    await proxy.offered("notes", "read_note")
    await proxy.call("read_note", {"call": "c1"})
    for known in tools.directory.glob("session-*"):
        known.unlink()

    _, answer = await proxy.call("read_note", {"call": "c2"})

    assert "c2 read_note" == answer["result"]["content"][0]["text"]
    assert ["c1", "c2"] == tools.ran()
    assert "complete" == answer["result"]["resultType"]


async def test_a_server_is_told_of_the_granted_capabilities_alone(
    proxy: Gateway, tools: ToolServer
) -> None:
    tools.behave(eras=("legacy",))
    proxy.forget_upstreams()
    await opened(proxy)

    seen = [body for body in tools.bodies_seen() if b'"initialize"' in body]
    assert any(b'"elicitation"' in body for body in seen)  # granted unless somebody says no
    assert not any(b'"sampling"' in body for body in seen)
