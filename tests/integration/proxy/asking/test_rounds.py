"""Calls that a modern tool server answers with a question (mcp.md 2.3, 4, 5.2): what agents of both
eras see of it, and that each answer that goes up was decided.
"""

import asyncio
from typing import Any

import orjson
import pytest

from services.proxy.asking.rounds import MAX_TURNS
from tests.altered import altered
from tests.fakes import mcp_wire as wire
from tests.fakes.asked import EVERYTHING, FORM, LOGIN, SAMPLE, SECRET, YES, Asked, session
from tests.fakes.authorizer import OTHER_AGENT
from tests.fakes.curious_server import Curious
from tests.fakes.gateway import Gateway, until, until_true
from tests.fakes.people import TASKS, URLS
from tests.promises import promise

pytestmark = pytest.mark.asyncio(loop_scope="module")

META = "com.behavry/decision"
WHO: dict[str, Any] = {"who": {"method": "elicitation/create", "params": FORM}}
ANSWER: dict[str, Any] = {"who": YES}
ACCEPT: dict[str, Any] = {"approval": {"action": "accept"}}


def rounds(count: int = 1, *, state: str | None = "own") -> dict[str, Any]:
    """Arguments of a call that asks so often."""
    made: list[dict[str, Any]] = [{"inputRequests": WHO} for _ in range(count)]
    for number, one in enumerate(made, 1):
        if state is not None:
            one["requestState"] = f"{number}:{state}"
    return {"rounds": made}


async def ask(proxy: Gateway, arguments: Any, **options: Any) -> Any:
    more = options.pop("more", {})
    params = {"name": "ask", "arguments": arguments, **more}
    options = {"capabilities": EVERYTHING, **options}
    return (await proxy.modern("tools/call", params, **options))[1]


async def retry(
    proxy: Gateway, asked: Any, arguments: Any, responses: Any = ANSWER, **options: Any
) -> Any:
    more = {"inputResponses": responses, "requestState": asked["result"]["requestState"]}
    return await ask(proxy, arguments, more=more, **options)


async def end_of(proxy: Gateway, created: Any, capabilities: Any) -> Any:
    """The task when it has ended."""
    task = {"taskId": created["result"]["taskId"]}
    found: Any = {}

    async def ended() -> bool:
        nonlocal found
        _, found = await proxy.modern("tasks/get", task, capabilities=capabilities)
        return bool(found["result"]["status"] != "working")

    await until_true(ended)
    return found


def said(answer: Any) -> Any:
    return orjson.loads(answer["result"]["content"][0]["text"])


# A modern agent ---------------------------------------------------------------------------------


@promise("answers:decided")
async def test_a_modern_agent_is_shown_the_question_and_its_retry_is_a_decision(
    proxy: Gateway, server: Curious
) -> None:
    arguments = rounds(2)
    first = await ask(proxy, arguments)
    second = await retry(proxy, first, arguments)
    last = await retry(proxy, second, arguments)

    states = [one["result"]["requestState"] for one in (first, second)]
    assert ["input_required", "input_required", "complete"] == [
        one["result"]["resultType"] for one in (first, second, last)
    ]
    assert WHO == first["result"]["inputRequests"]
    assert len(set(states)) == 2
    assert not any(":own" in one for one in states)  # no sealed value has a colon by chance
    assert {"responses": ANSWER, "state": "2:own"} == said(last)
    assert [None, ANSWER, ANSWER] == [one.get("inputResponses") for one in server.calls()]
    assert [None, "1:own", "2:own"] == [one.get("requestState") for one in server.calls()]
    # The answer is part of what is decided, digested and recorded; policies see it.
    digests = [one["arguments"]["digest"] for one in proxy.records("call.intent")]
    outcomes = [(one["status"], one.get("error")) for one in proxy.records("call.outcome")]
    assert (3, 3) == (len(set(digests)), len(proxy.authorizer.asks))
    assert [("ok", "input_required")] * 2 + [("ok", None)] == outcomes
    features = orjson.loads(proxy.authorizer.asks[-1].features)
    assert ["rounds", "_beside"] == [one["name"] for one in features["keys"]]
    assert arguments == orjson.loads(proxy.authorizer.asks[-1].arguments_json)


async def test_a_server_without_a_state_gets_none(proxy: Gateway, server: Curious) -> None:
    arguments = rounds(state=None)
    answer = await retry(proxy, await ask(proxy, arguments), arguments)

    assert {"responses": ANSWER, "state": None} == said(answer)
    assert "requestState" not in server.calls()[-1]


