"""M-CELL (mcp.md 2.3): each era of an agent before each transport and era of a tool server.

A cell does seven things through the proxy; what it cannot do is in the baseline below, and nothing
else is missing. The agent is the SDK's client, the tool server the conformance fixture.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import mcp_types as types
import pytest
from mcp.client.client import Client, ConnectMode
from mcp.shared.exceptions import MCPError

from tests.conformance.cell_server import WAITING
from tests.fakes.authorizer import server_entry
from tests.fakes.children import ROOT, child
from tests.fakes.gateway import gateway, hosted, hosting, until
from tests.fakes.sdk_client import connected
from tests.fakes.stdio_toml import write_toml

STDIO: Final = "stdio"
MODES: Final[dict[str, ConnectMode]] = {"modern": "auto", "legacy": "legacy"}
#: (transport, era) of a tool server. HTTP+SSE is older than the newer era; hosted is stdio whose
#: children are another process's.
SERVERS: Final = (
    ("http", "modern"),
    ("http", "legacy"),
    ("stdio", "modern"),
    ("stdio", "legacy"),
    ("hosted", "modern"),
    ("hosted", "legacy"),
    ("sse", "legacy"),
)
#: What a cell cannot do (mcp.md 2.3, column gap).
GAPS: Final[dict[tuple[str, str], frozenset[str]]] = {("modern", "legacy"): frozenset({"elicit"})}
GRANTS: Final = {"elicitation_form": True, "sampling": True, "roots": True}
TOOLS: Final = (
    "test_simple_text", "test_tool_with_progress", "test_elicitation",
    "test_input_required_result_elicitation", WAITING,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """A client's connection, and the ledger of the server behind."""

    client: Client
    era: str
    ledger: Path


async def call(cell: Cell) -> None:
    answer = await cell.client.call_tool("test_simple_text", {})
    assert isinstance(answer.content[0], types.TextContent)
    assert not answer.is_error


async def list_all(cell: Cell) -> None:
    tools = {tool.name for tool in (await cell.client.list_tools()).tools}
    resources = {str(one.uri) for one in (await cell.client.list_resources()).resources}
    templates = (await cell.client.list_resource_templates()).resource_templates
    prompts = {one.name for one in (await cell.client.list_prompts()).prompts}
    assert set(TOOLS) == tools
    assert "test://static-text" in resources
    assert "test_simple_prompt" in prompts
    assert templates


async def read(cell: Cell) -> None:
    found = (await cell.client.read_resource("test://static-text")).contents[0]
    assert isinstance(found, types.TextResourceContents)
    assert "static text" in found.text


async def prompt(cell: Cell) -> None:
    assert (await cell.client.get_prompt("test_simple_prompt")).messages


async def progress(cell: Cell) -> None:
    told: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        assert (100, None) == (total, message)
        told.append(progress)

    await cell.client.call_tool("test_tool_with_progress", {}, progress_callback=hear)
    assert [0, 50, 100] == told


async def cancel(cell: Cell) -> None:
    calling = asyncio.get_running_loop().create_task(cell.client.call_tool(WAITING, {}))
    try:
        await until(lambda: "waiting" in words(cell.ledger))
    finally:
        calling.cancel()
        await asyncio.wait([calling])
    await until(lambda: "cancelled" in words(cell.ledger))


async def elicit(cell: Cell) -> None:
    if cell.era == "modern":
        answer = await cell.client.call_tool("test_input_required_result_elicitation", {})
    else:
        answer = await cell.client.call_tool("test_elicitation", {"message": "Who?"})
    block = answer.content[0]
    assert isinstance(block, types.TextContent)
    assert "Ada" in block.text
    assert not answer.is_error


DOES: Final[dict[str, Callable[[Cell], Awaitable[None]]]] = {
    "list": list_all,
    "call": call,
    "read": read,
    "prompt": prompt,
    "progress": progress,
    "cancel": cancel,
    "elicit": elicit,
}


def words(ledger: Path) -> list[str]:
    return ledger.read_text().split() if ledger.exists() else []


@contextmanager
def entry(transport: str, era: str, state: Path, ledger: Path) -> Iterator[dict[str, Any]]:
    """A server's entry, and the server while the block runs."""
    arguments = (transport, "--ledger", str(ledger))
    if transport == STDIO:
        line = ["-m", "tests.conformance.cell_server", *arguments]
        write_toml(state, "cell", command=sys.executable, args=line, cwd=str(ROOT))
        yield server_entry(transport=transport, stdio="cell", era=era, grants=GRANTS)
        return
    with child("tests.conformance.cell_server", *arguments) as (_, ready):
        yield server_entry(transport=transport, urls=[ready["url"]], era=era, grants=GRANTS)


async def elicited(context: Any, params: Any) -> types.ElicitResult:  # the protocol's names
    assert isinstance(params, types.ElicitRequestFormParams)
    return types.ElicitResult(action="accept", content={"name": "Ada", "username": "Ada"})


@pytest.mark.parametrize("agent", list(MODES))
@pytest.mark.parametrize(("transport", "era"), SERVERS)
async def test_a_cell_does_all_but_its_gaps(
    tmp_path: Path, agent: str, transport: str, era: str
) -> None:
    state, ledger = tmp_path / "state", tmp_path / "ledger"
    failed: dict[str, str] = {}
    with entry(STDIO if transport == "hosted" else transport, era, state, ledger) as server:
        apart = transport == "hosted"
        async with (
            hosting(state) if apart else nullcontext(),
            gateway(state, {"cell": server}, **(hosted(state) if apart else {})) as proxy,
        ):
            await proxy.offered("cell", *TOOLS)
            async with connected(
                proxy, "cell", MODES[agent], elicitation_callback=elicited
            ) as client:
                for name, does in DOES.items():
                    try:
                        async with asyncio.timeout(20):
                            await does(Cell(client, era, ledger))
                    except (AssertionError, TimeoutError, MCPError, ExceptionGroup) as failure:
                        failed[name] = repr(failure)[:300]

    assert GAPS.get((agent, era), frozenset()) == failed.keys(), failed
