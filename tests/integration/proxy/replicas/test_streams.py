"""Streams and sessions of legacy agents at two proxies (mcp.md 7, 9)."""

import asyncio
from typing import Any

import pytest

from tests.fakes.asking import ask_until
from tests.fakes.authorizer import OTHER_AGENT
from tests.fakes.gateway import Gateway, until
from tests.fakes.listening import calling, got
from tests.fakes.replicas import Two, alone
from tests.fakes.talker import Exchange, Talker
from tests.integration.proxy.test_subscriptions import MINE, OTHER, UPDATED, asked
from tests.promises import promise

pytestmark = pytest.mark.needs_valkey
CALL: dict[str, Any] = {
    "jsonrpc": "2.0", "id": "c1", "method": "tools/call",
    "params": {"name": "talk", "arguments": {}, "_meta": {"progressToken": "p"}},
}  # fmt: skip


# --- the rest of a call -------------------------------------------------------------------------


async def left(proxy: Gateway, talker: Talker, sent: dict[str, str]) -> tuple[str, Exchange, Any]:
    """A call whose stream the server ended: where to come back for it."""
    async with calling(proxy, CALL, sent) as stream:
        call = await talker.call()
        call.prime("up-1", retry_ms=100)
        call.end()
        first, *_ = await stream.rest()
    return first.id, await talker.listen(), call


@promise("proxies:no-sticky-routing")
async def test_the_rest_of_a_call_is_come_back_for_at_the_other(
    talking: Two, talker: Talker
) -> None:
    sent, other = await talking.one.open_session(), await talking.one.open_session()
    foreign = talking.one.issuer.token(sub=OTHER_AGENT)
    theirs = await talking.other.open_session(token=foreign)
    event, again, call = await left(talking.one, talker, sent)
    refused = []
    for headers, token in ((other, None), (theirs, foreign)):
        async with got(talking.other, headers, token=token, last=event) as stream:
            refused.append(await stream.opened())
    async with got(talking.other, sent, last=event) as stream:
        await stream.opened()
        token = call.meta["progressToken"]
        again.note("notifications/progress", {"progressToken": token, "progress": 1})
        told = await stream.next()
        again.raw({"jsonrpc": "2.0", "id": call.message["id"], "result": {"content": []}})
        again.end()
        answer, *rest = await stream.rest()
    async with got(talking.one, sent, last=told.id) as stream:
        repeated = await stream.rest()

    assert [400, 400] == refused
    assert "p" == told.message["params"]["progressToken"]
    assert ("c1", {"content": []}) == (answer.message["id"], answer.message["result"])
    assert ([], [answer.message]) == (rest, [one.message for one in repeated])
    assert ["ok"] == [one["status"] for one in talking.one.records("call.outcome")]


async def test_a_rest_whose_process_is_gone_is_not_there(talking: Two, talker: Talker) -> None:
    async with alone(talking) as third:
        sent = await third.open_session()
        event, again, call = await left(third, talker, sent)
        again.raw({"jsonrpc": "2.0", "id": call.message["id"], "result": {"content": []}})
        again.end()
        await third.recorded("call.outcome")

    async def status() -> int:
        async with got(talking.other, sent, last=event) as stream:
            return await stream.opened()

    assert 400 == await ask_until(status, lambda found: found == 400)


# --- calls that are given up --------------------------------------------------------------------


async def give_up(proxy: Gateway, headers: dict[str, str], id: str) -> tuple[int, Any]:
    note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}
    return await proxy.post(note, headers=headers)