async def test_a_state_alone_is_echoed(proxy: Gateway, server: Curious) -> None:
    arguments = {"rounds": [{"requestState": "1:later"}]}
    first = await ask(proxy, arguments)
    answer = await ask(proxy, arguments, more={"requestState": first["result"]["requestState"]})

    assert "inputRequests" not in first["result"]
    assert {"responses": None, "state": "1:later"} == said(answer)


async def test_answers_that_nobody_asked_for_are_a_part_of_the_request(
    proxy: Gateway, server: Curious
) -> None:
    answer = await ask(proxy, rounds(), more={"inputResponses": {"other": {}}})

    assert {"responses": {"other": {}}, "state": None} == said(answer)
    assert "_beside" in orjson.loads(proxy.authorizer.asks[-1].features)["keys"][-1]["name"]


async def test_other_methods_ask_too(proxy: Gateway, server: Curious) -> None:
    params = {"name": "p", "arguments": rounds()}
    _, asked = await proxy.modern("prompts/get", params, capabilities=EVERYTHING)
    more = {"inputResponses": ANSWER, "requestState": asked["result"]["requestState"]}
    _, answer = await proxy.modern("prompts/get", {**params, **more}, capabilities=EVERYTHING)

    assert (WHO, "complete") == (asked["result"]["inputRequests"], answer["result"]["resultType"])
    assert orjson.loads(proxy.authorizer.asks[-1].arguments_json) == params


async def test_a_state_is_for_its_own_request_and_agent(proxy: Gateway, server: Curious) -> None:
    arguments = rounds()
    asked = await ask(proxy, arguments)
    state = asked["result"]["requestState"]
    more = {"inputResponses": ANSWER, "requestState": state}
    named = {"name": "ask", "arguments": arguments, **more}
    foreign = proxy.issuer.token(sub=OTHER_AGENT)
    before = len(proxy.authorizer.asks)
    refused = {
        "other arguments": await retry(proxy, asked, rounds(2)),
        "an unknown member": await ask(proxy, arguments, more={**more, "own": 1}),
        "another method": (await proxy.modern("prompts/get", named, capabilities=EVERYTHING))[1],
        "another agent": await retry(proxy, asked, arguments, token=foreign),
        "another server": await retry(proxy, asked, arguments, server="plain"),
        "altered": await retry(proxy, {"result": {"requestState": altered(state, -2)}}, arguments),
        "tampered": await retry(proxy, {"result": {"requestState": f"{state}-x"}}, arguments),
        "the server's own": await retry(proxy, {"result": {"requestState": "1:own"}}, arguments),
        "no answers": await retry(proxy, asked, arguments, None),
        "a list of answers": await retry(proxy, asked, arguments, []),
    }

    assert dict.fromkeys(refused, -32602) == {n: a["error"]["code"] for n, a in refused.items()}
    assert (before, 1) == (len(proxy.authorizer.asks), len(server.calls()))
    assert len(refused) == len(proxy.records("call.rejected"))
    assert ANSWER == said(await retry(proxy, asked, arguments))["responses"]


FOREIGN = {**LOGIN, "url": "https://evil.example/"}
REFUSED: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "sampling without grant": ("plain", EVERYTHING,
                               {"method": "sampling/createMessage", "params": SAMPLE}, ""),
    "roots without grant": ("plain", EVERYTHING, {"method": "roots/list"}, ""),
    "a page without grant": ("plain", EVERYTHING, {"method": "elicitation/create",
                                                   "params": LOGIN}, ""),
    "a foreign page": ("notes", EVERYTHING, {"method": "elicitation/create",
                                             "params": FOREIGN}, ""),
    "a secret": ("notes", EVERYTHING, {"method": "elicitation/create", "params": SECRET}, ""),
    "undeclared": ("notes", {}, {"method": "elicitation/create", "params": FORM}, ""),
    "another method": ("notes", EVERYTHING, {"method": "tools/call", "params": {}}, ""),
    "no request": ("notes", EVERYTHING, {"params": {}}, "upstream_protocol"),
    "no params": ("notes", EVERYTHING, {"method": "roots/list", "params": 1}, "upstream_protocol"),
}  # fmt: skip


