"""A client that starts programs reaches what is behind the gateway: `behavry-mcp-stdio` as a real
process before the real installation, driven by the stock client and by hand.

What it says on the wire, case by case, is shown beside its code (tests/unit/mcp_stdio).
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from mcp import Client
from mcp.client.client import ConnectMode
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.altered import altered
from tests.fakes.children import ROOT
from tests.fakes.neighbour import unseen
from tests.fakes.stack import READY_TIMEOUT_S, Stack, until
from tests.fakes.tool_server import ToolServer
from tests.journeys.agents import (
    LEGACY,
    META,
    MODERN,
    Agent,
    decision,
    developer,
    key,
    register,
    text,
)
from tests.promises import promise

#: The engine makes no difference to what stands before the gateway.
pytestmark = pytest.mark.parametrize(
    "running_stack",
    [pytest.param("embedded", marks=pytest.mark.needs_regorus)],
    indirect=True,
)
both_eras = pytest.mark.parametrize("mode", [MODERN, LEGACY], ids=["modern", "legacy"])
PATIENCE_S = 20
UNREACHABLE, UNAUTHENTICATED = 5020, 4010


def command(url: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "services.mcp_stdio", "--server-url", url, *more]


def bare(environment: Mapping[str, str]) -> dict[str, str]:
    """Nothing of ours is there but what a test gives."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BEHAVRY_")}
    return {**kept, **environment}


@pytest.fixture(scope="module")
def agent(running_stack: Stack) -> Agent:
    return developer(running_stack)


class ByHand:
    """The program with its pipes in a test's hands."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def say(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next message; a program that says nothing for too long is ended."""
        assert self.process.stdout is not None
        watch = threading.Timer(PATIENCE_S, self.process.kill)
        watch.start()
        line = self.process.stdout.readline()
        watch.cancel()
        assert line, "it ended, or said nothing"
        unseen(line)
        heard: dict[str, Any] = msgspec.json.decode(line)
        return heard

    def speaks(self, *, within_s: float) -> bool:
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], within_s)[0])

    def ask(self, method: str, params: Mapping[str, Any], *, id: int = 1) -> dict[str, Any]:
        self.say(request(method, params, id=id))
        return self.hear()

    def end(self) -> tuple[int, str, float]:
        """(status, stderr, seconds) after the end of its input."""
        began = time.monotonic()
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        unseen(errors)
        return self.process.returncode, errors.decode(), time.monotonic() - began


