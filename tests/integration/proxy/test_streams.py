"""Streams that agents keep open: GET of a legacy session, `subscriptions/listen` of the others."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from services.proxy.streams.feeding import Feed, Feeding
from services.proxy.transports import reply
from tests.altered import altered
from tests.fakes.authorizer import AGENT, OTHER_AGENT, SESSION
from tests.fakes.gateway import BOTH, Gateway, gateway, http_server, modern_request, until
from tests.fakes.listening import calling, got, listening
from tests.fakes.raw_http import connected, request
from tests.fakes.talker import SUBSCRIPTION_META, Talker

ERAS = ["modern", "legacy"]
TOOLS = "notifications/tools/list_changed"
PROMPTS = "notifications/prompts/list_changed"
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"


@pytest.fixture
def proxy(two_agents: Gateway) -> Gateway:
    return two_agents


async def ready(proxy: Gateway, talker: Talker, upstream: str) -> None:
    talker.eras = {upstream}
    await proxy.offered("notes", "talk")
    await proxy.modern("tools/list")
    proxy.forget_records()


async def pinned_anew(proxy: Gateway, *tools: str) -> None:
    for tool in tools:
        await proxy.authorizer.seen("notes", tool)
    await proxy.authorizer.approve("notes", *tools)
    await proxy.settled()


# --- who may listen -----------------------------------------------------------------------------


async def test_a_stream_needs_a_session(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "legacy")
    sent = await proxy.open_session()
    bad = {"mcp-session-id": altered(sent["mcp-session-id"], -3)}
    modern = {**sent, "mcp-protocol-version": "2026-07-28"}
    async with got(proxy, {}) as none, got(proxy, modern) as other, got(proxy, bad) as forged:
        assert [405, 405, 404] == [
            await none.opened(), await other.opened(), await forged.opened(),
        ]  # fmt: skip
    theirs = proxy.issuer.token(sub=OTHER_AGENT)
    async with got(proxy, sent, token=theirs) as foreign, got(proxy, sent) as mine:
        assert [404, 200] == [await foreign.opened(), await mine.opened()]


async def test_there_are_sixteen_for_an_agent_and_no_more(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "modern")
    async with asyncio.TaskGroup() as group:
        leave = asyncio.Event()

        async def stay(number: int) -> None:
            async with listening(proxy, {"toolsListChanged": True}, id=f"s{number}") as stream:
                await stream.next(ACKNOWLEDGED)
                await leave.wait()

        for number in range(16):
            group.create_task(stay(number))
        await until(lambda: proxy.running.listening() == 16)
        async with listening(proxy, {"toolsListChanged": True}) as stream:
            refused = await stream.next()
        async with got(proxy, await proxy.open_session()) as stream:
            assert 429 == await stream.opened()
        theirs = proxy.issuer.token(sub=OTHER_AGENT)
        async with listening(proxy, {"toolsListChanged": True}, token=theirs) as stream:
            assert ACKNOWLEDGED == (await stream.next()).message["method"]
        leave.set()
    await until(lambda: proxy.running.listening() == 0)
    async with listening(proxy, {"toolsListChanged": True}) as stream:
        taken = await stream.next()

    assert 4290 == refused.message["error"]["code"]
    assert "rate_limited" == proxy.records("call.rejected")[-1]["reason"]
    assert ACKNOWLEDGED == taken.message["method"]


# --- what comes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("upstream", ERAS)
async def test_it_is_acknowledged_first_and_everything_names_it(
    proxy: Gateway, talker: Talker, upstream: str
) -> None:
    await ready(proxy, talker, upstream)
    async with listening(proxy, {"promptsListChanged": True}, id=77) as stream:
        first = await stream.next()
        heard = await talker.listen()
        heard.note("notifications/resources/list_changed")
        heard.note("notifications/message", {"level": "error", "data": "x"})
        heard.note(PROMPTS, {"_meta": {SUBSCRIPTION_META: heard.message.get("id")}})
        second = await stream.next()

    assert (ACKNOWLEDGED, PROMPTS) == (first.message["method"], second.message["method"])
    assert {"promptsListChanged": True} == first.message["params"]["notifications"]
    assert [77, 77] == [
        one.message["params"]["_meta"][SUBSCRIPTION_META] for one in (first, second)
    ]


@pytest.mark.parametrize("upstream", ERAS)
@pytest.mark.parametrize("agent", ERAS)
async def test_a_list_changed_for_who_sees_another_one(
    proxy: Gateway, talker: Talker, agent: str, upstream: str
) -> None:
    """A new tool is hidden until it is approved: neither the server's word nor a hidden tool is
    anything to an agent, the approval is.
    """
    await ready(proxy, talker, upstream)
    opened = (
        listening(proxy, {"toolsListChanged": True})
        if agent == "modern"
        else got(proxy, await proxy.open_session())
    )
    async with opened as stream:
        await stream.opened()
        heard = await talker.listen()
        asked = len(talker.of("tools/list"))
        talker.tools.append("hidden")
        heard.note(TOOLS)
        await talker.told("tools/list", asked + 1)
        await proxy.authorizer.seen("notes", "hidden")
        await proxy.authorizer.publish()
        await proxy.settled()
        seen = [one for one in stream.now() if one["method"] == TOOLS]
        await pinned_anew(proxy, "hidden")
        told = await stream.next(TOOLS)
        talker.tools.remove("talk")
        heard.note(TOOLS)
        again = await stream.next(TOOLS)

    assert [] == seen
    assert TOOLS == told.message["method"] == again.message["method"]


async def test_agents_share_a_stream_to_a_modern_server(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "modern")
    theirs = proxy.issuer.token(sub=OTHER_AGENT)
    everything = {"promptsListChanged": True, "toolsListChanged": True}
    async with (
        listening(proxy, everything, id="mine") as mine,
        listening(proxy, {"promptsListChanged": True}, id="theirs", token=theirs) as other,
        got(proxy, await proxy.open_session()) as third,
    ):
        await mine.next(ACKNOWLEDGED)
        await other.next(ACKNOWLEDGED)
        await third.opened()
        heard = await talker.listen()
        await until(lambda: proxy.running.listening() == 3)
        heard.note(PROMPTS)
        ids = [
            (await one.next(PROMPTS)).message["params"].get("_meta", {}).get(SUBSCRIPTION_META)
            for one in (mine, other, third)
        ]

        assert talker.listens.empty()
    assert ["mine", "theirs", None] == ids
    async with asyncio.timeout(5):
        await heard.gone.wait()


async def test_a_legacy_session_hears_its_own_stream(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "legacy")
    first, second = await proxy.open_session(), await proxy.open_session()
    async with got(proxy, first) as mine, got(proxy, second) as other:
        await mine.opened()
        heard = await talker.listen()
        await other.opened()
        await talker.listen()
        heard.note("notifications/message", {"level": "info", "data": "for the first"})
        heard.note("notifications/made_up")
        heard.note("notifications/resources/updated", {"uri": "file:///never-asked-for"})
        heard.note(PROMPTS)
        told = [(await mine.next()).message["method"] for _ in range(2)]

        assert ["notifications/message", PROMPTS] == told
        # The list is the agent's, wherever it listens; the rest is the session's.
        assert PROMPTS == (await other.next()).message["method"]
        assert [] == other.now()


async def test_a_stream_is_taken_up_where_it_broke_off(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "legacy")
    sent, other = await proxy.open_session(), await proxy.open_session()
    async with got(proxy, sent) as stream:
        heard = await talker.listen()
        heard.note("notifications/message", {"level": "info", "data": "one"}, event_id="event-41")
        event = await stream.next()
    async with asyncio.timeout(5):
        await heard.gone.wait()
    async with got(proxy, sent, last=event.id):
        resumed = await talker.listen()
    refused = []
    for headers, last in ((other, event.id), (sent, altered(event.id, -3)), (sent, "event-41")):
        async with got(proxy, headers, last=last) as stream:
            refused.append(await stream.opened())

    assert event.id.startswith("b1.")
    assert "last-event-id" not in heard.headers
    assert "event-41" == resumed.headers["last-event-id"]
    assert [400, 400, 400] == refused
    assert 3 == len(proxy.records("call.rejected"))


async def test_a_second_stream_of_a_session_takes_the_place_of_the_first(
    proxy: Gateway, talker: Talker
) -> None:
    await ready(proxy, talker, "legacy")
    sent = await proxy.open_session()
    async with got(proxy, sent) as first:
        await first.opened()
        async with got(proxy, sent) as second:
            await second.opened()
            ended = await first.rest()

            assert [] == ended
            assert 1 == proxy.running.listening()


async def test_of_two_that_come_at_once_the_session_has_one(
    proxy: Gateway, talker: Talker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ready(proxy, talker, "legacy")
    sent, may_leave = await proxy.open_session(), asyncio.Event()
    feeds: list[Feed] = []
    feed_it = Feeding.feed

    async def slow_to_leave(self: Feeding, feed: Feed, *facts: Any) -> None:
        feeds.append(feed)
        try:
            await feed_it(self, feed, *facts)
        finally:
            await may_leave.wait()

    monkeypatch.setattr(Feeding, "feed", slow_to_leave)
    async with got(proxy, sent) as first, AsyncExitStack() as stack:
        await first.opened()
        await until(lambda: len(feeds) == 1)
        both = [await stack.enter_async_context(got(proxy, sent)) for _ in range(2)]
        await until(lambda: len(feeds[0].left._waiters) == 2)
        may_leave.set()
        statuses = [await one.opened() for one in both]
        await until(lambda: len(feeds) == 3 and feeds[1].left.is_set())

        assert [200, 200] == statuses
        assert 1 == proxy.running.listening()
        assert (True, False) == (feeds[1].ended.is_set(), feeds[2].ended.is_set())


# --- what ends them -----------------------------------------------------------------------------


async def ends(proxy: Gateway, stream: Any) -> list[Any]:
    rest = await stream.rest()
    await until(lambda: proxy.running.listening() == 0)
    return [one.message for one in rest]


ENDED = {
    "jsonrpc": "2.0",
    "id": "sub-1",
    "result": {"resultType": "complete", "_meta": {SUBSCRIPTION_META: "sub-1"}},
}


@pytest.mark.parametrize("agent", ERAS)
@pytest.mark.parametrize("why", ["revoked", "suspended", "session revoked", "expired"])
async def test_a_stream_ends_with_its_rights(
    proxy: Gateway, talker: Talker, agent: str, why: str
) -> None:
    await ready(proxy, talker, "modern")
    headers = await proxy.open_session() if agent == "legacy" else {}
    now_s = proxy.issuer.jwks()["fetched_at"]
    token = proxy.issuer.token(exp=now_s + 3) if why == "expired" else None
    opened = (
        listening(proxy, {"toolsListChanged": True}, token=token)
        if agent == "modern"
        else got(proxy, headers, token=token)
    )
    async with opened as stream:
        assert 200 == await stream.opened()
        if agent == "modern":
            await stream.next(ACKNOWLEDGED)
        await until(lambda: proxy.running.listening() == 1)
        agents = proxy.authorizer.snapshot["tenants"][proxy.tenant]["agents"]
        match why:
            case "revoked":
                proxy.authorizer.revoke(agents=[OTHER_AGENT])
                proxy.authorizer.revoke(agents=[AGENT])
            case "suspended":
                changed = {**agents, AGENT: {**agents[AGENT], "status": "suspended"}}
                await proxy.authorizer.publish(agents=changed)
            case "session revoked":
                await proxy.authorizer.signal(revoked_sessions=[SESSION])
        rest = await ends(proxy, stream)

    assert ([ENDED] if agent == "modern" else []) == rest


@pytest.mark.parametrize("why", ["suspended", "session revoked", "not granted"])
async def test_rights_that_end_while_a_request_comes_in_open_no_stream(
    proxy: Gateway, talker: Talker, why: str
) -> None:
    await ready(proxy, talker, "modern")
    params = {"notifications": {"toolsListChanged": True}}
    message, named = modern_request("subscriptions/listen", params, {}, {})
    body = orjson.dumps(message)
    sent = {
        "host": proxy.url.removeprefix("http://"),
        "authorization": f"Bearer {proxy.issuer.token()}",
        "content-type": "application/json",
        "accept": BOTH,
        "content-length": str(len(body)),
        "expect": "100-continue",
        **named,
    }
    agents = proxy.authorizer.snapshot["tenants"][proxy.tenant]["agents"]
    changes: dict[str, Any] = {
        "suspended": {"status": "suspended"}, "not granted": {"servers": []},
    }  # fmt: skip
    revoked = [SESSION] if why == "session revoked" else []
    async with connected(proxy.url) as http:
        asked = await http.ask(request(proxy.mcp(), sent.items()))
        agents = {**agents, AGENT: {**agents[AGENT], **changes.get(why, {})}}
        await proxy.authorizer.publish(agents=agents, revoked_sessions=revoked)
        await proxy.settled()
        refused = await http.ask(body)

    assert 100 == asked.status
    answer = orjson.loads(refused.body)["error"]
    expected = {"suspended": "agent_suspended", "not granted": "unknown server"}
    assert expected.get(why, "unauthenticated") == answer["message"]
    assert 0 == proxy.running.listening()


@pytest.mark.parametrize("agent", ERAS)
async def test_a_stream_ends_where_the_servers_entry_changes(
    proxy: Gateway, talker: Talker, agent: str
) -> None:
    """What it may ask, where it is and how we present ourselves may be another matter now."""
    await ready(proxy, talker, "modern")
    headers = await proxy.open_session() if agent == "legacy" else {}
    opened = (
        listening(proxy, {"toolsListChanged": True}) if agent == "modern" else got(proxy, headers)
    )
    servers = proxy.authorizer.snapshot["tenants"][proxy.tenant]["servers"]
    async with opened as stream:
        assert 200 == await stream.opened()
        await until(lambda: proxy.running.listening() == 1)
        await proxy.authorizer.publish(servers={**servers})
        await proxy.settled()
        assert 1 == proxy.running.listening()
        grown = {"notes": {**servers["notes"], "grants": {"sampling": True}}}
        await proxy.authorizer.publish(servers={**servers, **grown})
        rest = await ends(proxy, stream)

    assert agent == "legacy" or rest[-1] == ENDED


async def test_deleting_a_session_ends_its_stream_and_the_servers(
    proxy: Gateway, talker: Talker
) -> None:
    await ready(proxy, talker, "legacy")
    sent, kept = await proxy.open_session(), await proxy.open_session()
    headers = {"authorization": f"Bearer {proxy.issuer.token()}", **sent}
    async with got(proxy, sent) as stream, got(proxy, kept) as other:
        await stream.opened()
        await other.opened()
        heard = await talker.listen()
        async with proxy.http.delete(proxy.mcp(), headers=headers) as response:
            assert 204 == response.status
        assert [] == await stream.rest()

        assert 1 == proxy.running.listening()
        assert heard.headers["mcp-session-id"] == talker.ended[-1]
    async with got(proxy, sent) as again:
        assert 404 == await again.opened()


async def test_a_server_that_forgot_the_session_ends_the_agents(
    proxy: Gateway, talker: Talker
) -> None:
    await ready(proxy, talker, "legacy")
    sent = await proxy.open_session()
    async with got(proxy, sent) as stream:
        await stream.opened()
        heard = await talker.listen()
        talker.sessions.clear()
        heard.end()
        await ends(proxy, stream)
    async with got(proxy, sent) as again:
        assert 404 == await again.opened()


async def test_the_end_of_the_process_ends_them(tmp_path: Path, talker: Talker) -> None:
    async with aiohttp.ClientSession() as outlives, AsyncExitStack() as stack:
        servers = {"notes": http_server(talker.url)}
        async with gateway(tmp_path / "state", servers) as proxy:
            agent = replace(proxy, http=outlives)
            opened = listening(agent, {"toolsListChanged": True})
            stream = await stack.enter_async_context(opened)
            await stream.next(ACKNOWLEDGED)
        rest = await stream.rest()

    assert [ENDED] == [one.message for one in rest]


async def test_a_stream_that_broke_off_upstream_is_opened_again(
    proxy: Gateway, talker: Talker
) -> None:
    await ready(proxy, talker, "modern")
    async with listening(proxy, {"promptsListChanged": True}) as stream:
        await stream.next(ACKNOWLEDGED)
        (await talker.listen()).end()
        (await talker.listen()).note(PROMPTS)

        assert PROMPTS == (await stream.next()).message["method"]


async def test_a_stream_that_nobody_reads_is_closed(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "legacy")
    sent = await proxy.open_session()
    headers = {"authorization": f"Bearer {proxy.issuer.token()}", "accept": "text/event-stream"}
    async with proxy.http.get(proxy.mcp(), headers={**headers, **sent}):
        heard = await talker.listen()
        for _ in range(400):
            heard.note("notifications/message", {"level": "info", "data": "x" * 60_000})
        await until(lambda: proxy.running.listening() == 0)
    async with asyncio.timeout(5):
        await heard.gone.wait()


async def test_a_session_that_opens_slowly_still_gets_its_id(
    proxy: Gateway, talker: Talker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer has a header: it does not become a stream, however long it takes."""
    await ready(proxy, talker, "legacy")
    monkeypatch.setattr(reply, "WATCH_S", 0.0)
    monkeypatch.setattr(reply, "PATIENCE_S", 0.0)
    opened = len(talker.of("initialize"))
    talker.slow = asyncio.Event()
    opening = asyncio.ensure_future(proxy.open_session())
    await talker.told("initialize", opened + 1)
    await proxy.modern("server/discover")
    talker.slow.set()

    assert (await opening)["mcp-session-id"].startswith("b1.")