@promise("answers:asked-by-grant")
@pytest.mark.parametrize("era", ["modern", "legacy"])
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
async def test_what_is_not_granted_reaches_nobody_and_is_recorded(
    proxy: Gateway, server: Curious, era: str, case: tuple[str, Any, dict[str, Any], str]
) -> None:
    slug, declared, request, why = case
    arguments = {"rounds": [{"inputRequests": {"a": WHO["who"], "b": request}}]}
    if era == "legacy":
        headers = await session(proxy, declared, server=slug)
        params = {"name": "ask", "arguments": arguments}
        body = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
        _, answer = await proxy.post(body, headers=headers, server=slug)
    else:
        answer = await ask(proxy, arguments, capabilities=declared, server=slug)

    why = why or "capability_not_granted"
    assert (True, why) == (answer["result"]["isError"], answer["result"]["_meta"][META]["reason"])
    (outcome,) = proxy.records("call.outcome")
    assert ("upstream_error", why) == (outcome["status"], outcome["error"])


ODD: dict[str, dict[str, Any]] = {
    "nothing": {},
    "nine questions": {"inputRequests": {str(n): WHO["who"] for n in range(9)}},
    "no object": {"inputRequests": []},
    "a state that is no text": {"inputRequests": WHO, "requestState": 5},
    "a state beyond measure": {"inputRequests": WHO, "requestState": "1:" + "x" * 50_000},
    "an unknown type": {"resultType": "partial"},
}


@pytest.mark.parametrize("result", ODD.values(), ids=ODD)
async def test_what_is_no_question_is_a_protocol_error(
    proxy: Gateway, server: Curious, result: dict[str, Any]
) -> None:
    answer = await ask(proxy, {"rounds": [result]})

    assert "upstream_protocol" == answer["result"]["_meta"][META]["reason"]


async def test_eight_questions_are_asked(proxy: Gateway, server: Curious) -> None:
    eight = {str(n): WHO["who"] for n in range(8)}
    asked = await ask(proxy, {"rounds": [{"inputRequests": eight}]})

    assert eight == asked["result"]["inputRequests"]


async def test_nothing_of_a_question_reads_as_ours(proxy: Gateway, server: Curious) -> None:
    params = {**FORM, "_meta": {"com.behavry/x": 1, "own": 2}}
    forged = {
        "inputRequests": {"who": {"method": "elicitation/create", "params": params}},
        "_meta": {META: {"verdict": "allow"}, "own": 1},
    }
    asked = await ask(proxy, {"rounds": [forged]})

    assert {"own": 1} == asked["result"]["_meta"]
    assert {"own": 2} == asked["result"]["inputRequests"]["who"]["params"]["_meta"]


# With a person in between -----------------------------------------------------------------------


async def test_an_answer_that_waits_for_a_person_is_carried_until_it_is_approved(
    proxy: Gateway, server: Curious
) -> None:
    """The agent repeats what it was asked last, which is the approval: its answer to the server
    comes along in our state.
    """
    arguments = rounds()
    asked = await ask(proxy, arguments)
    proxy.authorizer.rules.verdicts["notes", "ask"] = ("intercept", "four_eyes")
    shown = await retry(proxy, asked, arguments)
    (escalation,) = proxy.authorizer.tickets
    other = await retry(proxy, shown, rounds(2), ACCEPT)
    proxy.authorizer.settle(escalation, "approved")
    answer = await retry(proxy, shown, arguments, ACCEPT)
    again = await retry(proxy, shown, arguments, ACCEPT)

    assert ["approval"] == list(shown["result"]["inputRequests"])
    assert -32602 == other["error"]["code"]
    assert {"responses": ANSWER, "state": "1:own"} == said(answer)
    assert "input_required" == again["result"]["resultType"]  # used up: another approval
    assert 2 == len(server.calls())
    # The approval was for the answer: the same call with another one has to wait again.
    before = len(proxy.authorizer.tickets)
    await retry(proxy, asked, arguments, {"who": {"action": "decline"}})
    assert before + 1 == len(proxy.authorizer.tickets)


async def test_an_approved_call_may_ask_and_its_answer_is_not_approved_with_it(
    proxy: Gateway, server: Curious
) -> None:
    arguments = rounds()
    proxy.authorizer.rules.verdicts["notes", "ask"] = ("intercept", "four_eyes")
    shown = await ask(proxy, arguments)
    proxy.authorizer.settle(next(iter(proxy.authorizer.tickets)), "approved")
    asked = await retry(proxy, shown, arguments, ACCEPT)
    pending = await retry(proxy, asked, arguments)

    assert WHO == asked["result"]["inputRequests"]
    assert ["approval"] == list(pending["result"]["inputRequests"])
    assert 1 == len(server.calls())