@promise("proxies:no-sticky-routing")
async def test_a_call_that_is_given_up_at_the_other_is_cancelled(
    talking: Two, talker: Talker
) -> None:
    sent, second = await talking.one.open_session(), await talking.one.open_session()
    foreign = talking.one.issuer.token(sub=OTHER_AGENT)
    theirs = await talking.other.open_session(token=foreign)
    async with calling(talking.one, CALL, sent) as stream:
        call = await talker.call()
        await give_up(talking.other, second, "c1")
        status, _ = await talking.other.post(
            {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "c1"}},
            headers=theirs,
            token=foreign,
        )
        await give_up(talking.other, sent, "c2")
        call.progress(1)
        await stream.next("notifications/progress")  # nobody's word but its agent's counts
        accepted = await give_up(talking.other, sent, "c1")
        rest = await stream.rest()

    assert (202, (202, None)) == (status, accepted)
    assert [] == rest
    told = await talker.told("notifications/cancelled")
    assert call.message["id"] == told["params"]["requestId"]
    assert ["cancelled"] == [one["status"] for one in talking.one.records("call.outcome")]


# --- resources ----------------------------------------------------------------------------------


@pytest.fixture(params=["legacy", "modern"])
def era(request: pytest.FixtureRequest, talking: Two, talker: Talker) -> str:
    talker.eras = {request.param}
    for proxy in (talking.one, talking.other):
        proxy.forget_upstreams()
    return str(request.param)


async def heard_on(talker: Talker, era: str) -> Exchange:
    """Where the server speaks of resources: at a modern one that is a stream of its own."""
    while True:
        heard = await talker.listen()
        if era == "legacy" or heard.params["notifications"].get("resourceSubscriptions"):
            return heard


@promise("proxies:no-sticky-routing")
async def test_what_is_subscribed_to_at_the_other_is_heard_of_and_decided_on_here(
    talking: Two, talker: Talker, era: str
) -> None:
    sent = await talking.one.open_session()
    async with got(talking.one, sent) as stream:
        await stream.opened()
        heard = await talker.listen()
        subscribed = await asked(talking.other, sent, "resources/subscribe")
        if era == "modern":
            heard = await heard_on(talker, era)
            assert [MINE] == heard.params["notifications"]["resourceSubscriptions"]
        heard.note(UPDATED, {"uri": OTHER})
        heard.note(UPDATED, {"uri": MINE, "title": "Mine"})
        told = await stream.next(UPDATED)
        unsubscribed = await asked(talking.other, sent, "resources/unsubscribe")
        if era == "modern":
            await heard.gone.wait()
        else:
            await talker.told("resources/unsubscribe")
        heard.note(UPDATED, {"uri": MINE})
        if era == "legacy":
            heard.note("notifications/prompts/list_changed")
            after = await stream.next()
            assert "notifications/prompts/list_changed" == after.message["method"]

    assert {} == subscribed["result"] == unsubscribed["result"]
    assert {"uri": MINE, "title": "Mine"} == told.message["params"]
    # Once where it was asked for, and once where it was heard of.
    assert ["resources/subscribe"] == [
        one["method"] for one in talking.other.records("call.intent")
    ]
    assert ["resources/subscribe"] == [one["method"] for one in talking.one.records("call.intent")]


async def test_a_stream_that_opens_later_hears_of_what_was_subscribed_to_elsewhere(
    talking: Two, talker: Talker, era: str
) -> None:
    sent = await talking.one.open_session()
    await asked(talking.other, sent, "resources/subscribe")
    await asked(talking.other, sent, "resources/subscribe", OTHER)
    await asked(talking.one, sent, "resources/unsubscribe", OTHER)
    async with got(talking.one, sent) as stream:
        await stream.opened()
        heard = await heard_on(talker, era)
        heard.note(UPDATED, {"uri": OTHER})
        heard.note(UPDATED, {"uri": MINE})
        told = await stream.next(UPDATED)

    assert {"uri": MINE} == told.message["params"]


