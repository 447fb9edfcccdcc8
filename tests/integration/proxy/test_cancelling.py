"""What a tool server says of a call while it runs, and calls that their agents give up."""

import asyncio
from typing import Any

import pytest

from tests.fakes.gateway import Gateway, modern_request, until
from tests.fakes.listening import calling
from tests.fakes.talker import Exchange, Talker

ERAS = ["modern", "legacy"]


@pytest.fixture
def proxy(two_agents: Gateway) -> Gateway:
    return two_agents


async def ready(proxy: Gateway, talker: Talker, upstream: str) -> None:
    talker.eras = {upstream}
    await proxy.offered("notes", "talk")
    proxy.forget_records()


async def request(
    proxy: Gateway, agent: str, *, id: Any = "call-1", meta: dict[str, Any] | None = None
) -> tuple[Any, dict[str, str]]:
    params = {"name": "talk", "arguments": {"call": str(id)}}
    if agent == "modern":
        body, sent = modern_request("tools/call", params, {}, meta or {})
        return {**body, "id": id}, sent
    full = {**params, "_meta": meta or {}}
    body = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": full}
    return body, await proxy.open_session()


@pytest.mark.parametrize("upstream", ERAS)
@pytest.mark.parametrize("agent", ERAS)
async def test_progress_comes_before_the_answer_under_the_agents_token(
    proxy: Gateway, talker: Talker, agent: str, upstream: str
) -> None:
    await ready(proxy, talker, upstream)
    body, sent = await request(proxy, agent, meta={"progressToken": "mine"})
    async with calling(proxy, body, sent) as stream:
        call = await talker.call()
        for done in (1, 2, 3):
            call.progress(done)
        call.note("notifications/made_up")
        call.note("notifications/progress", {"progressToken": 12345, "progress": 9})
        first = await stream.next()
        call.answer()
        *told, answer = [first, *await stream.rest()]

    assert [("mine", 1), ("mine", 2), ("mine", 3)] == [
        (one.message["params"]["progressToken"], one.message["params"]["progress"]) for one in told
    ]
    assert "mine" != call.meta["progressToken"]
    assert ("call-1", "done") == (
        answer.message["id"], answer.message["result"]["content"][0]["text"],
    )  # fmt: skip
    assert ["ok"] == [one["status"] for one in proxy.records("call.outcome")]
    assert "text/event-stream" == stream.headers["content-type"]
    assert "no" == stream.headers["x-accel-buffering"]


@pytest.mark.parametrize("agent", ERAS)
async def test_log_messages_are_as_loud_as_the_agent_wants_them(
    proxy: Gateway, talker: Talker, agent: str
) -> None:
    await ready(proxy, talker, "modern")
    level = {"io.modelcontextprotocol/logLevel": "warning"}
    body, sent = await request(proxy, agent, meta=level if agent == "modern" else {})
    async with calling(proxy, body, sent) as stream:
        call = await talker.call()
        for name in ("debug", "error"):
            call.note("notifications/message", {"level": name, "data": name})
        first = await stream.next("notifications/message")
        call.answer()
        told = [first, *await stream.rest()][:-1]

    heard = [one.message["params"]["level"] for one in told]
    assert {"modern": ["error"], "legacy": ["debug", "error"]}[agent] == heard


async def test_a_modern_agent_that_wants_no_log_hears_none(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "modern")
    body, sent = await request(proxy, "modern")
    call_task = asyncio.ensure_future(proxy.post(body, headers=sent))
    call = await talker.call()
    call.note("notifications/message", {"level": "emergency", "data": "x"})
    call.note("notifications/resources/updated", {"uri": "file:///x"})
    call.answer()
    _, answer = await call_task

    assert "result" in answer
    assert [] == proxy.events


async def given_up(proxy: Gateway, call: Exchange, upstream: str, talker: Talker) -> None:
    """The tool server hears of it, in its own way."""
    if upstream == "modern":
        async with asyncio.timeout(5):
            await call.gone.wait()
    else:
        told = await talker.told("notifications/cancelled")
        assert call.message["id"] == told["params"]["requestId"]
    outcome = (await proxy.recorded("call.outcome"))[-1]
    assert "cancelled" == outcome["status"]
    assert "allow" == proxy.records("call.intent")[-1]["verdict"]


@pytest.mark.parametrize("upstream", ERAS)
async def test_a_modern_agent_that_leaves_gives_its_call_up(
    proxy: Gateway, talker: Talker, upstream: str
) -> None:
    await ready(proxy, talker, upstream)
    body, sent = await request(proxy, "modern")
    calling_task = asyncio.ensure_future(proxy.post(body, headers=sent))
    call = await talker.call()
    calling_task.cancel()

    await given_up(proxy, call, upstream, talker)


@pytest.mark.parametrize("upstream", ERAS)
async def test_a_legacy_agent_says_that_it_gives_its_call_up(
    proxy: Gateway, talker: Talker, upstream: str
) -> None:
    await ready(proxy, talker, upstream)
    body, sent = await request(proxy, "legacy")
    other = await proxy.open_session()
    answering = asyncio.ensure_future(answered(proxy, body, sent))
    call = await talker.call()
    for headers, named in ((other, "call-1"), (sent, "call-2"), (sent, "call-1")):
        assert [] == proxy.records("call.outcome")
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled",
                "params": {"requestId": named}}  # fmt: skip
        assert (202, None) == await proxy.post(note, headers=headers)

    await given_up(proxy, call, upstream, talker)
    assert (200, b"") == await answering


async def answered(proxy: Gateway, body: Any, sent: dict[str, str]) -> tuple[int, bytes]:
    async with proxy.sending(body, headers=sent) as response:
        return response.status, await response.read()


async def test_a_legacy_agent_that_leaves_gives_nothing_up(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "legacy")
    body, sent = await request(proxy, "legacy", meta={"progressToken": 1})
    async with calling(proxy, body, sent) as stream:
        call = await talker.call()
        call.progress(1)
        await stream.next()
        await stream.leave()
    call.answer()

    assert "ok" == (await proxy.recorded("call.outcome"))[-1]["status"]
    assert [] == talker.of("notifications/cancelled")


async def test_a_reader_that_does_not_read_is_let_go(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "modern")
    body, sent = await request(proxy, "modern", meta={"progressToken": 1})
    unread = asyncio.Event()

    async def never_read() -> None:
        async with proxy.sending(body, headers=sent):
            await unread.wait()

    reader = asyncio.ensure_future(never_read())
    call = await talker.call()
    for done in range(400):
        call.progress(done, "x" * 60_000)
    await given_up(proxy, call, "modern", talker)
    unread.set()
    await reader


async def test_nothing_is_left_of_what_was_given_up(proxy: Gateway, talker: Talker) -> None:
    await ready(proxy, talker, "modern")
    before = len(asyncio.all_tasks())
    for number in range(20):
        body, sent = await request(proxy, "modern", id=number)
        calling_task = asyncio.ensure_future(proxy.post(body, headers=sent))
        await talker.call()
        calling_task.cancel()
    await proxy.recorded("call.outcome", count=20)

    await until(lambda: not talker.open)
    await until(lambda: len(asyncio.all_tasks()) <= before + 2)
