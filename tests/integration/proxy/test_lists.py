"""Lists beside that of tools, completion, log levels: what agents are given (mcp.md 4, 6)."""

from typing import Any

import orjson
import pytest

from tests.altered import altered
from tests.fakes.gateway import Gateway, until
from tests.fakes.tool_server import ToolServer

ERAS = pytest.mark.parametrize("era", ["modern", "legacy"])
PROMPTS = tuple(f"prompt-{number}" for number in range(7))
NOTES = tuple(f"n{number}" for number in range(7))
COMPLETE = {
    "ref": {"type": "ref/prompt", "name": "greet"},
    "argument": {"name": "who", "value": "Ad"},
}


def asked(tools: ToolServer, method: str) -> list[dict[str, Any]]:
    bodies = [orjson.loads(body) for body in tools.bodies_seen() if body]
    return [body for body in bodies if body.get("method") == method]


async def legacy(
    proxy: Gateway, sent: dict[str, str], method: str, params: dict[str, Any]
) -> dict[str, Any]:
    body = {"jsonrpc": "2.0", "id": 2, "method": method, "params": params}
    _, answer = await proxy.post(body, headers=sent)
    found: dict[str, Any] = answer
    return found


# --- whole lists ------------------------------------------------------------------------------


@ERAS
async def test_prompts_and_templates_come_whole_and_once(
    proxy: Gateway, tools: ToolServer, era: str
) -> None:
    tools.behave(eras=(era,), prompts=PROMPTS, templates=NOTES, page=3)
    proxy.forget_upstreams()

    _, prompts = await proxy.modern("prompts/list")
    _, templates = await proxy.modern("resources/templates/list")
    again = [(await proxy.modern(one))[1] for one in ("prompts/list", "resources/templates/list")]

    assert [prompts, templates] == again
    assert list(PROMPTS) == [one["name"] for one in prompts["result"]["prompts"]]
    assert list(NOTES) == [one["name"] for one in templates["result"]["resourceTemplates"]]
    for answer in (prompts["result"], templates["result"]):
        assert ("private", "complete") == (answer["cacheScope"], answer["resultType"])
        assert answer["ttlMs"] <= 30_000
        assert "nextCursor" not in answer
    assert [3, 3] == [
        len(asked(tools, method)) for method in ("prompts/list", "resources/templates/list")
    ]


async def test_a_whole_list_has_no_second_page(proxy: Gateway, tools: ToolServer) -> None:
    tools.behave(prompts=PROMPTS)

    for method in ("tools/list", "prompts/list", "resources/templates/list"):
        _, answer = await proxy.modern(method, {"cursor": "1"})
        assert (-32602, "Invalid cursor") == (answer["error"]["code"], answer["error"]["message"])


async def test_prompts_with_odd_names_are_not_shown(proxy: Gateway, tools: ToolServer) -> None:
    tools.behave(prompts=("good", "two words", "x" * 129, "", "naïve"))

    _, answer = await proxy.modern("prompts/list")

    assert ["good"] == [one["name"] for one in answer["result"]["prompts"]]


async def test_a_server_without_prompts_says_so_itself(proxy: Gateway, tools: ToolServer) -> None:
    tools.behave(methods_status={"prompts/list": 500})

    _, failed = await proxy.modern("prompts/list")
    tools.behave()
    _, empty = await proxy.modern("prompts/list")

    assert 5021 == failed["error"]["code"]
    assert [] == empty["result"]["prompts"]


async def test_a_list_without_end_is_none(proxy: Gateway, tools: ToolServer) -> None:
    tools.behave(prompts=tuple(f"p{number}" for number in range(5_001)), page=1_000)

    _, answer = await proxy.modern("prompts/list")

    assert (5021, "upstream_protocol") == (answer["error"]["code"], answer["error"]["message"])


# --- resources --------------------------------------------------------------------------------