# --- what agents say ----------------------------------------------------------------------------

ROOTS = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}


async def test_roots_that_changed_are_told_to_who_may_ask_for_them(
    proxy: Gateway, talker: Talker
) -> None:
    await ready(proxy, talker, "legacy")
    declared = {"roots": {"listChanged": True}}
    before = await proxy.post(ROOTS, headers=await proxy.open_session(capabilities=declared))
    servers = proxy.authorizer.snapshot["tenants"][proxy.tenant]["servers"]
    granted = {**servers["notes"], "grants": {"roots": True}}
    await proxy.authorizer.publish(servers={"notes": granted})
    await proxy.settled()
    without = await proxy.post(ROOTS, headers=await proxy.open_session())
    assert [] == talker.of(ROOTS["method"])
    sent = await proxy.open_session(capabilities=declared)
    told = await proxy.post(ROOTS, headers=sent)
    await talker.told(ROOTS["method"])

    assert [400, 400] == [before[0], without[0]]
    assert -32601 == before[1]["error"]["code"]
    assert (202, None) == told
    assert ["capability_not_granted"] * 2 == [
        one["reason"] for one in proxy.records("call.rejected")
    ]


# --- nothing else is passed on ------------------------------------------------------------------


async def test_odd_wishes_are_refused(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "modern")
    odd: list[Any] = [
        None, [], {"toolsListChanged": "yes"}, {"resourceSubscriptions": "file:///x"},
        {"resourceSubscriptions": [7]}, {"resourceSubscriptions": [f"u:{n}" for n in range(65)]},
    ]  # fmt: skip
    for wanted in odd:
        async with listening(proxy, wanted) as stream:
            assert -32602 == (await stream.next()).message["error"]["code"]
    assert len(odd) == len(proxy.records("call.rejected"))
    assert talker.listens.empty()


