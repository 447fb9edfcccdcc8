"""Calls that wait for a person on their open request (mcp.md 5.2, last row): an approval runs them
once, anything else never does.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from services.proxy.transports import reply
from tests.fakes.authorizer import AGENT, SESSION, TENANT
from tests.fakes.gateway import BOTH, Gateway, modern_request, until
from tests.fakes.tool_server import ToolServer

META = "com.behavry/decision"


@pytest.fixture(autouse=True)
def four_eyes(proxy: Gateway) -> None:
    proxy.authorizer.rules.verdicts["notes", "write_note"] = ("intercept", "four_eyes")
    proxy.authorizer.rules.verdicts["notes", ""] = ("intercept", "four_eyes")


def begun(proxy: Gateway, name: str = "c", **options: Any) -> asyncio.Task[tuple[int, Any]]:
    """A call that is sent and not waited for."""
    return asyncio.ensure_future(proxy.call("write_note", {"call": name}, **options))


async def waiting(proxy: Gateway, count: int = 1) -> str:
    """The newest escalation, once so many calls wait."""
    await until(lambda: proxy.running.waiting() == count)
    return list(proxy.authorizer.tickets)[-1]


async def test_an_approved_call_runs_once(proxy: Gateway, tools: ToolServer) -> None:
    call = begun(proxy)
    escalation = await waiting(proxy)
    assert [] == tools.ran()
    proxy.authorizer.settle(escalation, "approved")
    _, answer = await call

    assert not answer["result"].get("isError")
    assert ["c"] == tools.ran()
    held, intent, outcome = proxy.records("call.")
    approval = {"escalation": escalation, "codes": ["four_eyes"]}
    assert ("call.held", "intercept", "four_eyes") == (
        held["type"], held["verdict"], held["reason"],
    )  # fmt: skip
    assert ("call.intent", "allow") == (intent["type"], intent["verdict"])
    assert approval == held["approval"] == intent["approval"]
    assert held["id"] != intent["id"] == outcome["decision"]
    assert held["arguments"]["digest"] == intent["arguments"]["digest"]
    assert escalation == proxy.authorizer.asks[-1].escalation_id


ENDS = {
    "denied": "escalation_denied",
    "expired": "escalation_expired",
    "cancelled": "escalation_cancelled",
}


@pytest.mark.parametrize(("state", "reason"), ENDS.items())
async def test_a_call_that_is_not_approved_never_runs(
    proxy: Gateway, tools: ToolServer, state: str, reason: str
) -> None:
    call = begun(proxy)
    escalation = await waiting(proxy)
    proxy.authorizer.settle(escalation, state)
    _, answer = await call

    meta = answer["result"]["_meta"][META]
    assert ("deny", reason, escalation) == (
        meta["verdict"], meta["reason"], meta["escalation_id"],
    )  # fmt: skip
    assert [] == tools.ran()
    assert ["call.held", "call.denied"] == [one["type"] for one in proxy.records("call.")]
    assert escalation == proxy.records("call.denied")[0]["approval"]["escalation"]


@pytest.mark.parametrize("hold", ["0", "0.3"])
async def test_at_the_end_of_the_hold_the_agent_is_told_to_call_again(
    proxy: Gateway, tools: ToolServer
) -> None:
    _, first = await proxy.call("write_note", {"call": "c"})
    meta = first["result"]["_meta"][META]
    proxy.authorizer.settle(meta["escalation_id"], "approved")
    _, other = await proxy.call("write_note", {"call": "other"})
    _, again = await proxy.call("write_note", {"call": "c"})
    _, once_more = await proxy.call("write_note", {"call": "c"})

    assert first["result"]["isError"] is True
    assert ("intercept", "approval_pending", True) == (
        meta["verdict"], meta["reason"], meta["retryable"],
    )  # fmt: skip
    assert meta["retry_after_ms"] > 0
    assert "approval_pending" == other["result"]["_meta"][META]["reason"]
    assert not again["result"].get("isError")
    assert "approval_pending" == once_more["result"]["_meta"][META]["reason"]
    assert ["c"] == tools.ran()


@pytest.mark.parametrize("hold", ["0"])
async def test_other_methods_are_told_in_an_error(proxy: Gateway) -> None:
    _, answer = await proxy.modern("resources/read", {"uri": "file:///etc/passwd"})

    error = answer["error"]
    assert (4230, "approval_pending") == (error["code"], error["data"]["reason"])
    assert error["data"]["escalation_id"] in proxy.authorizer.tickets


async def test_the_wait_is_in_the_chain_once_however_often_the_call_is_woken(
    proxy: Gateway, tools: ToolServer
) -> None:
    call = begun(proxy)
    escalation = await waiting(proxy)
    asked = len(proxy.authorizer.asks)
    for _ in range(3):
        proxy.authorizer.revoke()
        asked += 1
        await proxy.authorizer.asked(asked)
    proxy.authorizer.settle(escalation, "approved")
    await call

    assert 1 == len(proxy.records("call.held"))
    assert ["c"] == tools.ran()


async def test_a_revoked_agents_held_call_is_denied_and_anothers_waits_on(
    proxy: Gateway, tools: ToolServer
) -> None:
    call = begun(proxy)
    escalation = await waiting(proxy)
    asked = len(proxy.authorizer.asks)
    proxy.authorizer.revoke(agents=["0199d0d0-0000-7000-8000-0000000000ff"])
    proxy.authorizer.revoke(tenant="0199d0d0-0000-7000-8000-0000000000fe")
    proxy.authorizer.rules.agents[AGENT] = "agent_suspended"
    proxy.authorizer.revoke(agents=[AGENT])
    _, answer = await call
    proxy.authorizer.settle(escalation, "approved")

    assert asked + 1 == len(proxy.authorizer.asks)
    assert "agent_suspended" == answer["result"]["_meta"][META]["reason"]
    assert [] == tools.ran()


async def test_a_superseded_escalation_is_followed_by_the_new_one(
    proxy: Gateway, tools: ToolServer
) -> None:
    call = begun(proxy)
    first = await waiting(proxy)
    proxy.authorizer.settle(first, "superseded")
    await proxy.authorizer.asked(2)
    second = await waiting(proxy)
    proxy.authorizer.settle(first, "approved")  # too late: nobody waits for it
    assert [] == tools.ran()
    proxy.authorizer.settle(second, "approved")
    await call

    assert first != second
    assert [first, second] == [one["approval"]["escalation"] for one in proxy.records("call.held")]
    assert ["c"] == tools.ran()


async def test_news_that_overtakes_the_verdict_is_not_lost(
    proxy: Gateway, tools: ToolServer
) -> None:
    """The approval is heard before the verdict that says there is something to approve."""

    def approved_meanwhile(verdict: Any) -> Any:
        if verdict.decision.escalation.state == "pending":
            proxy.authorizer.twist = None
            proxy.authorizer.settle(verdict.decision.escalation.id, "approved")
        return verdict

    proxy.authorizer.twist = approved_meanwhile
    _, answer = await proxy.call("write_note", {"call": "c"})

    assert not answer["result"].get("isError")
    assert ["c"] == tools.ran()


async def test_what_changed_while_the_authorizer_was_away_is_asked_for_when_it_is_back(
    proxy: Gateway, tools: ToolServer
) -> None:
    call = begun(proxy)
    escalation = await waiting(proxy)
    proxy.authorizer.tickets[escalation].state = "approved"  # and nobody was told
    proxy.authorizer.tickets[escalation].uses = 1
    proxy.authorizer.hang_up()
    _, answer = await call

    assert not answer["result"].get("isError")
    assert ["c"] == tools.ran()


@pytest.mark.parametrize("hold", ["1"])
async def test_without_an_authorizer_a_held_call_is_pending_and_never_runs(
    proxy: Gateway, tools: ToolServer
) -> None:
    call = begun(proxy)
    escalation = await waiting(proxy)
    proxy.authorizer.silent = True
    proxy.authorizer.settle(escalation, "approved")
    _, answer = await call

    assert "approval_pending" == answer["result"]["_meta"][META]["reason"]
    assert [] == tools.ran()
    assert 1 == len(proxy.records("call."))


async def test_of_twenty_callers_one_approval_serves_one(proxy: Gateway, tools: ToolServer) -> None:
    calls = [begun(proxy) for _ in range(20)]
    escalation = await waiting(proxy, 20)
    proxy.authorizer.settle(escalation, "approved")
    await proxy.authorizer.asked(20 + 20)
    await asyncio.wait(calls, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    await waiting(proxy, 19)
    for call in calls:
        if not call.done():
            call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)

    assert ["c"] == tools.ran()
    assert 1 == len({one["approval"]["escalation"] for one in proxy.records("call.intent")})


async def test_a_grant_of_several_uses_serves_as_many_calls(
    proxy: Gateway, tools: ToolServer
) -> None:
    call = begun(proxy)
    proxy.authorizer.settle(await waiting(proxy), "approved", uses=3)
    await call
    await proxy.call("write_note", {"call": "c"})
    await proxy.call("write_note", {"call": "c"})
    fourth = begun(proxy)
    await waiting(proxy)
    fourth.cancel()

    assert ["c", "c", "c"] == tools.ran()


@asynccontextmanager
async def streaming(
    proxy: Gateway, meta: dict[str, Any] | None = None
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The lines of the answer as they come."""
    params = {"name": "write_note", "arguments": {"call": "c"}}
    body, headers = modern_request("tools/call", params, {}, meta or {})
    async with proxy.sending(body, headers=headers) as response:
        assert "text/event-stream" == response.content_type
        assert "no" == response.headers["x-accel-buffering"]
        yield aiter(response.content)


