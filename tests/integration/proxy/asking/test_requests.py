"""What legacy tool servers ask of agents (mcp.md 2.3, 3.4): who is asked, who answers, what of that
is decided and recorded.
"""

import asyncio
from typing import Any

import orjson
import pytest

from services.proxy.asking import requests
from tests.altered import altered
from tests.fakes.asked import EVERYTHING, FORM, LOGIN, SAMPLE, SECRET, YES, Asked, elicit, session
from tests.fakes.authorizer import OTHER_AGENT
from tests.fakes.curious_server import Curious
from tests.fakes.gateway import Gateway, until
from tests.promises import promise

META = "com.behavry/decision"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("id", [7, "own-id", "x" * 256])
async def test_a_legacy_agent_is_asked_under_an_id_of_ours_and_its_answer_is_a_decision(
    proxy: Gateway, legacy: Curious, id: Any
) -> None:
    asked = Asked(proxy, await session(proxy), asks=[elicit(id)])
    request = await asked.next()
    status = await asked.answer(request["id"])
    said = await asked.said()

    assert ("elicitation/create", FORM, 202) == (request["method"], request["params"], status)
    assert id != request["id"]
    assert len(request["id"]) <= 256
    assert {str(id): {"result": YES}} == said == {str(id): legacy.answers[id]}
    decided = orjson.loads(proxy.authorizer.asks[-1].request)
    assert ("elicitation/create", "") == (decided["method"], decided["tool"])
    assert YES == orjson.loads(proxy.authorizer.asks[-1].arguments_json)
    intents = {one["decision"]: one["method"] for one in proxy.records("call.intent")}
    outcomes = {one["decision"]: one["status"] for one in proxy.records("call.outcome")}
    assert ["tools/call", "elicitation/create"] == list(intents.values())
    assert dict.fromkeys(intents, "ok") == outcomes


async def test_each_kind_of_request_reaches_who_declared_it(
    proxy: Gateway, legacy: Curious
) -> None:
    asks = [
        elicit(1), elicit(2, LOGIN),
        {"id": 3, "method": "sampling/createMessage", "params": SAMPLE},
        {"id": 4, "method": "roots/list"},
    ]  # fmt: skip
    asked = Asked(proxy, await session(proxy), asks=asks)
    results: dict[str, dict[str, Any]] = {
        "elicitation/create": {"action": "decline"}, "roots/list": {"roots": []},
        "sampling/createMessage": {"role": "assistant", "model": "m"},
    }  # fmt: skip
    seen = []
    for _ in asks:
        request = await asked.next()
        seen.append(request["method"])
        await asked.answer(request["id"], body={"result": results[request["method"]]})
    said = await asked.said()

    assert [one["method"] for one in asks] == seen
    assert {str(one["id"]): {"result": results[one["method"]]} for one in asks} == said
    assert EVERYTHING == legacy.told[-1]


async def test_an_error_for_an_answer_goes_up_too_and_is_decided(
    proxy: Gateway, legacy: Curious
) -> None:
    asked = Asked(proxy, await session(proxy), asks=[elicit()])
    error = {"code": -1, "message": "no"}
    await asked.answer((await asked.next())["id"], body={"error": error})

    assert {"1": {"error": error}} == await asked.said()
    assert {"error": error} == orjson.loads(proxy.authorizer.asks[-1].arguments_json)


@promise("answers:decided")
@pytest.mark.parametrize("verdict", ["deny", "intercept"])
async def test_an_answer_that_is_not_allowed_does_not_go_up(
    proxy: Gateway, legacy: Curious, verdict: str
) -> None:
    asked = Asked(proxy, await session(proxy), asks=[elicit()])
    request = await asked.next()
    proxy.authorizer.rules.verdicts["notes", ""] = (verdict, "no_answers")
    status = await asked.answer(request["id"])
    if verdict == "intercept":
        await until(lambda: proxy.running.waiting() == 1)
        proxy.authorizer.settle(next(iter(proxy.authorizer.tickets)), "denied")
    said = await asked.said()

    assert 202 == status
    assert {"1": {"error": {"code": 4030, "message": "no answer"}}} == said
    (denied,) = proxy.records("call.denied")
    assert "elicitation/create" == denied["method"]


async def test_an_answer_that_a_person_approves_goes_up(proxy: Gateway, legacy: Curious) -> None:
    asked = Asked(proxy, await session(proxy), asks=[elicit()])
    request = await asked.next()
    proxy.authorizer.rules.verdicts["notes", ""] = ("intercept", "four_eyes")
    assert 202 == await asked.answer(request["id"])
    await until(lambda: proxy.running.waiting() == 1)
    assert {} == legacy.answers
    proxy.authorizer.settle(next(iter(proxy.authorizer.tickets)), "approved")

    assert {"1": {"result": YES}} == await asked.said()