async def test_calls_go_on_beside_sixteen_streams(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "modern")
    body = {"jsonrpc": "2.0", "id": 3, "method": "ping"}
    sent = await proxy.open_session()
    async with got(proxy, sent) as stream, calling(proxy, body, sent) as ping:
        await stream.opened()
        assert {} == (await ping.next()).message["result"]


# --- streams that the server ends early ---------------------------------------------------------


async def test_a_call_whose_stream_the_server_ended_is_come_back_for(
    proxy: Gateway, talker: Talker
) -> None:
    await ready(proxy, talker, "legacy")
    sent, other = await proxy.open_session(), await proxy.open_session()
    params = {"name": "talk", "arguments": {}, "_meta": {"progressToken": "p"}}
    body = {"jsonrpc": "2.0", "id": "c1", "method": "tools/call", "params": params}
    async with calling(proxy, body, sent) as stream:
        call = await talker.call()
        call.prime("up-1", retry_ms=100)
        call.end()
        first, *more = await stream.rest()
    again = await talker.listen()
    async with got(proxy, other, last=first.id) as foreign:
        refused = await foreign.opened()
    async with got(proxy, sent, last=first.id) as stream:
        await stream.opened()
        token = call.meta["progressToken"]
        again.note("notifications/progress", {"progressToken": token, "progress": 1})
        told = await stream.next()
        again.raw({"jsonrpc": "2.0", "id": call.message["id"], "result": {"content": []}})
        again.end()
        answer, *rest = await stream.rest()
    async with got(proxy, sent, last=told.id) as stream:
        repeated = await stream.rest()

    assert (None, []) == (first.message, more)
    assert "up-1" == again.headers["last-event-id"]
    assert 400 == refused
    assert "p" == told.message["params"]["progressToken"]
    assert ("c1", {"content": []}) == (answer.message["id"], answer.message["result"])
    assert ([], [answer.message]) == (rest, [one.message for one in repeated])
    assert ["ok"] == [one["status"] for one in proxy.records("call.outcome")]


