"""Stock clients of both eras through the proxy, on stock tool servers."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from tests.fakes import mcp_wire as wire
from tests.fakes import tool_server
from tests.fakes.authorizer import server_entry
from tests.fakes.gateway import Gateway, gateway, http_server

MODES = [pytest.param(wire.MODERN, id="modern"), pytest.param("legacy", id="legacy")]


@asynccontextmanager
async def client(proxy: Gateway, server: str, mode: str) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {proxy.issuer.token()}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(proxy.mcp(server), http_client=http), mode=mode) as made,
    ):
        yield made


def stdio_file(state_dir: Path, **entries: dict[str, Any]) -> None:
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = []
    for name, entry in entries.items():
        lines.append(f"[{name}]")
        for key, value in entry.items():
            shown = [str(one) for one in value] if isinstance(value, list | tuple) else str(value)
            lines.append(f"{key} = {shown!r}")
    (state_dir / "stdio.toml").write_text("\n".join(lines))
    (state_dir / "stdio.toml").chmod(0o600)


@pytest.mark.parametrize("mode", [*MODES, pytest.param("auto", id="auto")])
async def test_a_stock_client_tells_the_time_by_a_stock_server_over_stdio(
    tmp_path: Path, mode: str
) -> None:
    state = tmp_path / "state"
    stdio_file(state, time={"command": sys.executable, "args": ["-m", "mcp_server_time"]})
    entry = server_entry(transport="stdio", stdio="time")
    async with gateway(state, {"time": entry}) as proxy:
        async with client(proxy, "time", mode) as before:
            assert [] == (await before.list_tools()).tools
        await proxy.authorizer.approve("time", "get_current_time")
        await proxy.settled()

        async with client(proxy, "time", mode) as agent:
            listed = await agent.list_tools()
            result = await agent.call_tool("get_current_time", {"timezone": "Europe/Paris"})
            with pytest.raises(MCPError) as unknown:
                await agent.call_tool("convert_time", {"time": "10:00"})

        assert ["get_current_time"] == [tool.name for tool in listed.tools]
        assert not result.is_error
        assert "Europe/Paris" in str(result.content)
        assert (-32602, "Unknown tool: convert_time") == (
            unknown.value.error.code, unknown.value.error.message,
        )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("eras", [("modern",), ("legacy",)], ids=["to-modern", "to-legacy"])
async def test_every_cell_of_the_bridge_carries_a_call(
    tmp_path: Path, mode: str, eras: tuple[str, ...]
) -> None:
    with tool_server.serving(tmp_path / "tools") as tools:
        assert tools.url is not None
        tools.behave(eras=eras, sessions=True)
        async with gateway(tmp_path / "state", {"notes": http_server(tools.url)}) as proxy:
            await proxy.offered("notes", "read_note")

            async with client(proxy, "notes", mode) as agent:
                listed = await agent.list_tools()
                result = await agent.call_tool("read_note", {"call": "c1", "text": "hello"})

            assert ["read_note"] == [tool.name for tool in listed.tools]
            assert "c1 read_note hello" == result.content[0].text  # type: ignore[union-attr]  # text
            assert ["c1"] == tools.ran()