async def test_a_hold_is_an_event_stream_from_its_beginning(proxy: Gateway) -> None:
    async with streaming(proxy) as lines:
        first = await anext(lines)
        proxy.authorizer.settle(await waiting(proxy), "denied")
        rest = [line async for line in lines]

    assert b":\n" == first
    assert b"event: message\n" in rest
    assert b"escalation_denied" in rest[-2]


async def test_progress_goes_to_whoever_gave_a_token_for_it(proxy: Gateway) -> None:
    async with streaming(proxy, {"progressToken": "p1"}) as lines:
        while not (line := await anext(lines)).startswith(b"data: "):
            pass
        progress = orjson.loads(line[6:])
        proxy.authorizer.settle(await waiting(proxy), "denied")

    assert "notifications/progress" == progress["method"]
    assert ("p1", 20) == (progress["params"]["progressToken"], progress["params"]["total"])


async def test_an_agent_that_left_runs_nothing_and_its_ticket_stays(
    proxy: Gateway, tools: ToolServer
) -> None:
    async with streaming(proxy):
        escalation = await waiting(proxy)
    # The proxy hears of it: the next approval wakes nobody.
    await until(lambda: proxy.running.waiting() == 0)
    asked = len(proxy.authorizer.asks)
    proxy.authorizer.settle(escalation, "approved")
    _, answer = await proxy.call("write_note", {"call": "c"})

    assert asked + 1 == len(proxy.authorizer.asks)
    assert not answer["result"].get("isError")
    assert ["c"] == tools.ran()
    assert 1 == len(proxy.records("call.intent"))