async def test_one_question_has_one_answer_from_who_was_asked(
    proxy: Gateway, legacy: Curious
) -> None:
    mine, second = await session(proxy), await session(proxy)
    token = proxy.issuer.token(sub=OTHER_AGENT)
    theirs = await session(proxy, token=token)
    elsewhere = await session(proxy, server="plain")
    asked = Asked(proxy, mine, asks=[elicit()])
    given = (await asked.next())["id"]
    before = len(proxy.authorizer.asks)
    refused = {
        "another session": await asked.answer(given, headers=second),
        "another agent": await asked.answer(given, headers=theirs, token=token),
        "another server": await asked.answer(given, headers=elsewhere, server="plain"),
        "altered": await asked.answer(altered(given, -2)),
        "the server's own id": await asked.answer(1),
        "forged": await asked.answer("b1.20000.AAAA"),
        "a session": await asked.answer(mine["mcp-session-id"][:256]),
        "nothing said": await asked.answer(given, body={"result": "yes"}),
    }
    assert dict.fromkeys(refused, 400) == refused
    assert (before, {}) == (len(proxy.authorizer.asks), legacy.answers)

    first, again = await asked.answer(given), await asked.answer(given)
    await asked.said()
    late = await asked.answer(given)

    assert (202, 400, 400) == (first, again, late)
    assert 1 == [one.get("id") for one in legacy.seen if "method" not in one].count(1)
    assert len(refused) + 2 == len(proxy.records("call.rejected"))


async def test_a_call_that_ended_takes_its_questions_with_it(
    proxy: Gateway, legacy: Curious
) -> None:
    asked = Asked(proxy, await session(proxy), asks=[elicit()], withdrawn=[1])
    request = await asked.next()
    await asked.said()

    assert 400 == await asked.answer(request["id"])
    assert {} == legacy.answers


async def test_what_the_server_takes_back_is_taken_back_by_the_agents_id(
    proxy: Gateway, legacy: Curious
) -> None:
    back = {"method": "notifications/cancelled", "params": {"requestId": 1, "reason": "late"}}
    unknown = {"method": "notifications/cancelled", "params": {"requestId": 99}}
    asks = [elicit(1), unknown, back, elicit(2)]
    asked = Asked(proxy, await session(proxy), asks=asks, withdrawn=[1])
    first, cancelled, second = await asked.next(), await asked.next(), await asked.next()
    assert 400 == await asked.answer(first["id"])
    await asked.answer(second["id"])

    assert {"1": None, "2": {"result": YES}} == await asked.said()
    assert {"requestId": first["id"], "reason": "late"} == cancelled["params"]


FOREIGN = {**LOGIN, "url": "https://login.example.com.evil.example/a"}
REFUSED: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "sampling without grant": ("plain", EVERYTHING,
                               {"method": "sampling/createMessage", "params": SAMPLE}),
    "roots without grant": ("plain", EVERYTHING, {"method": "roots/list"}),
    "a page without grant": ("plain", EVERYTHING, {"method": "elicitation/create",
                                                   "params": LOGIN}),
    "a foreign page": ("notes", EVERYTHING, {"method": "elicitation/create", "params": FOREIGN}),
    "a secret": ("notes", EVERYTHING, {"method": "elicitation/create", "params": SECRET}),
    "undeclared": ("notes", {}, {"method": "elicitation/create", "params": FORM}),
    "an agent without pages": ("notes", {"elicitation": {}},
                               {"method": "elicitation/create", "params": LOGIN}),
    "as a task": ("notes", EVERYTHING, {"method": "tasks/list", "params": {}}),
    "nonsense": ("notes", EVERYTHING, {"method": "x/y", "params": {}}),
}  # fmt: skip


@promise("answers:asked-by-grant")
@pytest.mark.parametrize(("slug", "capabilities", "ask"), REFUSED.values(), ids=REFUSED)
async def test_what_is_not_granted_reaches_nobody_and_is_recorded(
    proxy: Gateway, legacy: Curious, slug: str, capabilities: Any, ask: dict[str, Any]
) -> None:
    headers = await session(proxy, capabilities, server=slug)
    params = {"name": "ask", "arguments": {"asks": [{"id": 1, **ask}]}}
    body = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
    _, answer = await proxy.post(body, headers=headers, server=slug)

    said = orjson.loads(answer["result"]["content"][0]["text"])
    assert {"1": {"error": {"code": -32601, "message": "not supported"}}} == said
    (refused,) = proxy.records("call.rejected")
    assert (ask["method"], "capability_not_granted", "deny") == (
        refused["method"], refused["reason"], refused["verdict"],
    )  # fmt: skip


