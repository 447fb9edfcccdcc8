"""Headers that say what the body says (mcp.md 3.2), through a running proxy: before the tool
server, and on the way to it.
"""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.fakes import mcp_wire as wire
from tests.fakes.gateway import Gateway
from tests.fakes.tool_server import ToolServer

TOOL = "read_note"
SCHEMA = {
    "type": "object",
    "properties": {
        "call": {"type": "string"},
        "region": {"type": "string", "x-mcp-header": "Region"},
        "count": {"type": "integer", "x-mcp-header": "Count"},
        "deep": {
            "type": "object",
            "properties": {"flag": {"type": "boolean", "x-mcp-header": "Flag"}},
        },
    },
}
Call = Callable[..., Awaitable[tuple[int, Any]]]


def b64(text: str) -> str:
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


@pytest.fixture
async def call(proxy: Gateway, tools: ToolServer) -> Call:
    """A call of a tool whose arguments are repeated in headers; `drop_notes` has them too, and is
    hidden.
    """
    tools.behave(schemas={TOOL: SCHEMA, "drop_notes": SCHEMA})
    proxy.authorizer.rules.approved.clear()
    proxy.authorizer.reported.clear()
    proxy.forget_catalog()
    await proxy.offered("notes", TOOL)
    proxy.forget_records()

    async def calling(
        arguments: dict[str, Any] | None = None, *, tool: str = TOOL, **headers: str
    ) -> tuple[int, Any]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await proxy.call(tool, arguments or {}, headers=sent)

    return calling


#: What is refused -> (arguments, headers), beside an innocent twin.
PAIRS: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, Any], dict[str, str]]] = {
    "another name": ({}, {"mcp_name": "write_note"}, {}, {"mcp_name": b64(TOOL)}),
    "no name": ({}, {"mcp_name": ""}, {}, {}),
    "a name disguised badly": ({}, {"mcp_name": b64(TOOL)[:-3]}, {}, {"mcp_name": TOOL}),
    "a name disguised in another spelling of base64": (
        {}, {"mcp_name": "=?base64?cmVhZF9ub3Rl===?="}, {}, {"mcp_name": "=?base64?cmVhZF9ub3Rl?="},
    ),
    "a name disguised twice": ({}, {"mcp_name": b64(b64(TOOL))}, {}, {}),
    "another method": ({}, {"mcp_method": "tools/list"}, {}, {"mcp_method": "tools/call"}),
    "no method": ({}, {"mcp_method": ""}, {}, {}),
    "an argument without its header": (
        {"region": "eu"}, {}, {"region": "eu"}, {"mcp_param_region": "eu"},
    ),
    "a header without its argument": ({}, {"mcp_param_region": "eu"}, {"region": None}, {}),
    "another value": (
        {"region": "eu"}, {"mcp_param_region": "us"},
        {"region": "eu"}, {"mcp_param_region": b64("eu")},
    ),
    "a value that is disguised as itself": (
        {"region": b64("eu")}, {"mcp_param_region": b64("eu")},
        {"region": b64("eu")}, {"mcp_param_region": b64(b64("eu"))},
    ),
    "letters that HTTP does not have": (
        {"region": "é"}, {"mcp_param_region": "é"}, {"region": "é"}, {"mcp_param_region": b64("é")},
    ),
    "another number": (
        {"count": 7}, {"mcp_param_count": "8"}, {"count": 7}, {"mcp_param_count": "7.0"},
    ),
    "a long number that is nearly the same": (
        {"count": 2**63 + 1}, {"mcp_param_count": str(2**63)},
        {"count": 2**63 + 1}, {"mcp_param_count": str(2**63 + 1)},
    ),
    "a number in another notation": (
        {"count": 70}, {"mcp_param_count": "7e1"}, {"count": 70}, {"mcp_param_count": "70"},
    ),
    "a truth in another spelling": (
        {"deep": {"flag": True}}, {"mcp_param_flag": "True"},
        {"deep": {"flag": True}}, {"mcp_param_flag": "true"},
    ),
    "an unknown header, badly encoded": (
        {}, {"mcp_param_other": "=?base64?!?="}, {}, {"mcp_param_other": "!"},
    ),
}  # fmt: skip