async def test_a_call_whose_server_went_away_is_denied(proxy: Gateway, tools: ToolServer) -> None:
    call = begun(proxy)
    escalation = await waiting(proxy)
    agents = proxy.authorizer.snapshot["tenants"][TENANT]["agents"]
    await proxy.authorizer.publish(agents={**agents, AGENT: {**agents[AGENT], "servers": []}})
    await proxy.settled()
    proxy.authorizer.settle(escalation, "approved")
    _, answer = await call

    assert "unknown_server" == answer["result"]["_meta"][META]["reason"]
    assert [] == tools.ran()


async def test_another_agents_identical_call_is_another_matter(
    proxy: Gateway, tools: ToolServer
) -> None:
    agents = proxy.authorizer.snapshot["tenants"][TENANT]["agents"]
    other = "0199d0d0-0000-7000-8000-0000000000a2"
    await proxy.authorizer.publish(agents={**agents, other: {**agents[AGENT], "name": "other"}})
    await proxy.settled()
    call = begun(proxy)
    escalation = await waiting(proxy)
    token = proxy.issuer.token(sub=other, sid=SESSION[:-1] + "f")
    foreign = begun(proxy, token=token)
    second = await waiting(proxy, 2)
    proxy.authorizer.settle(escalation, "approved")
    await call
    proxy.authorizer.settle(second, "denied")
    _, answer = await foreign

    assert escalation != second
    assert "escalation_denied" == answer["result"]["_meta"][META]["reason"]
    assert ["c"] == tools.ran()


async def test_a_body_that_comes_slowly_is_read_whole(
    proxy: Gateway, tools: ToolServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fifteen seconds are over before it has come, and begin again then."""
    monkeypatch.setattr(reply, "WATCH_S", 0.0)
    monkeypatch.setattr(reply, "PATIENCE_S", 0.0)
    body, headers = modern_request(
        "tools/call", {"name": "read_note", "arguments": {"call": "slow"}}, {}, {}
    )
    raw = orjson.dumps(body)

    async def slowly() -> AsyncIterator[bytes]:
        yield raw[:20]
        await proxy.modern("server/discover")
        yield raw[20:]

    sent = {"authorization": f"Bearer {proxy.issuer.token()}", "accept": BOTH,
            "content-type": "application/json", **headers}  # fmt: skip
    async with proxy.http.post(proxy.mcp(), data=slowly(), headers=sent) as response:
        content = await response.read()

    assert 1 == content.count(b"slow read_note")
    assert ["slow"] == tools.ran()
