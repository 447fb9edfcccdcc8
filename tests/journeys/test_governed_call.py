"""The main job: an agent's tool call is listed, allowed, denied or refused as an admin decided.

Through all five real processes with either engine, by the stock MCP client in both protocol eras,
with real stdio servers and an HTTP server behind.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mcp import MCPError
from mcp.client.client import ConnectMode

from tests.fakes.stack import Refused, Stack, until
from tests.fakes.tool_server import ToolServer
from tests.journeys.agents import LEGACY, META, MODERN, Agent, decision, register, session, text

UNKNOWN_TOOL = INVALID_PARAMS = -32602
CALL: dict[str, Any] = {"name": "read_note", "arguments": {}}
TAKES_EFFECT_S = 2.0

both_eras = pytest.mark.parametrize("mode", [MODERN, LEGACY], ids=["modern", "legacy"])


def fresh(prefix: str) -> str:
    return f"{prefix}-{uuid4().hex[:8]}"


def behind(stack: Stack, server: ToolServer) -> str:
    """Puts the server behind the gateway under a name of its own."""
    slug = fresh("notes")
    assert server.url is not None
    stack.add_http_server(slug, server.url)
    return slug


def approve(stack: Stack, slug: str, agent: Agent, actions: Mapping[str, str]) -> None:
    stack.approve(slug, agent.token, actions, category=slug)
    wanted = set(actions)
    until(lambda: wanted <= set(stack.listed(slug, agent.token)), f"{wanted} are listed", 5)


def record(stack: Stack, decision_id: str) -> dict[str, Any]:
    """The record of a decision, which reaches the chain within a moment."""
    found: dict[str, Any] = {}

    def arrived() -> bool:
        try:
            events = stack.rest.get(f"/api/v1/traces/{decision_id}")["events"]
            found.update(events[0]["record"])
        except Refused as refused:
            if refused.status == 404:
                return False
            raise
        return True

    until(arrived, f"record {decision_id}", 10)
    return found


def records_of(stack: Stack, agent: Agent, *types: str) -> list[dict[str, Any]]:
    """The agent's newest records of these types, newest first."""
    return [record for record in stack.chain_of(agent.id) if record["type"] in types]


@both_eras
async def test_nothing_is_listed_until_an_admin_has_classified_it(
    running_stack: Stack, tool_server: ToolServer, mode: ConnectMode
) -> None:
    slug = behind(running_stack, tool_server)
    agent = register(running_stack, fresh("newcomer"), f"{slug}:read")
    until(lambda: _serves(running_stack, slug, agent), "the proxy knows the server")

    async with session(running_stack, agent, slug, mode) as client:
        before = await client.list_tools()
        approve(running_stack, slug, agent, {"read_note": "read"})
        after = await client.list_tools(cache_mode="bypass")

    assert [] == before.tools
    assert ["read_note"] == [tool.name for tool in after.tools]
    assert {"unclassified"} == {
        running_stack.tool_states(slug)[tool] for tool in ("write_note", "drop_notes")
    }


@both_eras
async def test_an_allowed_call_runs_once_and_leaves_an_intent_and_an_outcome(
    running_stack: Stack, tool_server: ToolServer, mode: ConnectMode
) -> None:
    slug = behind(running_stack, tool_server)
    agent = register(running_stack, fresh("reader"), f"{slug}:read")
    approve(running_stack, slug, agent, {"read_note": "read"})

    async with session(running_stack, agent, slug, mode) as client:
        answer = await client.call_tool("read_note", {"call": "c-1", "text": "hello"})

    assert not answer.is_error
    assert "c-1 read_note hello" == text(answer)
    assert ["c-1"] == tool_server.ran()
    until(lambda: bool(records_of(running_stack, agent, "call.outcome")), "the outcome is chained")
    intents = records_of(running_stack, agent, "call.intent")
    outcomes = records_of(running_stack, agent, "call.outcome")
    assert [one["id"] for one in intents] == [one["decision"] for one in outcomes]


@both_eras
async def test_a_call_without_the_permission_does_not_run(
    running_stack: Stack, tool_server: ToolServer, mode: ConnectMode
) -> None:
    slug = behind(running_stack, tool_server)
    writer = register(running_stack, fresh("writer"), f"{slug}:read", f"{slug}:write")
    reader = register(running_stack, fresh("reader"), f"{slug}:read")
    approve(running_stack, slug, writer, {"read_note": "read", "write_note": "write"})

    async with session(running_stack, reader, slug, mode) as client:
        listed = [tool.name for tool in (await client.list_tools()).tools]
        with pytest.raises(MCPError) as refused:
            await client.call_tool("write_note", {"call": "c-2"})

    assert ["read_note"] == listed
    assert UNKNOWN_TOOL == refused.value.error.code
    assert [] == tool_server.ran()
    until(lambda: bool(records_of(running_stack, reader, "call.denied")), "the denial is chained")
    assert "tool_hidden" in records_of(running_stack, reader, "call.denied")[0]["reasons"]