async def test_headers_that_disagree_go_nowhere_and_their_twins_arrive(
    proxy: Gateway, tools: ToolServer, call: Call
) -> None:
    before = tools.bodies_seen()
    found = {}
    for what, (arguments, headers, _, _) in PAIRS.items():
        status, answer = await call(arguments, **headers)
        found[what] = (status, answer.get("error", {}).get("code"))

    assert dict.fromkeys(PAIRS, (400, -32020)) == found
    assert before == tools.bodies_seen()
    assert ["header_mismatch"] * len(PAIRS) == [
        one["reason"] for one in proxy.records("call.rejected")
    ]
    for what, (_, _, arguments, headers) in PAIRS.items():
        _, answer = await call({"call": what, **arguments}, **headers)
        assert "result" in answer, what
    assert list(PAIRS) == tools.ran()


async def test_what_goes_up_is_made_of_the_body_and_of_nothing_else(
    tools: ToolServer, call: Call
) -> None:
    arguments = {"region": "é", "count": 2**64 - 1, "deep": {"flag": False}}
    await call(
        arguments, mcp_param_region=b64("é"), mcp_param_count=f"{2**64 - 1}.0",
        mcp_param_flag="false", mcp_param_other="plain", mcp_name=b64(TOOL),
        mcp_session_id="b1.1.mine", cookie="a=b",
        x_requester_id="me", x_forwarded_for="10.0.0.1", forwarded="for=me", traceparent="00-1-1-1",
        tracestate="a=b", baggage="c=d", x_delegation_token="d", last_event_id="9",
    )  # fmt: skip

    seen = tools.headers_seen()[-1]
    mcp = {name: value for name, value in seen.items() if name.startswith("mcp-")}
    assert {
        "mcp-protocol-version": wire.MODERN, "mcp-method": "tools/call", "mcp-name": TOOL,
        "mcp-param-region": b64("é"), "mcp-param-count": str(2**64 - 1), "mcp-param-flag": "false",
        "mcp-param-other": "plain",
    } == mcp  # fmt: skip
    stopped = {
        "authorization", "cookie", "x-requester-id", "x-forwarded-for", "forwarded", "tracestate",
        "baggage", "x-delegation-token", "last-event-id",
    }  # fmt: skip
    assert set() == stopped & seen.keys()
    assert "00-1-1-1" != seen.get("traceparent")


async def test_a_hidden_tool_does_not_tell_which_headers_it_has(proxy: Gateway, call: Call) -> None:
    """With the headers of its schema, with wrong ones, with too many: it is as if it were not."""
    many = {f"mcp_param_x{i}": "1" for i in range(20)}
    shapes: tuple[dict[str, str], ...] = (
        {}, {"mcp_param_region": "eu"}, {"mcp_param_region": "us"},
        {"mcp_param_region": "=?base64?!?="}, many,
    )  # fmt: skip
    for headers in shapes:
        hidden = await call({"region": "eu"}, tool="drop_notes", **headers)
        hidden_bytes = proxy.last
        absent = await call({"region": "eu"}, tool="dro__notes", **headers)

        assert 200 == hidden[0] == absent[0]
        assert -32602 == hidden[1]["error"]["code"]
        assert hidden_bytes.replace(b"drop_notes", b"dro__notes") == proxy.last
    assert ["tool_hidden"] * 10 == [one["reason"] for one in proxy.records("call.denied")]


async def test_an_approver_did_not_see_headers_that_no_schema_knows(
    proxy: Gateway, tools: ToolServer, call: Call
) -> None:
    """What was approved runs without them."""
    proxy.authorizer.rules.verdicts["notes", TOOL] = ("intercept", "four_eyes")
    first = await _task(proxy)
    (escalation,) = proxy.authorizer.tickets
    proxy.authorizer.settle(escalation, "approved")

    _, answer = await call({}, mcp_param_other="unseen")

    assert first == "task"
    assert answer["result"]["isError"] is False
    assert "mcp-param-other" not in tools.headers_seen()[-1]


async def _task(proxy: Gateway) -> Any:
    """The call waits without anybody waiting for it."""
    capabilities: dict[str, Any] = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
    _, answer = await proxy.call(TOOL, {}, capabilities=capabilities)
    return answer["result"]["resultType"]
