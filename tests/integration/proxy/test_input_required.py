"""Calls that wait for a person while the agent shows its user the approval page (mcp.md 5.2, first
row). What the user says shortens the wait; only the approval runs the call.
"""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from services.common.clock import SystemClock
from services.proxy.seals import Seals
from tests.altered import altered
from tests.fakes import mcp_wire as wire
from tests.fakes.authorizer import AGENT, TENANT
from tests.fakes.gateway import ISSUER, Gateway, gateway, http_server, until
from tests.fakes.people import URLS, Person, client
from tests.fakes.tool_server import ToolServer

META = "com.behavry/decision"
ACCEPT = {"approval": {"action": "accept"}}


@pytest.fixture(autouse=True)
def four_eyes(proxy: Gateway) -> None:
    demand(proxy)


def demand(proxy: Gateway) -> None:
    for tool in ("write_note", "drop_notes", ""):
        proxy.authorizer.rules.verdicts["notes", tool] = ("intercept", "four_eyes")


async def ask(proxy: Gateway, name: str = "c", **options: Any) -> Any:
    params = {"name": "write_note", "arguments": {"call": name}, **options.pop("more", {})}
    return (await proxy.modern("tools/call", params, capabilities=URLS, **options))[1]


async def retry(
    proxy: Gateway, asked: Any, responses: Any = ACCEPT, name: str = "c", **options: Any
) -> Any:
    more = {"requestState": asked["result"]["requestState"], "inputResponses": responses}
    return await ask(proxy, name, more=more, **options)


def escalation_of(asked: Any) -> str:
    url = asked["result"]["inputRequests"]["approval"]["params"]["url"]
    return str(url.rpartition("/")[2])


async def test_the_page_is_shown_and_an_approved_call_runs_once(
    proxy: Gateway, tools: ToolServer
) -> None:
    asked = await ask(proxy)
    escalation = escalation_of(asked)
    proxy.authorizer.settle(escalation, "approved")
    answer = await retry(proxy, asked)
    replayed = await retry(proxy, asked)

    result = asked["result"]
    request = result["inputRequests"]["approval"]
    assert ("input_required", "elicitation/create", "url") == (
        result["resultType"], request["method"], request["params"]["mode"],
    )  # fmt: skip
    assert f"{ISSUER}/approve/{escalation}" == request["params"]["url"]
    assert escalation == result["_meta"][META]["escalation_id"]
    assert ("complete", False) == (answer["result"]["resultType"], answer["result"]["isError"])
    assert ["c"] == tools.ran()
    assert b"requestState" not in tools.bodies_seen()[-1]
    assert b"inputResponses" not in tools.bodies_seen()[-1]
    assert escalation == proxy.records("call.intent")[0]["approval"]["escalation"]
    # Used up: the replay asks for another approval.
    assert "input_required" == replayed["result"]["resultType"]
    assert escalation != escalation_of(replayed)


async def test_the_retry_waits_for_the_person(proxy: Gateway, tools: ToolServer) -> None:
    asked = await ask(proxy)
    answer = asyncio.ensure_future(retry(proxy, asked))
    await until(lambda: proxy.running.waiting() == 1)
    assert [] == tools.ran()
    proxy.authorizer.settle(escalation_of(asked), "approved")

    assert (await answer)["result"]["isError"] is False
    assert ["c"] == tools.ran()


@pytest.mark.parametrize("state", ["denied", "expired"])
async def test_whatever_the_user_says_a_denial_is_one(
    proxy: Gateway, tools: ToolServer, state: str
) -> None:
    asked = await ask(proxy)
    proxy.authorizer.settle(escalation_of(asked), state)
    answer = await retry(proxy, asked)

    assert f"escalation_{state}" == answer["result"]["_meta"][META]["reason"]
    assert [] == tools.ran()


@pytest.mark.parametrize("hold", ["0"])
async def test_the_users_consent_alone_runs_nothing_and_after_ten_rounds_the_agent_calls_again(
    proxy: Gateway, tools: ToolServer
) -> None:
    answer = await ask(proxy)
    shown = [escalation_of(answer)]
    while answer["result"]["resultType"] == "input_required":
        shown.append(escalation_of(answer))
        answer = await retry(proxy, answer)

    assert (11, 1) == (len(shown), len(set(shown)))
    assert "approval_pending" == answer["result"]["_meta"][META]["reason"]
    assert [] == tools.ran()


