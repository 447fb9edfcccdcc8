"""The meeting place itself: what somebody in it learns and can do, and what is lost with it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from services.common.clock import SystemClock
from services.common.rendezvous.valkey import ValkeyRendezvous
from services.common.telemetry.logging import get_log
from services.common.valkey import open_valkey
from services.proxy import app
from services.proxy.replicas.post import ALL
from services.proxy.seals import Seals
from tests.fakes.asked import YES, Asked, elicit, session
from tests.fakes.asking import ask_until
from tests.fakes.curious_server import Curious
from tests.fakes.gateway import Gateway, until
from tests.fakes.people import URLS
from tests.fakes.replicas import Two
from tests.fakes.tool_server import ToolServer
from tests.fakes.valkey import ValkeyServer
from tests.integration.proxy.test_approval_tasks import begin, ended, escalation_of, poll
from tests.integration.proxy.test_pushed import Held
from tests.promises import promise

pytestmark = pytest.mark.needs_valkey
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


async def status(proxy: Gateway, sent: dict[str, str]) -> int:
    return (await proxy.post(PING, headers=sent))[0]


async def delete(proxy: Gateway, sent: dict[str, str]) -> int:
    headers = {"authorization": f"Bearer {proxy.issuer.token()}", **sent}
    async with proxy.http.delete(proxy.mcp(), headers=headers) as deleted:
        return deleted.status


async def refused(proxy: Gateway, count: int) -> None:
    """When it has turned so many letters down."""
    await until(lambda: proxy.running.counters.read()["proxy.letters.refused"] >= count)


@promise("proxies:nothing-forged")
async def test_a_forged_letter_does_nothing(
    notes: Two, tools: ToolServer, meeting_place: ValkeyServer
) -> None:
    sent = await notes.one.open_session(URLS)
    held = Held(notes.one, sent)
    request = await held.next("elicitation/create")
    strange = Seals([b"s" * 32], SystemClock()).seal("letter", ("proxies",), b"\x97")
    letters = ["", "x", "b1.20000.AAAA", strange, request["id"]]
    async with open_valkey(meeting_place.url, get_log("test")) as valkey:
        forger = ValkeyRendezvous(valkey, prefix=notes.one.settings.plane_id)
        for letter in letters:
            assert await forger.send(ALL, letter)
    for proxy in (notes.one, notes.other):
        await refused(proxy, len(letters))

    assert (200, 200) == (await status(notes.one, sent), await status(notes.other, sent))
    assert 1 == notes.one.running.waiting()
    notes.one.authorizer.settle(next(iter(notes.one.authorizer.tickets)), "approved")
    assert (await held.task)["result"]["isError"] is False
    assert ["c"] == tools.ran()


@promise("proxies:nothing-forged")
async def test_who_reads_the_meeting_place_learns_nothing(
    notes: Two, tools: ToolServer, meeting_place: ValkeyServer
) -> None:
    heard: list[str] = []
    async with open_valkey(meeting_place.url, get_log("test")) as valkey:
        prefix = f"{{{notes.one.settings.plane_id}}}:meet:box:"
        async with valkey.subscribed([prefix + ALL]) as published:
            name = str(uuid4())
            task = await begin(notes.one, name)
            notes.one.authorizer.settle(escalation_of(task), "approved")
            done = await ended(notes.other, task)
            await delete(notes.one, await notes.one.open_session())
            async with asyncio.timeout(5):
                heard.append(await anext(published))
    server = Redis.from_url(meeting_place.url, decode_responses=True)
    async with server:
        kept: dict[Any, Any] = {
            key: await server.hgetall(key) for key in await server.keys("*:meet:kept:*")
        }

    assert f"{name} write_note" == done["result"]["content"][0]["text"]
    assert kept
    words = [name, "write_note", "completed", "notes", notes.one.agent, notes.one.tenant]
    assert [] == [word for word in words if word in f"{kept} {heard}"]


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Often."""
    monkeypatch.setattr(app, "SWEEP_S", 0.05)


@pytest.fixture
async def fragile(
    swept: None, curious: tuple[Two, Curious], meeting_place: ValkeyServer
) -> AsyncIterator[tuple[Two, Curious, ValkeyServer]]:
    """Whose meeting place comes back, whatever happens."""
    pair, server = curious
    yield pair, server, meeting_place
    meeting_place.kill()
    meeting_place.started()


@promise("failure:counter-store")
async def test_without_it_each_goes_on_by_itself_and_afterwards_together(
    fragile: tuple[Two, Curious, ValkeyServer],
) -> None:
    pair, server, place = fragile
    goes_on, ended_before, ended_during = [await session(pair.one) for _ in range(3)]
    await delete(pair.one, ended_before)
    assert 404 == await status(pair.other, ended_before)
    asked = Asked(pair.one, goes_on, asks=[elicit(1), elicit(2)])
    first, second = await asked.next(), await asked.next()
    body = {"jsonrpc": "2.0", "id": first["id"], "result": YES}
    place.kill()

    _, allowed = await pair.one.call("ask", {"asks": []})
    assert allowed["result"]["isError"] is False  # nothing of a call depends on it
    assert 204 == await delete(pair.one, ended_during)
    found = [
        await status(proxy, sent)
        for sent in (goes_on, ended_before, ended_during)
        for proxy in (pair.one, pair.other)
    ]
    assert [200, 200, 404, 404, 404, 200] == found  # each by what it knows
    lost, _ = await pair.other.post(body, headers=goes_on)
    assert 400 == lost
    assert 202 == await asked.answer(second["id"])  # where it is held it is taken

    place.started()
    for proxy in (pair.one, pair.other):
        await until(proxy.running.reachable)
    assert 202 == await ask_until(
        lambda: asked_at(pair.other, body, goes_on), lambda answered: answered == 202
    )
    assert 404 == await ask_until(
        lambda: status(pair.other, ended_during), lambda found: found == 404
    )
    assert {1: {"result": YES}, 2: {"result": YES}} == await said(asked, server)


async def asked_at(proxy: Gateway, body: Any, sent: dict[str, str]) -> int:
    return (await proxy.post(body, headers=sent))[0]


async def said(asked: Asked, server: Curious) -> Any:
    await asked.said()
    return server.answers


async def test_a_poll_that_cannot_be_carried_is_told_to_wait(
    notes: Two, tools: ToolServer, meeting_place: ValkeyServer
) -> None:
    task = await begin(notes.one)
    meeting_place.kill()
    try:
        notes.one.authorizer.settle(escalation_of(task), "approved")
        waiting = await poll(notes.other, task)
        assert [] == tools.ran()
    finally:
        meeting_place.started()
    for proxy in (notes.one, notes.other):
        await until(proxy.running.reachable)
    done = await ask_until(
        lambda: poll(notes.other, task), lambda found: bool(found["status"] == "completed")
    )

    assert ("working", None) == (waiting["status"], waiting.get("result"))
    assert done["result"]["isError"] is False
    assert ["c"] == tools.ran()
