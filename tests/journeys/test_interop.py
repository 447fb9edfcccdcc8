"""Clients of others' making reach the demo's tools with what `behavry connect` prints for them, and
are refused what a policy refuses.

The SDK's own client in both eras is shown in test_governed_call.py, the Inspector in
test_inspector.py, programs on this machine in test_mcp_stdio.py. Clients that need an account at a
model's vendor are stood in for by the stock client: their printed configuration is read in its own
format, and its address and header are what connects.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from tests.fakes.children import ROOT
from tests.fakes.neighbour import unseen
from tests.fakes.stack import Stack
from tests.house import CLIENTS
from tests.journeys.agents import LEGACY, Agent, developer, key, text
from tests.promises import promise

#: The engine makes no difference to who connects.
pytestmark = pytest.mark.parametrize(
    "running_stack",
    [pytest.param("embedded", marks=pytest.mark.needs_regorus)],
    indirect=True,
)
DRIVER = ROOT / "tests" / "conformance" / "clients" / "drive.py"
TIMEOUT_S = 60
#: (environment, client).
LIBRARIES = (
    ("mcp1", "sdk"),
    ("mcp1", "openai-agents"),
    ("mcp1", "langchain"),
    ("mcp2", "openai-agents"),
)


def connect(
    stack: Stack, client: str, *more: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "services.cli", "connect", client),
            *("--server", "git", "--state", stack.up.state_dir, *more),
        ],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )


def printed(stack: Stack, client: str) -> str:
    """What a person is shown, by the command itself."""
    said = connect(stack, client).stdout
    unseen(said)
    return said


def drive(environment: str, client: str, stack: Stack, agent: Agent) -> dict[str, Any]:
    """The client in its own environment, with the key in the variable that is printed."""
    repository = {"repo_path": str(Path(stack.up.state_dir) / "demo-repo")}
    calls = [("git_status", repository), ("git_reset", repository)]
    ran = subprocess.run(
        [
            *(str(CLIENTS / environment / "bin" / "python"), str(DRIVER), client),
            *(f"{stack.mcp_url('git')}/key", json.dumps(calls)),
        ],
        env={"BEHAVRY_AGENT_KEY": key(agent), "PATH": os.environ["PATH"]},
        input="" if client == "sdk" else printed(stack, client),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert 0 == ran.returncode, ran.stderr
    unseen(ran.stdout)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def agent(running_stack: Stack) -> Agent:
    return developer(running_stack)


@pytest.fixture(scope="module")
def libraries(running_stack: Stack, agent: Agent) -> dict[tuple[str, str], Future[dict[str, Any]]]:
    """All of them beside each other: most of what they do is load themselves."""
    with ThreadPoolExecutor(len(LIBRARIES)) as pool:
        return {one: pool.submit(drive, *one, running_stack, agent) for one in LIBRARIES}


@promise("clients:others")
@pytest.mark.needs_clients
@pytest.mark.parametrize("library", LIBRARIES, ids="-".join)
def test_a_library_is_allowed_what_is_allowed_and_told_what_is_not(
    libraries: dict[tuple[str, str], Future[dict[str, Any]]], library: tuple[str, str]
) -> None:
    found = libraries[library].result()

    allowed, denied = found["answers"]
    assert {"git_status", "git_reset"} <= set(found["listed"])
    assert (False, True) == (allowed["is_error"], denied["is_error"])
    assert "branch" in allowed["text"]
    assert denied["text"].startswith("Denied: ")


@promise("clients:others")
@pytest.mark.parametrize("client", ["claude-code", "cursor", "vscode", "codex"])
async def test_what_is_printed_for_a_client_connects(
    running_stack: Stack, agent: Agent, client: str
) -> None:
    url, headers = connection(client, printed(running_stack, client), key(agent))
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(url, http_client=http), mode=LEGACY) as connected,
    ):
        listed = {tool.name for tool in (await connected.list_tools()).tools}

    assert {"git_status", "git_reset"} <= listed


@promise("clients:others")
async def test_what_is_written_for_claude_desktop_starts_and_connects(
    running_stack: Stack, agent: Agent, tmp_path: Path
) -> None:
    file = tmp_path / "claude_desktop_config.json"
    told = connect(
        running_stack,
        "claude-desktop",
        *("--write", "--yes", "--file", str(file)),
        environment={"BEHAVRY_AGENT_KEY": key(agent)},
    )
    assert key(agent) not in told.stdout + told.stderr
    assert 0o600 == file.stat().st_mode & 0o777
    entry = json.loads(file.read_text())["mcpServers"]["git"]
    started = StdioServerParameters(command=entry["command"], args=entry["args"], env=entry["env"])
    repository = str(Path(running_stack.up.state_dir) / "demo-repo")

    async with Client(stdio_client(started), mode=LEGACY) as client:
        allowed = await client.call_tool("git_status", {"repo_path": repository})
        denied = await client.call_tool("git_reset", {"repo_path": repository})

    assert (False, True) == (allowed.is_error, denied.is_error)
    assert text(denied).startswith("Denied: ")


def connection(client: str, configuration: str, secret: str) -> tuple[str, dict[str, str]]:
    """The address and headers that a client would make of its configuration: with its variable
    read, or its question answered.
    """
    if client == "codex":
        entry = tomllib.loads(configuration)["mcp_servers"]["git"]
        assert "BEHAVRY_AGENT_KEY" == entry["bearer_token_env_var"]
        return entry["url"], {"Authorization": f"Bearer {secret}"}
    document = json.loads(configuration)
    entry = document["servers" if client == "vscode" else "mcpServers"]["git"]
    if client == "vscode":
        (asked,) = document["inputs"]
        assert asked["password"]
        reference = f"${{input:{asked['id']}}}"
    else:
        reference = {"claude-code": "${BEHAVRY_AGENT_KEY}", "cursor": "${env:BEHAVRY_AGENT_KEY}"}[
            client
        ]
    headers = {name: value.replace(reference, secret) for name, value in entry["headers"].items()}
    assert not re.search(r"\$\{", str(headers))
    return entry["url"], headers