@pytest.mark.parametrize("action", ["decline", "cancel"])
async def test_a_user_who_declines_ends_it(proxy: Gateway, tools: ToolServer, action: str) -> None:
    asked = await ask(proxy)
    escalation = escalation_of(asked)
    answer = await retry(proxy, asked, {"approval": {"action": action}})
    later = await retry(proxy, asked)

    assert "escalation_cancelled" == answer["result"]["_meta"][META]["reason"]
    assert "escalation_cancelled" == later["result"]["_meta"][META]["reason"]
    assert "cancelled" == proxy.authorizer.tickets[escalation].state
    (cancelled,) = proxy.authorizer.cancels
    assert (TENANT, AGENT, escalation) == (
        cancelled.tenant_id, cancelled.agent_id, cancelled.escalation_id,
    )  # fmt: skip
    assert [] == tools.ran()
    denied = proxy.records("call.denied")
    assert [escalation] * 2 == [one["approval"]["escalation"] for one in denied]


async def test_a_user_who_declines_what_is_approved_already_runs_nothing(
    proxy: Gateway, tools: ToolServer
) -> None:
    asked = await ask(proxy)
    proxy.authorizer.settle(escalation_of(asked), "approved")
    answer = await retry(proxy, asked, {"approval": {"action": "decline"}})

    assert "escalation_cancelled" == answer["result"]["_meta"][META]["reason"]
    assert [] == tools.ran()


async def test_a_state_serves_its_own_request_alone(proxy: Gateway, tools: ToolServer) -> None:
    agents = proxy.authorizer.snapshot["tenants"][TENANT]["agents"]
    other = "0199d0d0-0000-7000-8000-0000000000a2"
    await proxy.authorizer.publish(agents={**agents, other: {**agents[AGENT], "name": "other"}})
    await proxy.settled()
    asked = await ask(proxy)
    proxy.authorizer.settle(escalation_of(asked), "approved")
    state = asked["result"]["requestState"]
    flipped = altered(state, -2)
    before = len(proxy.authorizer.asks)
    continued = {"requestState": state, "inputResponses": ACCEPT}
    uri = {"uri": "file:///a", **continued}
    tool = {"name": "drop_notes", "arguments": {"call": "c"}, **continued}
    foreign = proxy.issuer.token(sub=other)
    refused = {
        "other arguments": await retry(proxy, asked, name="other"),
        "another tool": (await proxy.modern("tools/call", tool, capabilities=URLS))[1],
        "another method": (await proxy.modern("resources/read", uri, capabilities=URLS))[1],
        "another agent": await retry(proxy, asked, token=foreign),
        "altered": await retry(proxy, {"result": {"requestState": flipped}}),
        "forged": await retry(proxy, {"result": {"requestState": "b1.20000.AAAA"}}),
        "no text": await retry(proxy, {"result": {"requestState": {"a": 1}}}),
        "of another purpose": await retry(proxy, {"result": {"requestState": session_of(proxy)}}),
        "no answers": await retry(proxy, asked, {}),
        "an answer to nothing": await retry(proxy, asked, {"other": {"action": "accept"}}),
        "one answer too many": await retry(proxy, asked, {**ACCEPT, "other": {}}),
        "no action": await retry(proxy, asked, {"approval": {"content": {}}}),
        "an action that is no text": await retry(proxy, asked, {"approval": {"action": {}}}),
        "an unknown action": await retry(proxy, asked, {"approval": {"action": "approve"}}),
        "answers that are none": await ask(proxy, more={"inputResponses": None}),
        "no responses": await ask(proxy, more={"requestState": state}),
    }
    assert dict.fromkeys(refused, -32602) == {
        name: answer["error"]["code"] for name, answer in refused.items()
    }
    assert before == len(proxy.authorizer.asks)
    assert [] == tools.ran()
    assert len(refused) == len(proxy.records("call.rejected"))
    assert (await retry(proxy, asked))["result"]["isError"] is False


def session_of(proxy: Gateway) -> str:
    """A value that the proxy's own keys sealed, for something else."""
    seals = Seals.load(proxy.settings.seal_keys, SystemClock())
    return seals.seal("session", (TENANT, AGENT, "notes", "default"), b"\x96\xa1a\xa1b\x01\xa0\xa0")


async def test_a_state_ends_with_the_time_to_decide(proxy: Gateway, tools: ToolServer) -> None:
    proxy.authorizer.rules.decide_ms = 1
    asked = await ask(proxy)
    proxy.authorizer.settle(escalation_of(asked), "approved")

    assert -32602 == (await retry(proxy, asked))["error"]["code"]
    assert [] == tools.ran()


async def test_a_new_escalation_is_shown_before_it_is_waited_for(proxy: Gateway) -> None:
    asked = await ask(proxy)
    answer = asyncio.ensure_future(retry(proxy, asked))
    await until(lambda: proxy.running.waiting() == 1)
    proxy.authorizer.settle(escalation_of(asked), "superseded")
    shown = await answer

    assert "input_required" == shown["result"]["resultType"]
    assert escalation_of(asked) != escalation_of(shown)


