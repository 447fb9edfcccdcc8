"""A proxy in front of one told tool server."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes import tool_server
from tests.fakes.authorizer import AGENT, OTHER_AGENT
from tests.fakes.gateway import Gateway, gateway, http_server
from tests.fakes.talker import Talker, talking
from tests.fakes.tool_server import ToolServer


@pytest.fixture(scope="session")
def one_tool_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToolServer]:
    with tool_server.serving(tmp_path_factory.mktemp("tools")) as made:
        yield made


@pytest.fixture
def tools(one_tool_server: ToolServer) -> ToolServer:
    """Honest again, and it remembers nothing."""
    one_tool_server.forget()
    return one_tool_server


@pytest.fixture
def hold() -> str:
    """How long a call is held, in seconds; tests that wait for its end say less."""
    return "20"


@pytest.fixture
async def proxy(tmp_path: Path, tools: ToolServer, hold: str) -> AsyncIterator[Gateway]:
    assert tools.url is not None
    servers = {"notes": http_server(tools.url), "other": http_server(tools.url, id="")}
    async with gateway(tmp_path / "state", servers, BEHAVRY_HOLD_SECONDS=hold) as made:
        await made.authorizer.publish(
            agents={
                **made.authorizer.snapshot["tenants"][made.tenant]["agents"],
                made.agent: {
                    "name": "demo", "class": "default", "status": "active", "servers": ["notes"],
                },
            }
        )  # fmt: skip
        await made.offered("notes", "read_note", "write_note", "drop_notes")
        made.forget_records()
        yield made


@pytest.fixture
async def talker() -> AsyncIterator[Talker]:
    async with talking() as made:
        yield made


@pytest.fixture
async def two_agents(tmp_path: Path, talker: Talker) -> AsyncIterator[Gateway]:
    """Before a talker, with the same rights."""
    async with gateway(tmp_path / "state", {"notes": http_server(talker.url)}) as made:
        agents = made.authorizer.snapshot["tenants"][made.tenant]["agents"]
        await made.authorizer.publish(agents={**agents, OTHER_AGENT: agents[AGENT]})
        yield made
