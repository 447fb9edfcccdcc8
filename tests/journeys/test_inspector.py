"""The MCP Inspector, a client that we did not write, gets its allow and its deny in both eras."""

import subprocess
from pathlib import Path

import msgspec
import pytest

from tests.fakes.children import ROOT
from tests.fakes.neighbour import unseen
from tests.fakes.stack import Stack, until
from tests.fakes.tool_server import ToolServer
from tests.house import tool
from tests.journeys.agents import register

pytestmark = pytest.mark.needs_node

TIMEOUT_S = 60


@pytest.mark.parametrize("era", ["modern", "legacy"])
def test_the_inspector_lists_calls_and_is_refused(
    running_stack: Stack, tool_server: ToolServer, tmp_path: Path, era: str
) -> None:
    slug = f"inspected-{era}"
    assert tool_server.url is not None
    running_stack.add_http_server(slug, tool_server.url)
    agent = register(running_stack, slug, f"{slug}:read")
    running_stack.approve(slug, agent.token, {"read_note": "read"}, category=slug)
    until(lambda: ["read_note"] == running_stack.listed(slug, agent.token), "it is listed", 5)
    door = Door(running_stack.mcp_url(slug), agent.token, era, home=tmp_path)

    listed = door.inspect("tools/list")
    allowed = door.inspect("tools/call", "--tool-name", "read_note", "--tool-arg", "call=c-1")
    hidden = door.inspect("tools/call", "--tool-name", "write_note", "--tool-arg", "call=c-2")

    assert ["read_note"] == [one["name"] for one in msgspec.json.decode(listed.stdout)["tools"]]
    assert msgspec.json.decode(allowed.stdout)["isError"] is False
    assert hidden.returncode != 0
    assert ["c-1"] == tool_server.ran()


class Door:
    """The Inspector's command line for one endpoint and one token."""

    def __init__(self, url: str, token: str, era: str, *, home: Path) -> None:
        self._home = home
        self._options = (
            *("--transport", "http", "--protocol-era", era),
            *("--header", f"Authorization: Bearer {token}"),
        )
        self._url = url

    def inspect(self, method: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        inspector = tool("mcp-inspector")
        assert inspector is not None
        ended = subprocess.run(
            [str(inspector), "--cli", self._url, *self._options, "--method", method, *arguments],
            cwd=ROOT,
            env={"HOME": str(self._home), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        unseen(ended.stdout, ended.stderr)
        return ended
