"""The fake tool servers are spoken to by the stock MCP client, in both eras and both transports."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.client import ConnectMode

from tests.fakes.children import ROOT, child
from tests.fakes.mcp_echo import read_ledger
from tests.fakes.tool_server import ACTIONS, ToolServer, serving

ERAS: tuple[ConnectMode, ...] = ("auto", "legacy")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ToolServer]:
    with serving(tmp_path / "server") as one:
        yield one


def door(server: ToolServer, transport: str) -> str | StdioServerParameters:
    if transport == "http":
        assert server.url is not None
        return server.url
    command, arguments = server.stdio_command()
    return StdioServerParameters(command=command, args=list(arguments), cwd=ROOT)


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_tools_are_listed_and_a_call_runs_once(
    server: ToolServer, mode: ConnectMode, transport: str
) -> None:
    async with Client(door(server, transport), mode=mode) as client:
        tools = await client.list_tools()
        answer = await client.call_tool("read_note", {"call": "c-1", "text": "hello"})

    assert sorted(ACTIONS) == sorted(tool.name for tool in tools.tools)
    assert not answer.is_error
    assert ["c-1"] == server.ran()


@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_a_definition_changes_in_one_line(server: ToolServer, transport: str) -> None:
    server.behave(descriptions={"read_note": "Now says something else."})

    async with Client(door(server, transport)) as client:
        tools = {tool.name: tool.description for tool in (await client.list_tools()).tools}

    assert "Now says something else." == tools["read_note"]


async def test_a_lie_is_no_answer_yet_the_call_ran(server: ToolServer) -> None:
    server.behave(lie="not_json")

    assert server.url is not None
    async with Client(server.url) as client:
        with pytest.raises(MCPError):
            await client.call_tool("write_note", {"call": "c-2"})

    assert ["c-2"] == server.ran()


async def test_a_leak_stands_in_the_result(server: ToolServer) -> None:
    server.behave(leak="hunter2-leaked")

    assert server.url is not None
    async with Client(server.url) as client:
        answer = await client.call_tool("read_note", {"call": "c-3"})

    assert "hunter2-leaked" in answer.model_dump_json()


async def test_a_legacy_session_is_asked_for_again(server: ToolServer) -> None:
    server.behave(sessions=True, eras=("legacy",))

    assert server.url is not None
    async with Client(server.url, mode="legacy") as client:
        await client.call_tool("read_note", {"call": "c-4"})

    assert any("mcp-session-id" in seen for seen in server.headers_seen())


@pytest.mark.parametrize("mode", ERAS)
async def test_the_echo_server_speaks_both_eras_and_keeps_its_ledger(
    tmp_path: Path, mode: ConnectMode
) -> None:
    with child("tests.fakes.mcp_echo", "--ledger", str(tmp_path / "ledger")) as (_, ready):
        async with Client(ready["url"], mode=mode) as client:
            listed = await client.list_tools()
            answer = await client.call_tool("echo", {"call": "e-1", "text": "twice"})

    assert "echo" in [tool.name for tool in listed.tools]
    assert "twicetwice" in answer.model_dump_json()
    assert ["e-1"] == read_ledger(tmp_path / "ledger")