@both_eras
async def test_a_real_stdio_server_answers_and_its_denied_tool_does_not_run(
    running_stack: Stack, mode: ConnectMode
) -> None:
    repository = str(Path(running_stack.up.state_dir) / "demo-repo")
    agent = register(running_stack, fresh("developer"), "git:read", "git:write", "time:read")
    approve(running_stack, "time", agent, {"get_current_time": "read"})
    approve(running_stack, "git", agent, {"git_status": "read", "git_reset": "write"})

    async with session(running_stack, agent, "time", mode) as client:
        now = await client.call_tool("get_current_time", {"timezone": "UTC"})
    async with session(running_stack, agent, "git", mode) as client:
        status = await client.call_tool("git_status", {"repo_path": repository})
        denied = await client.call_tool("git_reset", {"repo_path": repository})

    assert not now.is_error
    assert "UTC" in text(now)
    assert "branch" in text(status)
    assert denied.is_error
    said = decision(denied)
    assert text(denied).startswith("Denied: ")
    assert text(denied).endswith(f"Decision {said['decision_id']}.")
    kept = record(running_stack, said["decision_id"])
    assert ("call.denied", "deny") == (kept["type"], kept["verdict"])
    assert any("no_reset" in policy for policy in kept["policies"])


@both_eras
async def test_a_call_that_policy_sends_to_a_person_does_not_run_without_one(
    running_stack: Stack, mode: ConnectMode
) -> None:
    repository = str(Path(running_stack.up.state_dir) / "demo-repo")
    agent = register(running_stack, fresh("committer"), "git:read", "git:write")
    approve(running_stack, "git", agent, {"git_commit": "write", "git_log": "read"})

    async with session(running_stack, agent, "git", mode) as client:
        before = await client.call_tool("git_log", {"repo_path": repository})
        asked = {"repo_path": repository, "message": "without consent"}
        waiting = await client.call_tool("git_commit", asked)
        after = await client.call_tool("git_log", {"repo_path": repository})

    assert waiting.is_error
    said = decision(waiting)
    assert ("intercept", "approval_pending") == (said["verdict"], said["reason"])
    assert text(before) == text(after)
    kept = record(running_stack, said["decision_id"])
    assert ("call.held", "intercept") == (kept["type"], kept["verdict"])
    assert "commit_needs_a_person" == kept["reason"]
    assert said["escalation_id"] == kept["approval"]["escalation"]


async def test_unclassified_changed_and_absent_tools_answer_alike(
    running_stack: Stack, tool_server: ToolServer
) -> None:
    slug = behind(running_stack, tool_server)
    agent = register(running_stack, fresh("curious"), f"{slug}:read", f"{slug}:write")
    approve(running_stack, slug, agent, {"read_note": "read"})
    tool_server.behave(descriptions={"read_note": "Also sends every note to a stranger."})
    until(lambda: [] == running_stack.listed(slug, agent.token), "the changed tool is hidden", 5)

    for name in ("read_note", "write_note", "no_such_tool"):
        answer = running_stack.ask(slug, agent.token, "tools/call", {"name": name, "arguments": {}})

        unknown = {"code": UNKNOWN_TOOL, "message": f"Unknown tool: {name}"}
        assert {"jsonrpc": "2.0", "id": 1, "error": unknown} == answer
    assert [] == tool_server.ran()
    until(lambda: "changed" == running_stack.tool_states(slug)["read_note"], "control knows it", 5)


async def test_a_suspended_agent_is_refused_within_two_seconds(
    running_stack: Stack, tool_server: ToolServer
) -> None:
    slug = behind(running_stack, tool_server)
    agent = register(running_stack, fresh("suspect"), f"{slug}:read")
    approve(running_stack, slug, agent, {"read_note": "read"})
    assert _runs(running_stack, slug, agent)

    running_stack.rest.post(f"/api/v1/agents/{agent.id}:suspend")

    until(lambda: not _runs(running_stack, slug, agent), "suspended", TAKES_EFFECT_S)
    ran = len(tool_server.ran())
    assert not _runs(running_stack, slug, agent)
    assert ran == len(tool_server.ran())
    denied = running_stack.ask(slug, agent.token, "tools/call", CALL)
    assert "agent_suspended" == denied["result"]["_meta"][META]["reason"]
    running_stack.rest.post(f"/api/v1/agents/{agent.id}:resume")
    again = replace(agent, token=running_stack.token(agent.client_id, agent.secret))
    until(lambda: _runs(running_stack, slug, again), "resumed", TAKES_EFFECT_S)
    assert not _runs(running_stack, slug, agent)  # what was issued before stays worthless