async def test_what_may_not_be_heard_of_any_more_is_not_although_it_was_allowed_elsewhere(
    talking: Two, talker: Talker
) -> None:
    sent = await talking.one.open_session()
    await asked(talking.other, sent, "resources/subscribe")
    talking.one.authorizer.rules.agents[sent_by(talking)] = "not_permitted"
    refused = await asked(talking.other, sent, "resources/subscribe", OTHER)
    async with got(talking.one, sent) as stream:
        await stream.opened()
        heard = await talker.listen()
        for uri in (MINE, OTHER):
            heard.note(UPDATED, {"uri": uri})
        await talking.one.recorded("call.denied")
        heard.note("notifications/prompts/list_changed")
        told = await stream.next()

    assert 4030 == refused["error"]["code"]
    assert "notifications/prompts/list_changed" == told.message["method"]


def sent_by(pair: Two) -> str:
    return pair.one.agent


# --- streams and sessions -----------------------------------------------------------------------


async def test_a_stream_at_the_other_takes_the_place_of_the_first(
    talking: Two, talker: Talker
) -> None:
    sent, second = await talking.one.open_session(), await talking.one.open_session()
    async with got(talking.one, sent) as first, got(talking.one, second) as another:
        await first.opened()
        await another.opened()
        async with got(talking.other, sent) as newer:
            await newer.opened()
            assert [] == await first.rest()
            assert (1, 1) == (
                talking.one.running.listening(), talking.other.running.listening(),
            )  # fmt: skip


@promise("proxies:no-sticky-routing")
async def test_a_session_that_ended_at_one_is_over_at_the_other(
    talking: Two, talker: Talker
) -> None:
    sent, second = await talking.one.open_session(), await talking.one.open_session()
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    async with got(talking.one, sent) as stream, got(talking.one, second) as another:
        await stream.opened()
        await another.opened()
        async with talking.other.http.delete(
            talking.other.mcp(),
            headers={"authorization": f"Bearer {talking.one.issuer.token()}", **sent},
        ) as deleted:
            pass
        assert [] == await stream.rest()
        statuses = [
            (await proxy.post(ping, headers=headers))[0]
            for headers in (sent, second)
            for proxy in (talking.one, talking.other)
        ]
        async with got(talking.one, sent) as none:
            refused = await none.opened()
        assert 1 == talking.one.running.listening()

    assert 204 == deleted.status
    assert ([404, 404, 200, 200], 404) == (statuses, refused)
    async with alone(talking) as third:  # which was not there when it was told
        assert 404 == (await third.post(ping, headers=sent))[0]
        assert 200 == (await third.post(ping, headers=second))[0]


async def test_a_session_is_as_loud_at_the_other_as_it_said(talking: Two, talker: Talker) -> None:
    talker.eras = {"modern"}
    for proxy in (talking.one, talking.other):
        proxy.forget_upstreams()
    met, unmet, silent = [await talking.one.open_session() for _ in range(3)]
    await talking.other.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers=met)
    for sent in (met, unmet):
        body = {"jsonrpc": "2.0", "id": 1, "method": "logging/setLevel",
                "params": {"level": "warning"}}  # fmt: skip
        assert "result" in (await talking.one.post(body, headers=sent))[1]
    levels = []
    for sent in (met, unmet, silent):
        async with calling(talking.other, CALL, sent) as stream:
            call = await talker.call()
            levels.append(call.meta.get("io.modelcontextprotocol/logLevel"))
            call.answer()
            await stream.rest()

    assert ["warning", "warning"] == levels[:2]
    assert "warning" != levels[2]


async def test_another_agents_session_ends_nowhere(talking: Two) -> None:
    sent = await talking.one.open_session()
    foreign = talking.one.issuer.token(sub=OTHER_AGENT)
    async with talking.other.http.delete(
        talking.other.mcp(), headers={"authorization": f"Bearer {foreign}", **sent}
    ) as refused:
        pass
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    statuses = await asyncio.gather(
        *(proxy.post(ping, headers=sent) for proxy in (talking.one, talking.other))
    )

    assert 404 == refused.status
    assert [200, 200] == [status for status, _ in statuses]
    await until(lambda: bool(talking.other.records("call.rejected")))