async def test_an_answer_too_long_to_carry_is_held_instead(proxy: Gateway, server: Curious) -> None:
    arguments, long = rounds(), {"who": {"action": "accept", "content": {"name": "x" * 40_000}}}
    asked = await ask(proxy, arguments)
    proxy.authorizer.rules.verdicts["notes", "ask"] = ("intercept", "four_eyes")
    held = asyncio.ensure_future(retry(proxy, asked, arguments, long))
    await until(lambda: proxy.running.waiting() == 1)
    proxy.authorizer.settle(next(iter(proxy.authorizer.tickets)), "approved")

    assert long == said(await held)["responses"]


async def test_what_runs_for_a_task_asks_nobody(proxy: Gateway, server: Curious) -> None:
    """Whoever polls for an approval is not there to be asked by the tool."""
    proxy.authorizer.rules.verdicts["notes", "ask"] = ("intercept", "four_eyes")
    capabilities = {**TASKS, "elicitation": {"form": {}}}
    created = await ask(proxy, rounds(), capabilities=capabilities)
    proxy.authorizer.settle(next(iter(proxy.authorizer.tickets)), "approved")
    ended = await end_of(proxy, created, capabilities)

    assert ("task", "completed") == (created["result"]["resultType"], ended["result"]["status"])
    result = ended["result"]["result"]
    assert "capability_not_granted" == result["_meta"][META]["reason"]
    (call,) = server.calls()
    assert {} == call["_meta"][wire.CAPABILITIES_META]


async def test_an_answered_call_that_becomes_a_task_runs_with_its_answer(
    proxy: Gateway, server: Curious
) -> None:
    capabilities = {**TASKS, "elicitation": {"form": {}}}
    arguments = rounds()
    asked = await ask(proxy, arguments, capabilities=capabilities)
    proxy.authorizer.rules.verdicts["notes", "ask"] = ("intercept", "four_eyes")
    created = await retry(proxy, asked, arguments, capabilities=capabilities)
    proxy.authorizer.settle(next(iter(proxy.authorizer.tickets)), "approved")
    ended = await end_of(proxy, created, capabilities)

    assert {"responses": ANSWER, "state": "1:own"} == said(ended["result"])


# A legacy agent ---------------------------------------------------------------------------------


async def test_a_legacy_agent_is_asked_on_its_stream_and_the_call_goes_on_with_its_answers(
    proxy: Gateway, server: Curious
) -> None:
    requests = {**WHO, "model": {"method": "sampling/createMessage", "params": SAMPLE}}
    arguments = {"rounds": [{"inputRequests": requests, "requestState": "1:own"}]}
    asked = Asked(proxy, await session(proxy), **arguments)
    sampled = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "hi"}}
    results = {"elicitation/create": YES, "sampling/createMessage": sampled}
    for _ in requests:
        request = await asked.next()
        await asked.answer(request["id"], body={"result": results[request["method"]]})

    responses = {"who": YES, "model": sampled}
    assert {"responses": responses, "state": "1:own"} == await asked.said()
    answer = await asked.task
    assert "resultType" not in answer["result"]
    assert [None, responses] == [one.get("inputResponses") for one in server.calls()]
    assert EVERYTHING == server.calls()[0]["_meta"][wire.CAPABILITIES_META]
    # Both answers were decided, and so was the call that carries them.
    methods = [one["method"] for one in proxy.records("call.intent")]
    assert ["tools/call", *results, "tools/call"] == [methods[0], *sorted(methods[1:3]), methods[3]]
    assert 4 == len(proxy.records("call.outcome"))
    first, *_, last = proxy.records("call.intent")
    assert first["arguments"]["digest"] != last["arguments"]["digest"]


async def test_a_page_gets_the_id_that_a_legacy_agent_needs(
    proxy: Gateway, server: Curious
) -> None:
    params = {name: value for name, value in LOGIN.items() if name != "elicitationId"}
    page = {"method": "elicitation/create", "params": params}
    asked = Asked(proxy, await session(proxy), rounds=[{"inputRequests": {"p": page}}])
    request = await asked.next()
    await asked.answer(request["id"], body={"result": {"action": "accept"}})

    assert {"responses": {"p": {"action": "accept"}}, "state": None} == await asked.said()
    assert request["params"].pop("elicitationId")
    assert params == request["params"]