async def test_other_methods_are_asked_for_too(proxy: Gateway) -> None:
    uri = {"uri": "file:///etc/passwd"}
    _, asked = await proxy.modern("resources/read", uri, capabilities=URLS)
    proxy.authorizer.settle(escalation_of(asked), "denied")
    more = {"requestState": asked["result"]["requestState"], "inputResponses": ACCEPT}
    _, denied = await proxy.modern("resources/read", {**uri, **more}, capabilities=URLS)

    assert (4030, "escalation_denied") == (
        denied["error"]["code"], denied["error"]["data"]["reason"],
    )  # fmt: skip
    first, second = proxy.authorizer.asks[-2:]
    assert (
        orjson.loads(first.request)["arguments_digest"]
        == (orjson.loads(second.request)["arguments_digest"])
    )


async def test_an_older_agent_continues_nothing(proxy: Gateway, tools: ToolServer) -> None:
    asked = await ask(proxy)
    proxy.authorizer.settle(escalation_of(asked), "approved")
    await proxy.post(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {}},
        }
    )
    params = {"name": "write_note", "arguments": {"call": "c"}, "inputResponses": ACCEPT,
              "requestState": asked["result"]["requestState"]}  # fmt: skip
    body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
    _, refused = await proxy.post(body, headers={"mcp-session-id": proxy.session})

    assert -32602 == refused["error"]["code"]
    assert [] == tools.ran()


async def test_what_waits_outlives_the_proxy(tmp_path: Path, tools: ToolServer) -> None:
    """The state of before the restart, and the same call without one."""
    assert tools.url is not None
    state, servers = tmp_path / "again", {"notes": http_server(tools.url)}
    async with aiohttp.ClientSession() as patient:
        async with gateway(state, servers, BEHAVRY_HOLD_SECONDS="20") as before:
            before.http = patient
            await before.offered("notes", "write_note")
            demand(before)
            asked = await ask(before, "shown")
            held = asyncio.ensure_future(before.call("write_note", {"call": "held"}))
            await until(lambda: before.running.waiting() == 1)
            tickets = before.authorizer.tickets
        _, pending = await held
    assert "approval_pending" == pending["result"]["_meta"][META]["reason"]
    async with gateway(state, servers) as after:
        after.authorizer.tickets = tickets
        await after.offered("notes", "write_note")
        demand(after)
        for escalation in tickets:
            after.authorizer.settle(escalation, "approved")
        shown = await retry(after, asked, name="shown")
        _, again = await after.call("write_note", {"call": "held"})

    assert [False, False] == [shown["result"]["isError"], again["result"]["isError"]]
    assert ["shown", "held"] == tools.ran()


OUTCOMES = {
    "approved": ("accept", "approved", ""),
    "denied": ("accept", "denied", "escalation_denied"),
    "declined": ("decline", "", "escalation_cancelled"),
    "dismissed": ("cancel", "", "escalation_cancelled"),
}


@pytest.mark.parametrize("mode", [wire.MODERN, "legacy"], ids=["modern", "legacy"])
@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
async def test_a_stock_client_shows_the_page_in_both_eras(
    proxy: Gateway, tools: ToolServer, mode: str, outcome: tuple[Any, str, str]
) -> None:
    action, state, reason = outcome

    def decide(escalation: str) -> None:
        if state:
            proxy.authorizer.settle(escalation, state)

    person = Person(action, decide)
    async with client(proxy, mode, person) as agent:
        answer = await agent.call_tool("write_note", {"call": "c"})

    (url,) = person.shown
    assert url.startswith(f"{ISSUER}/approve/")
    said = (answer.meta or {}).get(META, {}).get("reason", "")
    assert (reason, bool(reason)) == (said, answer.is_error)
    assert ([] if reason else ["c"]) == tools.ran()


@pytest.mark.parametrize("mode", [wire.MODERN, "legacy"], ids=["modern", "legacy"])
@pytest.mark.parametrize("hold", ["0.3"])
async def test_a_stock_client_that_shows_nothing_is_told_to_call_again(
    proxy: Gateway, tools: ToolServer, mode: str
) -> None:
    async with client(proxy, mode) as agent:
        pending = await agent.call_tool("write_note", {"call": "c"})
        assert pending.meta is not None
        proxy.authorizer.settle(pending.meta[META]["escalation_id"], "approved")
        answer = await agent.call_tool("write_note", {"call": "c"})

    assert pending.is_error
    assert "approval_pending" == pending.meta[META]["reason"]
    assert not answer.is_error
    assert ["c"] == tools.ran()