@contextmanager
def by_hand(url: str, environment: Mapping[str, str], *more: str) -> Iterator[ByHand]:
    process = subprocess.Popen(
        command(url, *more),
        cwd=ROOT,
        env=bare(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield ByHand(process)
    finally:
        process.kill()
        process.communicate()


def message(method: str, params: Mapping[str, Any], *, id: int | None = None) -> bytes:
    """Of the legacy era; without an id a notification."""
    made = {"jsonrpc": "2.0", "method": method, "params": dict(params)}
    return msgspec.json.encode(made if id is None else {**made, "id": id})


def request(method: str, params: Mapping[str, Any], *, id: int = 1) -> bytes:
    """Of the modern era."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "by hand", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return message(method, {**params, "_meta": meta}, id=id)


@promise("clients:stdio")
@both_eras
async def test_a_client_that_starts_programs_is_governed_like_any_other(
    running_stack: Stack, agent: Agent, mode: ConnectMode
) -> None:
    repository = str(Path(running_stack.up.state_dir) / "demo-repo")
    program, *arguments = command(f"{running_stack.mcp_url('git')}/key")
    started = StdioServerParameters(
        command=program, args=arguments, env={"BEHAVRY_AGENT_KEY": key(agent)}, cwd=ROOT
    )

    async with Client(stdio_client(started), mode=mode) as client:
        listed = {tool.name for tool in (await client.list_tools()).tools}
        status = await client.call_tool("git_status", {"repo_path": repository})
        denied = await client.call_tool("git_reset", {"repo_path": repository})

    assert {"git_status", "git_reset"} <= listed
    assert "branch" in text(status)
    assert denied.is_error
    assert "deny" == decision(denied)["verdict"]


@promise("clients:stdio")
def test_an_id_and_a_secret_are_traded_at_the_gateway(running_stack: Stack, agent: Agent) -> None:
    environment = {
        "BEHAVRY_CLIENT_ID": agent.client_id,
        "BEHAVRY_CLIENT_SECRET": agent.secret,
        "BEHAVRY_REQUESTER_ID": "somebody",
    }
    call = {"name": "git_reset", "arguments": {"repo_path": "."}}

    with by_hand(running_stack.mcp_url("git"), environment) as shim:
        listed = shim.ask("tools/list", {}, id=1)
        denied = shim.ask("tools/call", call, id=2)
        status, errors, seconds = shim.end()

    assert {"git_status", "git_reset"} <= {one["name"] for one in listed["result"]["tools"]}
    assert "deny" == denied["result"]["_meta"][META]["verdict"]
    assert (0, "") == (status, errors)
    assert seconds < PATIENCE_S / 2


@promise("clients:stdio")
def test_a_refused_credential_ends_it_with_status_three(running_stack: Stack, agent: Agent) -> None:
    wrong = [
        {"BEHAVRY_AGENT_KEY": altered(key(agent))},
        {"BEHAVRY_CLIENT_ID": agent.client_id, "BEHAVRY_CLIENT_SECRET": altered(agent.secret)},
    ]
    for environment in wrong:
        with by_hand(f"{running_stack.mcp_url('git')}/key", environment) as shim:
            answer = shim.ask("tools/list", {})
            status = shim.process.wait(PATIENCE_S)
            _, errors, _ = shim.end()

        assert UNAUTHENTICATED == answer["error"]["code"]
        assert 3 == status
        assert "refused" in errors
        assert not any(secret in errors for secret in environment.values())


@promise("clients:stdio")
def test_a_gateway_that_was_killed_is_used_again_when_it_is_back(
    running_stack: Stack, agent: Agent
) -> None:
    call = {"name": "git_reset", "arguments": {"repo_path": "."}}
    url = f"{running_stack.mcp_url('git')}/key"
    with by_hand(url, {"BEHAVRY_AGENT_KEY": key(agent)}) as shim:
        before = shim.ask("tools/call", call)
        os.kill(running_stack.pids()["proxy"], signal.SIGKILL)
        said: list[dict[str, Any]] = []

        def back() -> bool:
            said.append(shim.ask("tools/list", {}, id=len(said) + 2))
            return "result" in said[-1]

        until(back, "the gateway is back", READY_TIMEOUT_S)
        after = shim.ask("tools/call", call, id=len(said) + 2)
        status, errors, _ = shim.end()

    assert {UNREACHABLE} >= {answer["error"]["code"] for answer in said[:-1]}
    for answer in (before, after):
        assert "deny" == answer["result"]["_meta"][META]["verdict"]
    assert 0 == status
    assert errors.rstrip().endswith("the gateway is back")


@promise("clients:stdio")
@pytest.mark.parametrize("era", ["modern", "legacy"])
def test_a_call_that_its_client_gives_up_is_given_up_all_the_way(
    running_stack: Stack, tool_server: ToolServer, era: str
) -> None:
    slug, slow_agent = _behind(running_stack, tool_server)
    tool_server.behave(hang=True)
    call = {"name": "read_note", "arguments": {"call": "slow"}}
    with by_hand(
        f"{running_stack.mcp_url(slug)}/key", {"BEHAVRY_AGENT_KEY": key(slow_agent)}
    ) as shim:
        if era == "legacy":
            _open_session(shim)
            shim.say(message("tools/call", call, id=7))
        else:
            shim.say(request("tools/call", call, id=7))
        until(lambda: ["slow"] == tool_server.ran(), "the call runs")
        shim.say(message("notifications/cancelled", {"requestId": 7}))
        until(lambda: bool(_outcomes(running_stack, slow_agent)), "its outcome is recorded")
        status, errors, _ = shim.end()

    assert ["cancelled"] == _outcomes(running_stack, slow_agent)
    assert (0, "") == (status, errors)


@promise("clients:stdio")
def test_what_the_gateway_says_unasked_arrives(
    running_stack: Stack, tool_server: ToolServer
) -> None:
    slug, reader = _behind(running_stack, tool_server)
    with by_hand(f"{running_stack.mcp_url(slug)}/key", {"BEHAVRY_AGENT_KEY": key(reader)}) as shim:
        opened = _open_session(shim)
        # Nobody outside can see when the stream is open: the view changes until it is told.
        actions = cycle(["read", "delete"])

        def told() -> bool:
            items = [{"tool": "drop_notes", "action": next(actions), "category": slug}]
            running_stack.rest.post(f"/api/v1/servers/{slug}/tools:classify", {"items": items})
            return shim.speaks(within_s=2)

        until(told, "the change is told")
        news = shim.hear()

    assert opened["result"]["capabilities"]["tools"]["listChanged"]
    assert "notifications/tools/list_changed" == news["method"]


@promise("clients:stdio")
def test_what_is_asked_of_a_person_arrives_and_the_answer_goes_back(running_stack: Stack) -> None:
    committer = register(running_stack, f"committer-{uuid4().hex[:8]}", "git:read", "git:write")
    running_stack.approve("git", committer.token, {"git_commit": "write"}, category="git")
    until(lambda: "git_commit" in running_stack.listed("git", committer.token), "it is listed")
    arguments = {"repo_path": ".", "message": "not without a person"}
    with by_hand(
        f"{running_stack.mcp_url('git')}/key", {"BEHAVRY_AGENT_KEY": key(committer)}
    ) as shim:
        _open_session(shim, {"elicitation": {"url": {}}})
        shim.say(message("tools/call", {"name": "git_commit", "arguments": arguments}, id=2))
        asked = shim.hear()
        answer = {"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}}
        shim.say(msgspec.json.encode(answer))
        *_, denied = _until_answered(shim, 2)

    assert "elicitation/create" == asked["method"]
    assert "/approve/" in asked["params"]["url"]
    assert "escalation_cancelled" == denied["result"]["_meta"][META]["reason"]


def _until_answered(shim: ByHand, id: int) -> list[dict[str, Any]]:
    heard = [shim.hear()]
    while heard[-1].get("id") != id:
        heard.append(shim.hear())
    return heard


def _behind(stack: Stack, server: ToolServer) -> tuple[str, Agent]:
    """A server of a test's own behind the gateway, and an agent that may read there."""
    slug = f"notes-{uuid4().hex[:8]}"
    assert server.url is not None
    stack.add_http_server(slug, server.url)
    reader = register(stack, slug, f"{slug}:read")
    stack.approve(slug, reader.token, {"read_note": "read"}, category=slug)
    until(lambda: ["read_note"] == stack.listed(slug, reader.token), "it is listed")
    return slug, reader


def _open_session(shim: ByHand, capabilities: Mapping[str, Any] | None = None) -> dict[str, Any]:
    params = {
        "protocolVersion": "2025-11-25",
        "capabilities": dict(capabilities or {}),
        "clientInfo": {"name": "by hand", "version": "1"},
    }
    shim.say(message("initialize", params, id=1))
    opened = shim.hear()
    shim.say(message("notifications/initialized", {}))
    return opened


def _outcomes(stack: Stack, agent: Agent) -> list[str]:
    return [one["status"] for one in stack.chain_of(agent.id) if one["type"] == "call.outcome"]