@ERAS
async def test_resources_come_page_by_page_under_cursors_of_ours(
    proxy: Gateway, tools: ToolServer, era: str
) -> None:
    tools.behave(eras=(era,), resources=NOTES, page=3)
    proxy.forget_upstreams()
    names: list[str] = []
    cursors: list[str] = []
    params: dict[str, Any] = {}

    while True:
        _, answer = await proxy.modern("resources/list", params)
        names += [one["name"] for one in answer["result"]["resources"]]
        if "nextCursor" not in answer["result"]:
            break
        cursors.append(answer["result"]["nextCursor"])
        params = {"cursor": cursors[-1]}

    assert list(NOTES) == names
    assert all(cursor.startswith("b1.") for cursor in cursors)
    assert [None, "3", "6"] == [
        one["params"].get("cursor") for one in asked(tools, "resources/list")
    ]
    for bad in ("3", altered(cursors[0], -2), ""):
        _, refused = await proxy.modern("resources/list", {"cursor": bad})
        assert (-32602, "Invalid cursor") == (refused["error"]["code"], refused["error"]["message"])
    _, elsewhere = await proxy.modern("prompts/list", {"cursor": cursors[0]})
    assert -32602 == elsewhere["error"]["code"]


# --- completion -------------------------------------------------------------------------------


@ERAS
async def test_what_is_typed_is_completed_and_recorded_without_a_word(
    proxy: Gateway, tools: ToolServer, era: str
) -> None:
    tools.behave(eras=(era,), completes=True)
    proxy.forget_upstreams()
    decided = proxy.running.counters.read().get("proxy.decide.asks", 0)

    _, answer = await proxy.modern("completion/complete", COMPLETE)

    assert ["Ade", "Ad"] == answer["result"]["completion"]["values"]
    assert "complete" == answer["result"]["resultType"]
    [record] = await proxy.recorded("call.outcome")
    assert ("ok", "completion/complete") == (record["status"], record["method"])
    assert None is record.get("decision")
    assert "Ade" not in str(record)
    assert decided == proxy.running.counters.read().get("proxy.decide.asks", 0)
    assert [] == proxy.records("call.intent")


async def test_a_legacy_agent_is_answered_in_its_dialect(proxy: Gateway, tools: ToolServer) -> None:
    tools.behave(eras=("modern",), completes=True)
    proxy.forget_upstreams()
    sent = await proxy.open_session()

    answer = await legacy(proxy, sent, "completion/complete", COMPLETE)

    assert {"completion": {"values": ["Ade", "Ad"]}} == answer["result"]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {**COMPLETE, "ref": {"type": "ref/prompt", "name": "two words"}},
        {**COMPLETE, "ref": {"type": "ref/tool", "name": "read_note"}},
        {**COMPLETE, "ref": {"type": "ref/resource"}},
        {**COMPLETE, "argument": {"name": "who", "value": 5}},
        {**COMPLETE, "argument": "who"},
    ],
)
async def test_what_completes_nothing_stays_here(
    proxy: Gateway, tools: ToolServer, params: dict[str, Any]
) -> None:
    tools.behave(completes=True)

    _, answer = await proxy.modern("completion/complete", params)

    assert -32602 == answer["error"]["code"]
    assert [] == asked(tools, "completion/complete")


async def test_a_completion_that_fails_is_recorded_too(proxy: Gateway, tools: ToolServer) -> None:
    _, unknown = await proxy.modern("completion/complete", COMPLETE)
    tools.behave(methods_status={"completion/complete": 401})
    _, refused = await proxy.modern("completion/complete", COMPLETE)

    assert (-32601, 5023) == (unknown["error"]["code"], refused["error"]["code"])
    outcomes = await proxy.recorded("call.outcome", count=2)
    assert ["tool_error", "upstream_error"] == [one["status"] for one in outcomes]


# --- how loud ---------------------------------------------------------------------------------


async def test_a_legacy_server_is_told_how_loud_its_session_is(
    proxy: Gateway, tools: ToolServer
) -> None:
    tools.behave(eras=("legacy",), sessions=True, logs=True)
    proxy.forget_upstreams()
    sent = await proxy.open_session()

    answer = await legacy(proxy, sent, "logging/setLevel", {"level": "warning"})

    assert {} == answer["result"]
    [told] = asked(tools, "logging/setLevel")
    assert {"level": "warning"} == told["params"]


