"""Resources that agents hear of when they change: each is decided on, like a read."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.authorizer import AGENT
from tests.fakes.gateway import Gateway, gateway, http_server, until
from tests.fakes.listening import got, listening
from tests.fakes.talker import SUBSCRIPTION_META, Talker

ERAS = ["modern", "legacy"]
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
UPDATED = "notifications/resources/updated"
MINE, OTHER = "file:///mine", "file:///other"


@pytest.fixture
async def proxy(tmp_path: Path, talker: Talker) -> AsyncIterator[Gateway]:
    servers = {"notes": http_server(talker.url)}
    async with gateway(tmp_path / "state", servers, BEHAVRY_HOLD_SECONDS="0.2") as made:
        await made.offered("notes", "talk")
        await made.modern("tools/list")
        made.forget_records()
        yield made


async def asked(proxy: Gateway, sent: dict[str, str], method: str, uri: Any = MINE) -> Any:
    body = {"jsonrpc": "2.0", "id": 5, "method": method, "params": {"uri": uri}}
    _, answer = await proxy.post(body, headers=sent)
    return answer


def only(talker: Talker, proxy: Gateway, era: str) -> None:
    talker.eras = {era}
    proxy.forget_upstreams()


@pytest.mark.parametrize("upstream", ERAS)
async def test_a_legacy_agent_hears_of_what_it_subscribed_to(
    proxy: Gateway, talker: Talker, upstream: str
) -> None:
    only(talker, proxy, upstream)
    sent = await proxy.open_session()
    async with got(proxy, sent) as stream:
        await stream.opened()
        heard = await talker.listen()
        subscribed = await asked(proxy, sent, "resources/subscribe")
        if upstream == "modern":  # a stream of its own, beside the one for lists
            heard = await talker.listen()
            assert [MINE] == heard.params["notifications"]["resourceSubscriptions"]
        else:
            assert MINE == (await talker.told("resources/subscribe"))["params"]["uri"]
        heard.note(UPDATED, {"uri": OTHER})
        heard.note(UPDATED, {"uri": MINE, "title": "Mine"})
        told = await stream.next()
        unsubscribed = await asked(proxy, sent, "resources/unsubscribe")
        heard.note(UPDATED, {"uri": MINE})
        if upstream == "modern":
            await heard.gone.wait()
        else:
            await talker.told("resources/unsubscribe")
        after = stream.now()

    assert {} == subscribed["result"] == unsubscribed["result"]
    assert {"uri": MINE, "title": "Mine"} == told.message["params"]
    assert [] == after
    assert ["resources/subscribe"] == [one["method"] for one in proxy.records("call.intent")]
    assert ["ok"] == [one["status"] for one in proxy.records("call.outcome")]


@pytest.mark.parametrize("upstream", ERAS)
async def test_a_denied_subscription_reaches_nobody(
    proxy: Gateway, talker: Talker, upstream: str
) -> None:
    only(talker, proxy, upstream)
    sent = await proxy.open_session()
    proxy.authorizer.rules.agents[AGENT] = "not_permitted"
    async with got(proxy, sent) as stream:
        await stream.opened()
        heard = await talker.listen()
        refused = await asked(proxy, sent, "resources/subscribe")
        heard.note(UPDATED, {"uri": MINE})
        heard.note("notifications/prompts/list_changed")
        told = await stream.next()

    assert 4030 == refused["error"]["code"]
    assert "notifications/prompts/list_changed" == told.message["method"]
    assert [] == talker.of("resources/subscribe")
    assert ["call.denied"] == [one["type"] for one in proxy.records("call.")]


@pytest.mark.parametrize("upstream", ERAS)
async def test_a_modern_agent_names_them_when_it_listens(
    proxy: Gateway, talker: Talker, upstream: str
) -> None:
    only(talker, proxy, upstream)
    async with listening(proxy, {"resourceSubscriptions": [MINE, MINE, OTHER]}) as stream:
        first = await stream.next()
        streams = [await talker.listen()]
        if upstream == "modern":
            streams.append(await talker.listen())
            (heard,) = [
                one
                for one in streams
                if "resourceSubscriptions" in one.params.get("notifications", {})
            ]
        else:
            (heard,) = streams
            await talker.told("resources/subscribe", 2)
        heard.note(UPDATED, {"uri": "file:///third"})
        heard.note(UPDATED, {"uri": OTHER, "_meta": {SUBSCRIPTION_META: heard.message.get("id")}})
        told = await stream.next()
    if upstream == "legacy":  # on the agent's pooled session nobody hears of them any more
        await talker.told("resources/unsubscribe", 2)

    assert {"resourceSubscriptions": [MINE, OTHER]} == first.message["params"]["notifications"]
    assert {"uri": OTHER, "_meta": {SUBSCRIPTION_META: "sub-1"}} == told.message["params"]
    assert ["/mine", "/other"] == [one["resource"] for one in proxy.records("call.intent")]


async def test_what_may_not_be_heard_of_is_not_acknowledged(proxy: Gateway, talker: Talker) -> None:
    proxy.authorizer.rules.agents[AGENT] = "not_permitted"
    wanted = {"resourceSubscriptions": [MINE], "promptsListChanged": True}
    async with listening(proxy, wanted) as stream:
        acknowledged = await stream.next()
    async with listening(proxy, {"resourceSubscriptions": [MINE]}) as stream:
        refused = await stream.next()

    assert {"promptsListChanged": True} == acknowledged.message["params"]["notifications"]
    assert (4030, "sub-1") == (refused.message["error"]["code"], refused.message["id"])
    assert 2 == len(proxy.records("call.denied"))


async def test_what_policy_takes_away_is_heard_of_no_more(proxy: Gateway, talker: Talker) -> None:
    """The update that comes under another revision is decided on anew, and recorded."""
    async with listening(proxy, {"resourceSubscriptions": [MINE]}) as stream:
        await stream.next(ACKNOWLEDGED)
        await talker.listen()
        heard = await talker.listen()
        await proxy.authorizer.publish()
        await proxy.settled()
        heard.note(UPDATED, {"uri": MINE})
        assert UPDATED == (await stream.next()).message["method"]
        proxy.authorizer.rules.agents[AGENT] = "not_permitted"
        await proxy.authorizer.publish()
        await proxy.settled()
        heard.note(UPDATED, {"uri": MINE})
        await proxy.recorded("call.denied")
        await until(heard.gone.is_set)

        assert [] == stream.now()
    assert 2 == len(proxy.records("call.intent"))


async def test_what_was_not_heard_of_rights_is_asked_about(proxy: Gateway, talker: Talker) -> None:
    """The authorizer was away: what it took away meanwhile, it could not say."""
    streams = proxy.running.counters.counter("proxy.decide.streams")
    async with listening(proxy, {"resourceSubscriptions": [MINE]}) as stream:
        await stream.next(ACKNOWLEDGED)
        await talker.listen()
        heard = await talker.listen()
        known = streams.value
        proxy.authorizer.rules.agents[AGENT] = "killed"
        proxy.authorizer.hang_up()
        await until(lambda: streams.value > known)
        heard.note(UPDATED, {"uri": MINE})
        await proxy.recorded("call.denied")
        await until(heard.gone.is_set)

        assert [] == stream.now()


async def test_one_that_waits_for_a_person_is_named(proxy: Gateway, talker: Talker) -> None:
    proxy.authorizer.rules.verdicts["notes", ""] = ("intercept", "four_eyes")
    async with listening(proxy, {"resourceSubscriptions": [MINE]}) as stream:
        refused = await stream.next()
    (ticket,) = proxy.authorizer.tickets
    proxy.authorizer.settle(ticket, "approved")
    async with listening(proxy, {"resourceSubscriptions": [MINE]}) as stream:
        acknowledged = await stream.next()

    assert (4230, ticket) == (
        refused.message["error"]["code"], refused.message["error"]["data"]["escalation_id"],
    )  # fmt: skip
    assert ACKNOWLEDGED == acknowledged.message["method"]


async def test_there_are_so_many_for_a_session(proxy: Gateway, talker: Talker) -> None:
    sent = await proxy.open_session()
    answers = [
        await asked(proxy, sent, "resources/subscribe", f"file:///{number}") for number in range(65)
    ]

    assert 64 == sum("result" in one for one in answers)
    assert 4290 == answers[-1]["error"]["code"]
    again = await asked(proxy, sent, "resources/subscribe", "file:///3")
    await asked(proxy, sent, "resources/unsubscribe", "file:///3")
    other = await asked(proxy, sent, "resources/subscribe", "file:///65")
    assert ({}, {}) == (again["result"], other["result"])


async def test_a_modern_agent_has_no_such_methods(proxy: Gateway, talker: Talker) -> None:
    for method in ("resources/subscribe", "resources/unsubscribe"):
        status, answer = await proxy.modern(method, {"uri": MINE})
        assert (404, -32601) == (status, answer["error"]["code"])
