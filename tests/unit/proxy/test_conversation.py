"""Many requests over one line: what belongs to which (mcp.md 7)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from services.common.telemetry.counters import Counter
from services.proxy.backends import conversation
from services.proxy.backends.conversation import IN_FLIGHT, SUBSCRIPTION_META, Conversation
from services.proxy.backends.upstream import (
    MAX_ANSWER,
    MAX_ANSWERING,
    Heard,
    Listening,
    Reply,
    Request,
    UpstreamFailed,
)


class Line:
    """A conversation with the far end in the test's hand."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.dropped = Counter()
        self.broken = self.blocked = False
        self.tasks: list[asyncio.Task[None]] = []
        self.talk = Conversation(self._send, self.dropped, spawn=self.spawn)

    def spawn(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def run() -> None:
            await work()

        self.tasks.append(asyncio.get_running_loop().create_task(run(), name=name))
        return self.tasks[-1]

    async def _send(self, message: bytes) -> None:
        if self.broken:
            raise UpstreamFailed("upstream_protocol", ran=None)
        if self.blocked:
            await asyncio.Event().wait()
        self.sent.put_nowait(orjson.loads(message))

    async def said(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            return await self.sent.get()

    async def says(self, size: int = 100, **message: Any) -> None:
        self.talk.read({"jsonrpc": "2.0", **message}, size)
        await asyncio.sleep(0)  # whoever it was for takes it

    def ask(
        self, hear: Any = None, *, progress: Any = None, timeout_s: float = 5
    ) -> asyncio.Task[Reply]:
        request = Request(method="tools/call", params={}, progress=progress, timeout_s=timeout_s)
        return asyncio.get_running_loop().create_task(self.talk.ask(request, hear))


@pytest.fixture
async def line() -> Line:
    return Line()


async def test_answers_go_to_the_request_that_they_name(line: Line) -> None:
    first, second = line.ask(), line.ask()
    ids = [(await line.said())["id"], (await line.said())["id"]]
    await line.says(id=ids[1], result={"n": 2})
    await line.says(id=ids[0], result={"n": 1})

    assert [{"n": 1}, {"n": 2}] == [(await first).result, (await second).result]


@pytest.mark.parametrize("id", [99, "1", None, True, 1.0])
async def test_an_answer_to_nothing_is_dropped(line: Line, id: Any) -> None:
    asked = line.ask()
    sent = await line.said()
    await line.says(id=id, result={"n": 0})

    assert (1, False) == (line.dropped.value, asked.done())
    await line.says(id=sent["id"], result={})
    assert {} == (await asked).result


async def test_of_two_answers_the_first_counts(line: Line) -> None:
    asked = line.ask()
    sent = await line.said()
    await line.says(id=sent["id"], result={"n": 1})
    await line.says(id=sent["id"], result={"n": 2})

    assert {"n": 1} == (await asked).result
    assert 1 == line.dropped.value


async def test_progress_carries_the_agents_own_token_to_the_request_it_is_about(line: Line) -> None:
    heard: dict[str, list[Heard]] = {"a": [], "b": []}
    tasks = [line.ask(heard[name].append, progress="same") for name in heard]
    tokens = [(await line.said())["params"]["_meta"]["progressToken"] for _ in tasks]
    await line.says(
        method="notifications/progress", params={"progressToken": tokens[1], "progress": 1}
    )
    for wrong in (777, "same", None):
        await line.says(method="notifications/progress", params={"progressToken": wrong})

    assert ([], 3) == (heard["a"], line.dropped.value)
    assert [{"progressToken": "same", "progress": 1}] == [one.params for one in heard["b"]]
    for task in tasks:
        task.cancel()


async def test_who_wants_no_progress_is_not_asked_for_any(line: Line) -> None:
    line.ask(lambda _: None).cancel()
    asked = line.ask(lambda _: None)

    assert {} == (await line.said())["params"]
    asked.cancel()


async def test_a_request_given_up_is_cancelled_there_and_its_late_answer_dropped(
    line: Line,
) -> None:
    asked = line.ask()
    sent = await line.said()
    asked.cancel()
    told = await line.said()
    await line.says(id=sent["id"], result={})

    assert ("notifications/cancelled", {"requestId": sent["id"]}) == (
        told["method"],
        told["params"],
    )
    assert (True, 1) == (asked.cancelled(), line.dropped.value)


async def test_a_request_without_an_answer_in_time_is_cancelled(line: Line) -> None:
    asked = line.ask(timeout_s=0)
    with pytest.raises(UpstreamFailed) as failed:
        await asked

    assert ("upstream_timeout", None) == (failed.value.reason, failed.value.ran)


async def test_a_question_goes_to_the_newest_request_and_without_one_is_refused(
    line: Line,
) -> None:
    heard: list[Heard] = []
    older, newer = line.ask(lambda _: None), line.ask(heard.append)
    await line.said()
    sent = await line.said()
    await line.says(id="q1", method="elicitation/create", params={"mode": "form"})
    assert ["q1"] == [one.id for one in heard]

    await line.says(id=sent["id"], result={})
    older.cancel()
    await newer
    await line.said()
    await line.says(id="q2", method="elicitation/create", params={})

    refused = await line.said()
    assert ("q2", -32601) == (refused["id"], refused["error"]["code"])


async def test_a_ping_is_answered_whoever_is_there(line: Line) -> None:
    await line.says(id=5, method="ping")

    assert {"jsonrpc": "2.0", "id": 5, "result": {}} == await line.said()


async def test_a_server_that_asks_and_takes_no_answer_holds_nobody_up(line: Line) -> None:
    asked = line.ask()
    sent = await line.said()
    line.blocked = True
    for number in range(MAX_ANSWERING + 5):
        await line.says(id=number, method="ping")
    await line.says(id=sent["id"], result={"n": 1})

    assert {"n": 1} == (await asked).result
    assert (MAX_ANSWERING, 5) == (len(line.tasks), line.dropped.value)
    for task in line.tasks:  # and when there is room again, it is answered again
        task.cancel()
    await asyncio.wait(line.tasks)
    line.blocked = False
    await line.says(id=99, method="ping")
    assert 99 == (await line.said())["id"]


async def test_what_names_no_request_goes_to_who_listens(line: Line) -> None:
    listened: list[Heard] = []
    during: list[Heard] = []
    loop = asyncio.get_running_loop()
    listening = loop.create_task(line.talk.listen(Listening(), listened.append, modern=False))
    asked = line.ask(during.append)
    await line.said()
    await line.says(method="notifications/tools/list_changed")
    listening.cancel()
    await asyncio.wait([listening])
    await line.says(method="notifications/message", params={"level": "info"})

    assert ["notifications/tools/list_changed"] == [one.method for one in listened]
    assert ["notifications/message"] == [one.method for one in during]
    asked.cancel()


async def test_a_modern_subscription_hears_what_carries_its_id(line: Line) -> None:
    first: list[Heard] = []
    second: list[Heard] = []
    loop = asyncio.get_running_loop()
    tasks = [
        loop.create_task(line.talk.listen(Listening(params={}), hear, modern=True))
        for hear in (first.append, second.append)
    ]
    ids = [(await line.said())["id"] for _ in tasks]
    await line.says(
        method="notifications/resources/updated", params={"_meta": {SUBSCRIPTION_META: ids[1]}}
    )
    await line.says(id=ids[0], result={})
    await tasks[0]

    assert ([], 1) == (first, len(second))
    assert not tasks[1].done()
    tasks[1].cancel()


async def test_the_end_of_the_line_ends_everything_that_waits(line: Line) -> None:
    asked = line.ask()
    loop = asyncio.get_running_loop()
    listening = loop.create_task(line.talk.listen(Listening(), lambda _: None, modern=False))
    await line.said()
    line.talk.end()
    await listening
    with pytest.raises(UpstreamFailed) as failed:
        await asked
    with pytest.raises(UpstreamFailed) as later:
        await line.ask()

    assert ("upstream_protocol", None) == (failed.value.reason, failed.value.ran)
    assert ("upstream_unreachable", False) == (later.value.reason, later.value.ran)


async def test_an_answer_over_the_limit_is_blocked(line: Line) -> None:
    asked = line.ask()
    sent = await line.said()
    await line.says(MAX_ANSWER + 1, id=sent["id"], result={})
    with pytest.raises(UpstreamFailed) as failed:
        await asked

    assert "inbound_blocked" == failed.value.reason


@pytest.mark.parametrize(
    "message",
    [
        {"method": 5}, {"method": ""}, {"method": "m" * 129}, {"method": "x", "params": []},
        {"method": "x", "id": 1.5}, {"method": "x", "id": None},
    ],
)  # fmt: skip
async def test_what_is_no_message_is_dropped(line: Line, message: dict[str, Any]) -> None:
    heard: list[Heard] = []
    asked = line.ask(heard.append)
    await line.says(**message)

    assert ([], 1) == (heard, line.dropped.value)
    asked.cancel()


async def test_a_server_that_reads_nothing_keeps_nobody(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither who runs out of time nor who gives up waits until it hears of that."""
    monkeypatch.setattr(conversation, "CANCEL_S", 0)
    line.blocked = True
    late, given_up = line.ask(timeout_s=0), line.ask()
    with pytest.raises(UpstreamFailed) as failed:
        await late
    given_up.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([given_up])

    assert ("upstream_timeout", True) == (failed.value.reason, given_up.cancelled())


async def test_who_finds_no_place_in_time_is_told_so(line: Line) -> None:
    running = [line.ask() for _ in range(IN_FLIGHT)]
    for _ in running:
        await line.said()
    with pytest.raises(UpstreamFailed) as failed:
        await line.ask(timeout_s=0)

    assert ("upstream_timeout", False) == (failed.value.reason, failed.value.ran)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    answered = line.ask()
    while (sent := await line.said())["method"] != "tools/call":
        pass
    await line.says(id=sent["id"], result={})
    assert {} == (await answered).result


async def test_on_a_line_that_agents_share_nobody_hears_what_names_no_request(line: Line) -> None:
    line.talk = Conversation(line._send, line.dropped, spawn=line.spawn, shared=True)
    mine: list[Heard] = []
    listened: list[Heard] = []
    asked = line.ask(mine.append, progress="p")
    token = (await line.said())["id"]
    await line.says(method="notifications/message", params={"level": "info", "data": "whose?"})
    assert (1, []) == (line.dropped.value, mine)

    loop = asyncio.get_running_loop()
    listening = loop.create_task(line.talk.listen(Listening(), listened.append, modern=False))
    await asyncio.sleep(0)
    await line.says(id="q", method="elicitation/create", params={"mode": "form"})
    refused = await line.said()
    await line.says(method="notifications/tools/list_changed")
    await line.says(method="notifications/progress", params={"progressToken": token})

    assert ("q", -32601) == (refused["id"], refused["error"]["code"])
    assert ["notifications/tools/list_changed"] == [one.method for one in listened]
    assert ["p"] == [one.params["progressToken"] for one in mine]
    asked.cancel()
    listening.cancel()
