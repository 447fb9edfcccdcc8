"""The twins of what every test of the proxy relies on: whatever an agent is answered or is recorded
of it is looked at, and a word of the second tenant (neighbour.py) in it is found.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.gateway import BOTH, gateway, http_server
from tests.fakes.neighbour import MARK, TENANT, Crossed
from tests.fakes.raw_http import connected, request
from tests.fakes.tool_server import ToolServer


async def test_a_plane_holds_it_beside_the_first(tmp_path: Path, tools: ToolServer) -> None:
    """Its server has the slug of the first one's; there nobody listens."""
    assert tools.url is not None
    async with gateway(tmp_path / "s", {"notes": http_server(tools.url)}) as proxy:
        ours, theirs = (
            proxy.authorizer.snapshot["tenants"][one]["servers"] for one in (proxy.tenant, TENANT)
        )
        await proxy.offered("notes", "read_note")
        _, answer = await proxy.call("read_note", {"call": "1"})
        _, failed = await proxy.modern("tools/list", token=proxy.issuer.token(tid=TENANT))

    assert ours.keys() == theirs.keys()
    assert "error" not in answer
    assert failed["error"]["code"] == 5020
    assert ["1"] == tools.ran()


async def test_what_agents_are_answered_is_looked_at(tmp_path: Path, tools: ToolServer) -> None:
    assert tools.url is not None
    made = gateway(tmp_path / "s", {"notes": http_server(tools.url)})
    proxy = await made.__aenter__()
    await proxy.offered("notes", "read_note")
    tools.behave(prompts=(MARK,))
    await proxy.modern("prompts/list")

    with pytest.raises(Crossed):
        await made.__aexit__(None, None, None)


async def test_what_comes_byte_by_byte_is_looked_at(tmp_path: Path, tools: ToolServer) -> None:
    assert tools.url is not None
    async with gateway(tmp_path / "s", {"notes": http_server(tools.url)}) as proxy:
        tools.behave(prompts=(MARK,))
        session = await proxy.open_session()
        lines = [
            ("host", proxy.url.removeprefix("http://")),
            ("authorization", f"Bearer {proxy.issuer.token()}"),
            ("content-type", "application/json"),
            ("accept", BOTH),
            *session.items(),
        ]
        listing = b'{"jsonrpc":"2.0","id":1,"method":"prompts/list"}'
        async with connected(proxy.url) as http:
            with pytest.raises(Crossed):
                await http.ask(request(proxy.mcp(), lines, listing))


async def test_what_is_recorded_is_looked_at(tmp_path: Path, tools: ToolServer) -> None:
    assert tools.url is not None
    async with gateway(tmp_path / "s", {"notes": http_server(tools.url)}) as proxy:
        await proxy.offered("notes", "read_note")
        proxy.forget_records()
        await proxy.call("read_note", {"call": "1"})
        assert ["call.intent", "call.outcome"] == [
            one["type"] for one in await proxy.recorded("call.", count=2)
        ]
        await proxy.authorizer.publish(slug=MARK)
        agents = proxy.authorizer.snapshot["tenants"][proxy.tenant]["agents"]
        await proxy.authorizer.publish(
            agents={**agents, proxy.agent: {**agents[proxy.agent], "name": MARK}}
        )
        await proxy.settled()
        await proxy.call("read_note", {"call": "2"})
        with pytest.raises(Crossed):
            await proxy.recorded("call.", count=4)