async def test_the_sessions_own_stream_does_not_end_what_is_come_back_for(
    proxy: Gateway, talker: Talker
) -> None:
    await ready(proxy, talker, "legacy")
    sent = await proxy.open_session()
    body = {"jsonrpc": "2.0", "id": "c1", "method": "tools/call",
            "params": {"name": "talk", "arguments": {}}}  # fmt: skip
    async with calling(proxy, body, sent) as stream:
        call = await talker.call()
        call.prime("up-1", retry_ms=100)
        call.end()
        first, *_ = await stream.rest()
    again = await talker.listen()
    async with got(proxy, sent, last=first.id) as resumed:
        await resumed.opened()
        async with got(proxy, sent) as own:
            await own.opened()
            await until(lambda: proxy.running.listening() == 2)
            again.raw({"jsonrpc": "2.0", "id": call.message["id"], "result": {"content": []}})
            again.end()

            assert ["c1"] == [one.message["id"] for one in await resumed.rest()]


async def test_who_does_not_know_how_to_come_back_waits(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "legacy")
    params = {"name": "talk", "arguments": {}}
    body = {"jsonrpc": "2.0", "id": "c1", "method": "tools/call", "params": params}
    async with calling(proxy, body, await proxy.open_session(version="2025-06-18")) as stream:
        call = await talker.call()
        call.prime("up-1", retry_ms=100)
        call.end()
        again = await talker.listen()
        again.raw({"jsonrpc": "2.0", "id": call.message["id"], "result": {"content": []}})
        again.end()

        assert ["c1"] == [one.message["id"] for one in await stream.rest()]
