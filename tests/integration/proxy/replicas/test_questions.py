"""What a tool server asks of an agent, answered at another proxy than the one that relayed it
(mcp.md 7: the answer meets the waiting call).
"""

import asyncio

import orjson
import pytest

from tests.altered import altered
from tests.fakes.asked import YES, Asked, elicit, session
from tests.fakes.authorizer import OTHER_AGENT
from tests.fakes.curious_server import Curious
from tests.fakes.gateway import Gateway
from tests.fakes.replicas import Two, alone
from tests.integration.proxy.asking.test_rounds import ANSWER, ask, retry, rounds
from tests.integration.proxy.asking.test_tasks import begin, get, id_of
from tests.promises import promise

pytestmark = pytest.mark.needs_valkey


async def answer(
    proxy: Gateway, asked: Asked, id: str, *, headers: dict[str, str] | None = None, token: str = ""
) -> int:
    body = {"jsonrpc": "2.0", "id": id, "result": YES}
    status, _ = await proxy.post(body, headers=headers or asked.headers, token=token or None)
    return status


@promise("proxies:no-sticky-routing")
async def test_an_answer_at_the_other_is_decided_where_the_call_waits(
    curious: tuple[Two, Curious],
) -> None:
    pair, server = curious
    asked = Asked(pair.one, await session(pair.one), asks=[elicit("own-id")])
    request = await asked.next()
    status = await answer(pair.other, asked, request["id"])
    said = await asked.said()

    assert 202 == status
    assert {"own-id": {"result": YES}} == said == server.answers
    assert YES == orjson.loads(pair.one.authorizer.asks[-1].arguments_json)
    assert ["tools/call", "elicitation/create"] == [
        one["method"] for one in pair.one.records("call.intent")
    ]
    assert [] == pair.other.records("call.")


async def test_an_answer_at_the_other_that_is_not_allowed_does_not_go_up(
    curious: tuple[Two, Curious],
) -> None:
    pair, server = curious
    asked = Asked(pair.one, await session(pair.one), asks=[elicit()])
    request = await asked.next()
    pair.one.authorizer.rules.verdicts["notes", ""] = ("deny", "not_permitted")
    status = await answer(pair.other, asked, request["id"])
    said = await asked.said()

    assert (202, "no answer") == (status, said["1"]["error"]["message"])
    assert YES not in [one.get("result") for one in server.answers.values()]
    assert ["not_permitted"] == [one["reason"] for one in pair.one.records("call.denied")]


async def test_an_answer_is_taken_once_and_from_who_was_asked(
    curious: tuple[Two, Curious],
) -> None:
    pair, server = curious
    asked = Asked(pair.one, await session(pair.one), asks=[elicit(1), elicit(2)])
    first, second = await asked.next(), await asked.next()
    foreign = pair.one.issuer.token(sub=OTHER_AGENT)
    theirs = await pair.other.open_session(token=foreign)
    third = await session(pair.other)
    statuses = [
        await answer(pair.other, asked, first["id"], headers=theirs, token=foreign),
        await answer(pair.other, asked, first["id"], headers=third),
        await answer(pair.other, asked, altered(first["id"], -2)),
        await answer(pair.other, asked, first["id"]),
        await answer(pair.other, asked, first["id"]),
        await answer(pair.one, asked, first["id"]),
    ]
    await answer(pair.one, asked, second["id"])
    await asked.said()

    assert [400, 400, 400, 202, 400, 400] == statuses
    assert {1: {"result": YES}, 2: {"result": YES}} == server.answers
    assert 4 == len(await pair.other.recorded("call.rejected", count=4))


async def test_a_question_whose_process_is_gone_was_never_asked(
    curious: tuple[Two, Curious],
) -> None:
    pair, server = curious
    async with alone(pair) as third:
        asked = Asked(third, await session(third), asks=[elicit()])
        request = await asked.next()
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled",
                "params": {"requestId": "c"}}  # fmt: skip
        await third.post(note, headers=asked.headers)  # it need not be waited for
        await asyncio.wait((asked.task,))
        asked.task.exception()

    statuses: list[int] = []
    while statuses[-1:] != [400]:  # the server may count a reader that has just left
        statuses.append(await answer(pair.other, asked, request["id"]))
    rejected = await pair.other.recorded("call.rejected", count=len(statuses))

    assert {400} == set(statuses)
    assert {} == {name: one for name, one in server.answers.items() if "result" in one}
    assert {"invalid_request"} == {one["reason"] for one in rejected}


# --- modern tool servers ------------------------------------------------------------------------


@pytest.fixture
def modern(curious: tuple[Two, Curious]) -> tuple[Two, Curious]:
    pair, server = curious
    server.eras = ("modern",)
    for proxy in (pair.one, pair.other):
        proxy.forget_upstreams()
    return pair, server


async def test_a_legacy_agents_answers_at_the_other_make_the_retry_where_it_waits(
    modern: tuple[Two, Curious],
) -> None:
    pair, server = modern
    asked = Asked(pair.one, await session(pair.one), **rounds(2))
    for proxy in (pair.other, pair.one):
        request = await asked.next()
        assert 202 == await answer(proxy, asked, request["id"])

    assert {"responses": ANSWER, "state": "2:own"} == await asked.said()
    assert [None, ANSWER, ANSWER] == [one.get("inputResponses") for one in server.calls()]


async def test_what_a_modern_agent_carries_is_good_at_every_proxy(
    modern: tuple[Two, Curious],
) -> None:
    pair, server = modern
    arguments = rounds(2)
    first = await ask(pair.one, arguments)
    foreign = pair.one.issuer.token(sub=OTHER_AGENT)
    refused = await retry(pair.other, first, arguments, token=foreign)
    second = await retry(pair.other, first, arguments)
    last = await retry(pair.one, second, arguments)
    task = id_of(await begin(pair.one))
    unknown = await get(pair.other, task, token=foreign)
    polled = [(await get(proxy, task))["result"]["status"] for proxy in (pair.other, pair.one)]

    assert -32602 == refused["error"]["code"] == unknown["error"]["code"]
    assert ["input_required", "input_required", "complete"] == [
        one["result"]["resultType"] for one in (first, second, last)
    ]
    assert ["working", "completed"] == polled
    assert 4 == len(server.calls())