async def test_nobody_is_asked_more_than_eight_things_at_once(
    proxy: Gateway, legacy: Curious
) -> None:
    asked = Asked(proxy, await session(proxy), asks=[elicit(n) for n in range(1, 10)])
    for _ in range(requests.MAX_OPEN):
        await asked.answer((await asked.next())["id"])
    said = await asked.said()

    assert -32601 == said.pop("9")["error"]["code"]
    assert {json_id: {"result": YES} for json_id in map(str, range(1, 9))} == said
    assert ["capacity"] == [one["reason"] for one in proxy.records("call.rejected")]


async def test_answers_to_many_calls_never_cross(proxy: Gateway, legacy: Curious) -> None:
    headers = await session(proxy)
    calls = {
        f"q{n}": Asked(proxy, headers, asks=[elicit(f"q{n}", {**FORM, "message": f"q{n}"})])
        for n in range(12)
    }

    async def answer(asked: Asked) -> Any:
        request = await asked.next()
        content = {"action": "accept", "content": {"name": request["params"]["message"]}}
        await asked.answer(request["id"], body={"result": content})
        return await asked.said()

    said = await asyncio.gather(*(answer(asked) for asked in calls.values()))

    wanted = {name: {"action": "accept", "content": {"name": name}} for name in calls}
    assert [{name: {"result": wanted[name]}} for name in calls] == said


async def test_what_is_asked_beside_any_call_reaches_the_open_stream(
    proxy: Gateway, legacy: Curious
) -> None:
    headers = await session(proxy)
    token = {"authorization": f"Bearer {proxy.issuer.token()}", "accept": "text/event-stream"}
    async with proxy.http.get(proxy.mcp(), headers={**headers, **token}) as stream:
        await until(lambda: len(legacy.streams) == 1)
        legacy.say(elicit("beside"))
        legacy.say({"id": "roots", "method": "tasks/list", "params": {}})
        async with asyncio.timeout(5):
            while b'"id":' not in (line := await stream.content.readline()):
                pass
        request = orjson.loads(line[6:])
        body = {"jsonrpc": "2.0", "id": request["id"], "result": YES}
        status, _ = await proxy.post(body, headers=headers)
        await until(lambda: len(legacy.answers) == 2)

    assert (202, FORM) == (status, request["params"])
    assert {"result": YES} == legacy.answers["beside"]
    assert -32601 == legacy.answers["roots"]["error"]["code"]


async def test_an_older_agent_is_not_told_of_pages(proxy: Gateway, legacy: Curious) -> None:
    await session(proxy, version="2025-06-18")
    await session(proxy, server="plain")

    told: dict[str, Any] = {"elicitation": {"form": {}}}
    assert [{**EVERYTHING, **told}, told] == [one for one in legacy.told if one]


async def test_a_modern_agent_declares_nothing_to_a_legacy_server(
    proxy: Gateway, legacy: Curious
) -> None:
    _, answer = await proxy.call("ask", {"asks": [elicit()]}, capabilities=EVERYTHING)

    said = orjson.loads(answer["result"]["content"][0]["text"])
    assert -32601 == said["1"]["error"]["code"]
    assert {} == legacy.told[-1]
    (refused,) = proxy.records("call.rejected")
    assert "capability_not_granted" == refused["reason"]


PAGES: dict[str, tuple[Any, Any, bool]] = {
    "a host that is granted": (EVERYTHING, {"elicitations": [LOGIN]}, True),
    "another host": (EVERYTHING, {"elicitations": [LOGIN, FOREIGN]}, False),
    "an agent without pages": ({"elicitation": {}}, {"elicitations": [LOGIN]}, False),
    "no page": (EVERYTHING, {}, False),
}


@pytest.mark.parametrize("code", [4030, 4031, 4230, 4290, 4510, 5030])
async def test_a_server_that_fails_does_not_speak_in_our_name(
    proxy: Gateway, legacy: Curious, code: int
) -> None:
    said = {"verdict": "deny", "reason": "approval_pending", "decision_id": "x"}
    found = []
    for given in (code, code - 8000, -32050):
        error = {"code": given, "message": "m", "data": said}
        asked = Asked(proxy, await proxy.open_session(), error=error)
        found.append((await asked.task)["error"])

    assert {"code": -32603, "message": "m"} == found[0]
    assert [(code - 8000, said), (-32050, said)] == [
        (one["code"], one["data"]) for one in found[1:]
    ]


@pytest.mark.parametrize(("capabilities", "data", "passes"), PAGES.values(), ids=PAGES)
async def test_an_error_that_sends_the_user_to_a_page_is_a_question_too(
    proxy: Gateway, legacy: Curious, capabilities: Any, data: Any, passes: bool
) -> None:  # fmt: skip
    error = {"code": -32042, "message": "sign in first", "data": data}
    params = {"name": "ask", "arguments": {"error": error}}
    body = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
    _, answer = await proxy.post(body, headers=await session(proxy, capabilities))

    if passes:
        assert error == answer["error"]
    else:
        assert "capability_not_granted" == answer["result"]["_meta"][META]["reason"]