async def test_a_user_who_cannot_be_asked_has_not_chosen(proxy: Gateway, server: Curious) -> None:
    asked = Asked(proxy, await session(proxy), **rounds())
    error = {"code": -32603, "message": "no window"}
    await asked.answer((await asked.next())["id"], body={"error": error})

    assert {"who": {"action": "cancel"}} == (await asked.said())["responses"]


@pytest.mark.parametrize(
    ("verdict", "error"), [("deny", None), ("allow", {"code": -1, "message": "no"})]
)
async def test_without_an_answer_the_call_ends(
    proxy: Gateway, server: Curious, verdict: str, error: Any
) -> None:
    model = {"m": {"method": "sampling/createMessage", "params": SAMPLE}}
    asked = Asked(proxy, await session(proxy), rounds=[{"inputRequests": model}])
    request = await asked.next()
    proxy.authorizer.rules.verdicts["notes", ""] = (verdict, "no_answers")
    body = {"error": error} if error else {"result": {"role": "assistant"}}
    assert 202 == await asked.answer(request["id"], body=body)
    async with asyncio.timeout(5):
        answer = await asked.task

    reason = "capability_not_granted" if error else "policy"
    assert (True, reason) == (
        answer["result"]["isError"], answer["result"]["_meta"][META]["reason"],
    )  # fmt: skip
    assert 1 == len(server.calls())


async def test_a_retry_that_is_denied_does_not_run(proxy: Gateway, server: Curious) -> None:
    asked = Asked(proxy, await session(proxy), **rounds())
    request = await asked.next()
    proxy.authorizer.rules.verdicts["notes", "ask"] = ("deny", "enough")
    await asked.answer(request["id"])
    async with asyncio.timeout(5):
        answer = await asked.task

    assert "enough" == answer["result"]["_meta"][META]["reason"]
    assert 1 == len(server.calls())
    assert ["tools/call"] == [one["method"] for one in proxy.records("call.denied")]


async def test_a_retry_that_waits_for_a_person_shows_the_page_on_the_same_stream(
    proxy: Gateway, server: Curious
) -> None:
    asked = Asked(proxy, await session(proxy), **rounds())
    request = await asked.next()
    proxy.authorizer.rules.verdicts["notes", "ask"] = ("intercept", "four_eyes")
    await asked.answer(request["id"])
    page = await asked.next()
    assert 1 == len(server.calls())
    proxy.authorizer.settle(next(iter(proxy.authorizer.tickets)), "approved")

    assert {"responses": ANSWER, "state": "1:own"} == await asked.said()
    assert "url" == page["params"]["mode"]
    assert ["intercept"] == [one["verdict"] for one in proxy.records("call.held")]


async def test_a_server_that_asks_without_end_is_ended(proxy: Gateway, server: Curious) -> None:
    asked = Asked(proxy, await session(proxy), **rounds(MAX_TURNS + 1))
    for _ in range(MAX_TURNS):
        await asked.answer((await asked.next())["id"])
    async with asyncio.timeout(5):
        answer = await asked.task

    assert "upstream_protocol" == answer["result"]["_meta"][META]["reason"]
    assert MAX_TURNS + 1 == len(server.calls())


async def test_a_call_that_is_given_up_while_it_asks_is_not_repeated(
    proxy: Gateway, server: Curious
) -> None:
    asked = Asked(proxy, await session(proxy), **rounds())
    request = await asked.next()
    params = {"requestId": "c"}
    note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
    await proxy.post(note, headers=asked.headers)
    with pytest.raises(AssertionError, match="no answer"):
        await asyncio.wait_for(asked.task, 5)

    assert 400 == await asked.answer(request["id"])
    assert 1 == len(server.calls())


async def test_urls_of_an_agent_that_shows_none_stay_here(proxy: Gateway, server: Curious) -> None:
    page = {"method": "elicitation/create", "params": LOGIN}
    answer = await ask(
        proxy, {"rounds": [{"inputRequests": {"p": page}}]}, capabilities={"elicitation": {}}
    )
    shown = await ask(proxy, {"rounds": [{"inputRequests": {"p": page}}]}, capabilities=URLS)

    assert "capability_not_granted" == answer["result"]["_meta"][META]["reason"]
    assert page == shown["result"]["inputRequests"]["p"]