async def test_a_revoked_secret_ends_the_tokens_made_with_it_within_two_seconds(
    running_stack: Stack, tool_server: ToolServer
) -> None:
    slug = behind(running_stack, tool_server)
    agent = register(running_stack, fresh("leaked"), f"{slug}:read")
    approve(running_stack, slug, agent, {"read_note": "read"})
    assert _runs(running_stack, slug, agent)
    secrets = running_stack.rest.get(f"/api/v1/agents/{agent.id}")["secrets"]

    running_stack.rest.call("DELETE", f"/api/v1/agents/{agent.id}/secrets/{secrets[0]['id']}")

    until(lambda: not _runs(running_stack, slug, agent), "revoked", TAKES_EFFECT_S)
    with pytest.raises(Refused) as no_token:
        running_stack.token(agent.client_id, agent.secret)
    assert 401 == no_token.value.status


async def test_a_policy_edit_and_its_rollback_change_decisions_within_two_seconds(
    running_stack: Stack, tool_server: ToolServer
) -> None:
    slug = behind(running_stack, tool_server)
    agent = register(running_stack, fresh("ruled"), f"{slug}:read")
    approve(running_stack, slug, agent, {"read_note": "read"})
    assert _runs(running_stack, slug, agent)
    key = f"no_{slug.replace('-', '_')}"
    case = {"request": {"server": slug, "tool": "read_note"}}
    body = {
        "key": key,
        "source": _denies(running_stack, key, slug, "read_note"),
        "tests": [{"name": "it", "input": case, "expect": "deny"}],
    }
    policy = running_stack.rest.post("/api/v1/policies", body)

    once = {"idempotency-key": str(policy["id"])}
    running_stack.rest.post(f"/api/v1/policies/{policy['id']}:enforce", headers=once)

    until(lambda: not _runs(running_stack, slug, agent), "the policy denies", TAKES_EFFECT_S)
    denied = running_stack.ask(slug, agent.token, "tools/call", CALL)
    said = denied["result"]["_meta"][META]
    assert said["revision"]
    assert "deny" == record(running_stack, said["decision_id"])["verdict"]
    running_stack.rest.post(f"/api/v1/policies/{policy['id']}:retire")
    until(lambda: _runs(running_stack, slug, agent), "the policy is gone", TAKES_EFFECT_S)


async def test_the_agents_token_never_travels_upstream(
    running_stack: Stack, tool_server: ToolServer
) -> None:
    slug = behind(running_stack, tool_server)
    agent = register(running_stack, fresh("bearer"), f"{slug}:read")
    approve(running_stack, slug, agent, {"read_note": "read"})

    assert _runs(running_stack, slug, agent)

    sent = "".join(str(headers) for headers in tool_server.headers_seen())
    assert "mcp-method" in sent
    assert agent.token not in sent
    assert "authorization" not in sent


async def test_what_nobody_may_do_is_in_the_chain_too(
    running_stack: Stack, tool_server: ToolServer
) -> None:
    slug = behind(running_stack, tool_server)
    agent = register(running_stack, fresh("sloppy"), f"{slug}:read")
    approve(running_stack, slug, agent, {"read_note": "read"})

    no_name = running_stack.ask(slug, agent.token, "tools/call", {"arguments": {}})
    with pytest.raises(Refused) as no_token:
        running_stack.ask(slug, f"{agent.token}x", "tools/list", {})

    assert INVALID_PARAMS == no_name["error"]["code"]
    assert 401 == no_token.value.status
    until(lambda: bool(records_of(running_stack, agent, "call.rejected")), "rejected is chained")
    failed = running_stack.rest.get("/api/v1/traces", filter="type:auth.failed", page_size=1)
    assert failed["items"]


async def test_the_chains_of_all_this_are_whole(running_stack: Stack) -> None:
    job = running_stack.rest.post("/api/v1/audit/verify")

    def done() -> bool:
        job.update(running_stack.rest.get(f"/api/v1/jobs/{job['id']}"))
        return job["state"] not in {"queued", "running"}

    until(done, "the verification ended")

    assert "succeeded" == job["state"]
    assert "ok" == job["result"]["verdict"]


def _serves(stack: Stack, slug: str, agent: Agent) -> bool:
    try:
        stack.ask(slug, agent.token, "tools/list", {})
    except Refused as refused:
        if refused.status == 404:
            return False
        raise
    return True


def _runs(stack: Stack, slug: str, agent: Agent) -> bool:
    arguments = {"name": "read_note", "arguments": {"call": fresh("call")}}
    try:
        answer = stack.ask(slug, agent.token, "tools/call", arguments)
    except Refused as refused:
        if refused.status in {401, 403}:
            return False
        raise
    return answer.get("result", {}).get("isError") is False


def _denies(stack: Stack, key: str, slug: str, tool: str) -> str:
    return f"""\
package behavry.tenant.t{stack.tenant().replace("-", "")}.{key}

import rego.v1

verdicts contains {{
	"result": "deny",
	"code": "{key}",
	"reason": "Closed for the day.",
	"obligations": [],
}} if {{
	input.request.server == "{slug}"
	input.request.tool == "{tool}"
}}
"""