async def test_a_modern_server_is_told_with_each_request(proxy: Gateway, tools: ToolServer) -> None:
    tools.behave(eras=("modern",), logs=True)
    proxy.forget_upstreams()
    sent, other = await proxy.open_session(), await proxy.open_session()
    params = {"name": "read_note", "arguments": {"call": "c1"}}

    await legacy(proxy, sent, "tools/call", params)
    answer = await legacy(proxy, sent, "logging/setLevel", {"level": "warning"})
    await legacy(proxy, sent, "tools/call", params)
    await legacy(proxy, other, "tools/call", params)

    assert {} == answer["result"]
    level = "io.modelcontextprotocol/logLevel"
    assert [None, "warning", None] == [
        one["params"]["_meta"].get(level) for one in asked(tools, "tools/call")
    ]
    assert [] == asked(tools, "logging/setLevel")


@pytest.mark.parametrize("level", ["loud", "", None, 3, ["info"]])
async def test_a_level_that_nobody_knows_is_refused(
    proxy: Gateway, tools: ToolServer, level: Any
) -> None:
    tools.behave(eras=("legacy",), logs=True)
    proxy.forget_upstreams()
    sent = await proxy.open_session()

    answer = await legacy(proxy, sent, "logging/setLevel", {"level": level})

    assert -32602 == answer["error"]["code"]
    assert [] == asked(tools, "logging/setLevel")


async def test_modern_agents_and_servers_without_logs_know_no_such_method(
    proxy: Gateway, tools: ToolServer
) -> None:
    status, modern = await proxy.modern("logging/setLevel", {"level": "info"})
    sent = await proxy.open_session()
    old = await legacy(proxy, sent, "logging/setLevel", {"level": "info"})

    assert (404, -32601) == (status, modern["error"]["code"])
    assert -32601 == old["error"]["code"]


# --- what is announced ------------------------------------------------------------------------


@ERAS
async def test_what_is_announced_is_what_is_relayed(
    proxy: Gateway, tools: ToolServer, era: str
) -> None:
    tools.behave(eras=(era,), prompts=PROMPTS, resources=NOTES, logs=True, completes=True)
    proxy.forget_upstreams()

    _, discovered = await proxy.modern("server/discover")

    capabilities = discovered["result"]["capabilities"]
    capabilities.pop("extensions")
    assert {
        "tools": {"listChanged": True},
        "prompts": {"listChanged": True},
        "resources": {"listChanged": True},
        "logging": {},
        "completions": {},
    } == capabilities


async def test_who_listens_hears_of_other_prompts_and_not_of_the_same(
    proxy: Gateway, tools: ToolServer
) -> None:
    changed = "notifications/prompts/list_changed"
    tools.behave(eras=("legacy",), sessions=True, stream=True, prompts=("one",))
    proxy.forget_upstreams()
    sent = await proxy.open_session()
    await legacy(proxy, sent, "prompts/list", {})
    headers = {
        **sent, "authorization": f"Bearer {proxy.issuer.token()}", "accept": "text/event-stream",
    }  # fmt: skip

    async with proxy.http.get(proxy.mcp(), headers=headers) as stream:
        await until(lambda: tools.listeners() == 1)
        before = len(asked(tools, "prompts/list"))
        tools.say(changed)
        await until(lambda: len(asked(tools, "prompts/list")) == before + 1)
        tools.behave(eras=("legacy",), sessions=True, stream=True, prompts=("one", "two"))
        tools.say(changed)
        tools.say("notifications/message", {"level": "info", "data": "after"})
        heard: list[str] = []
        while not {changed, "notifications/message"} <= set(heard):
            line = await stream.content.readline()
            if line.startswith(b"data: "):
                heard.append(orjson.loads(line[6:])["method"])

    assert 1 == heard.count(changed)
    answer = await legacy(proxy, sent, "prompts/list", {})
    assert ["one", "two"] == [one["name"] for one in answer["result"]["prompts"]]
