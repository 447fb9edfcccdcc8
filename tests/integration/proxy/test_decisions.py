"""Nothing but a well-formed Allow runs a tool; each refusal is in the chain before it leaves."""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from behavry.authorizer.v1 import authorizer_pb2 as pb
from services.common.ids import TenantId
from services.common.outbox.digests import Digester
from services.common.outbox.pressure import Budget, Level
from tests.fakes.gateway import Gateway, until_true
from tests.fakes.tool_server import ToolServer
from tests.promises import promise

Twist = Callable[[pb.Verdict], pb.Verdict | None]


def changed(**fields: Any) -> Twist:
    def twist(verdict: pb.Verdict) -> pb.Verdict:
        made = pb.Verdict()
        made.CopyFrom(verdict)
        for name, value in fields.items():
            if name in pb.Decision.DESCRIPTOR.fields_by_name:
                if name == "escalation":
                    made.decision.escalation.CopyFrom(value)
                else:
                    setattr(made.decision, name, value)
            else:
                setattr(made, name, value)
        return made

    return twist


def escalated(result: str, **fields: Any) -> Twist:
    escalation = {
        "id": "0199d0d0-0000-7000-8000-0000000000e5",
        "state": "pending",
        "decide_by_ms": 2**42,
        **fields,
    }
    return changed(
        result=pb.DecisionResult.Value(f"DECISION_RESULT_{result}"),
        reason_code="four_eyes",
        escalation=pb.Escalation(**escalation),
    )


NOT_ALLOWS: dict[str, tuple[Twist, str]] = {
    "no answer": (lambda _: None, "policy_unavailable"),
    "an answer to another question": (
        changed(arguments_digest="h1:00000000:" + "0" * 64), "policy_unavailable",
    ),
    "no digest": (changed(arguments_digest=""), "policy_unavailable"),
    "another id": (lambda one: changed(id=one.id + 1_000_000)(one), "policy_unavailable"),
    "no result": (changed(result=pb.DECISION_RESULT_UNSPECIFIED), "engine_invalid"),
    "an unknown result": (changed(result=77), "engine_invalid"),
    "an allow without what was decided": (changed(envelope=b""), "engine_invalid"),
    "a deny without a reason": (
        changed(result=pb.DECISION_RESULT_DENY, reason_code=""), "engine_invalid",
    ),
    "obligations that are no JSON": (changed(obligations=b"{"), "engine_invalid"),
    "obligations that are no list": (changed(obligations=b'{"a":1}'), "engine_invalid"),
    "an obligation that nobody here can honour": (
        changed(obligations=b'[{"redact_result":{"tags":["pii"]}}]'), "obligation_unknown",
    ),
    "shadow that is no JSON": (changed(shadow=b"\xff"), "engine_invalid"),
    "deny": (
        changed(result=pb.DECISION_RESULT_DENY, reason_code="blast_bulk"), "blast_bulk",
    ),
    "intercept": (
        changed(result=pb.DECISION_RESULT_INTERCEPT, reason_code="four_eyes"),
        "escalation_unavailable",
    ),
    "an intercept whose escalation has no name": (
        escalated("INTERCEPT", id=""), "escalation_unavailable",
    ),
    "an intercept whose escalation has ended": (
        escalated("INTERCEPT", state="approved"), "escalation_unavailable",
    ),
    "an intercept that nobody can decide in time": (
        escalated("INTERCEPT", decide_by_ms=0), "escalation_unavailable",
    ),
    "an allow of what still waits": (escalated("ALLOW"), "engine_invalid"),
    "an allow by an approval without a name": (
        escalated("ALLOW", state="consumed", id="e"), "engine_invalid",
    ),
    "an empty verdict": (lambda one: pb.Verdict(id=one.id), "policy_unavailable"),
}  # fmt: skip


@pytest.mark.parametrize(("twist", "reason"), NOT_ALLOWS.values(), ids=NOT_ALLOWS)
async def test_anything_but_a_well_formed_allow_denies(
    proxy: Gateway, tools: ToolServer, twist: Twist, reason: str
) -> None:
    proxy.authorizer.twist = twist
    status, denied = await proxy.call("read_note", {"call": "denied"})
    proxy.authorizer.twist = None
    _, allowed = await proxy.call("read_note", {"call": "allowed"})

    assert 200 == status
    assert denied["result"]["isError"] is True
    meta = denied["result"]["_meta"]["com.behavry/decision"]
    assert ("deny", reason) == (meta["verdict"], meta["reason"])
    assert "isError" not in allowed["result"] or not allowed["result"]["isError"]
    assert ["allowed"] == tools.ran()
    record = proxy.records("call.denied")[0]
    assert (reason, meta["decision_id"]) == (record["reason"], record["id"])


async def test_the_agent_is_told_when_to_come_back(proxy: Gateway) -> None:
    proxy.authorizer.twist = changed(
        result=pb.DECISION_RESULT_DENY, reason_code="rate_limited", retry_after_ms=12_345
    )
    _, limited = await proxy.call("read_note", {"call": "c"})
    _, read = await proxy.modern("resources/read", {"uri": "file:///a"})

    meta = limited["result"]["_meta"]["com.behavry/decision"]
    assert (True, 12_345) == (meta["retryable"], meta["retry_after_ms"])
    assert (4290, 12_345) == (read["error"]["code"], read["error"]["data"]["retry_after_ms"])


async def test_two_answers_to_one_question_are_one(proxy: Gateway, tools: ToolServer) -> None:
    """The second is dropped, whatever it says."""
    asked = asyncio.gather(*(proxy.call("read_note", {"call": f"c{i}"}) for i in range(4)))
    await asked

    assert sorted(f"c{i}" for i in range(4)) == sorted(tools.ran())


async def test_an_intercept_that_names_no_escalation_is_a_denial(proxy: Gateway) -> None:
    def nameless(verdict: pb.Verdict) -> pb.Verdict:
        verdict.decision.ClearField("escalation")
        return verdict

    proxy.authorizer.rules.verdicts["notes", "write_note"] = ("intercept", "four_eyes")
    proxy.authorizer.twist = nameless

    _, refused = await proxy.call("write_note", {"call": "c"})

    meta = refused["result"]["_meta"]["com.behavry/decision"]
    record = proxy.records("call.denied")[0]
    assert ("deny", "escalation_unavailable") == (meta["verdict"], meta["reason"])
    assert ["four_eyes", "escalation_unavailable"] == record["reasons"]
    assert [] == proxy.records("call.intent")


async def test_hidden_changed_and_absent_tools_answer_in_the_same_bytes(
    proxy: Gateway, tools: ToolServer
) -> None:
    rules = proxy.authorizer.rules
    del rules.approved["notes", "write_note"]
    rules.approved["notes", "drop_notes"] = "sha256:" + "0" * 64
    answers = {}
    for name in ("write_note", "drop_notes", "no_such_tool", "no such name", "x" * 300):
        status, _ = await proxy.call(name, {"call": "c"})
        answers[name] = (status, proxy.last.replace(name.encode(), b"NAME"))

    assert 1 == len(set(answers.values()))
    assert b'"code":-32602,"message":"Unknown tool: NAME"' in answers["write_note"][1]
    reasons = [one["reason"] for one in proxy.records("call.denied")]
    assert [
        "tool_hidden",
        "tool_schema_changed",
        "tool_hidden",
        "tool_hidden",
        "tool_hidden",
    ] == reasons
    assert [] == tools.ran()


async def test_a_definition_that_changed_hides_its_tool(proxy: Gateway, tools: ToolServer) -> None:
    tools.behave(descriptions={"read_note": "Now does something else."})
    proxy.forget_catalog()

    _, listed = await proxy.modern("tools/list")
    _, called = await proxy.call("read_note", {"call": "c"})

    assert ["write_note", "drop_notes"] == [tool["name"] for tool in listed["result"]["tools"]]
    assert -32602 == called["error"]["code"]
    assert "tool_schema_changed" == proxy.records("call.denied")[0]["reason"]
    assert [] == tools.ran()


@promise("failure:authorizer")
async def test_without_an_authorizer_there_is_no_view_and_no_call(
    proxy: Gateway, tools: ToolServer
) -> None:
    proxy.authorizer.down = True
    await proxy.authorizer.publish()
    await proxy.settled()

    _, listed = await proxy.modern("tools/list")
    _, called = await proxy.call("read_note", {"call": "c"})

    assert 4031 == listed["error"]["code"]
    assert called["result"]["isError"] is True
    proxy.authorizer.down = False

    async def healed() -> bool:
        _, answer = await proxy.call("read_note", {"call": "later"})
        return not answer["result"].get("isError")

    await until_true(healed)
    assert ["later"] == tools.ran()


async def test_a_suspended_agent_gets_no_list_and_no_call(
    proxy: Gateway, tools: ToolServer
) -> None:
    agents = proxy.authorizer.snapshot["tenants"][proxy.tenant]["agents"]
    await proxy.authorizer.publish(
        agents={**agents, proxy.agent: {**agents[proxy.agent], "status": "suspended"}}
    )
    await proxy.settled()
    proxy.authorizer.rules.agents[proxy.agent] = "agent_suspended"

    _, listed = await proxy.modern("tools/list")
    _, called = await proxy.call("read_note", {"call": "c"})

    assert (4030, "agent_suspended") == (listed["error"]["code"], listed["error"]["message"])
    assert "agent_suspended" == called["result"]["_meta"]["com.behavry/decision"]["reason"]
    assert [] == tools.ran()


@promise("failure:outbox-full")
async def test_a_full_outbox_denies_calls(
    proxy: Gateway, tools: ToolServer, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Budget, "level", lambda _: Level.CLOSED)

    _, denied = await proxy.call("read_note", {"call": "c"})

    assert "audit_unavailable" == denied["result"]["_meta"]["com.behavry/decision"]["reason"]
    assert [] == tools.ran()
    monkeypatch.undo()
    assert "result" in (await proxy.call("read_note", {"call": "after"}))[1]
    assert ["after"] == tools.ran()


async def test_other_governed_methods_are_refused_as_errors(proxy: Gateway) -> None:
    proxy.authorizer.rules.verdicts["notes", ""] = ("deny", "no_reading")

    _, denied = await proxy.modern("resources/read", {"uri": "file:///etc/passwd"})

    assert (4030, "no_reading") == (denied["error"]["code"], denied["error"]["data"]["reason"])
    asked = orjson.loads(proxy.authorizer.asks[-1].request)
    assert ("", "path", "/etc/passwd") == (asked["tool"], asked["resource_kind"], asked["resource"])
    features = orjson.loads(proxy.authorizer.asks[-1].features)
    assert features["paths"][0]["config"] is True


UNSUPPORTED: list[tuple[str, dict[str, Any], int]] = [
    ("tools/call", {"name": "read_note", "arguments": {}, "task": {"ttl": 1}}, -32602),
    ("tools/call", {"name": "read_note", "arguments": {}, "inputResponses": []}, -32602),
    ("tools/call", {"name": "read_note", "arguments": []}, -32602),
    ("tools/call", {"arguments": {}}, -32602),
    ("resources/read", {}, -32602),
    ("resources/subscribe", {"uri": "file:///a"}, -32601),
    ("completion/complete", {}, -32602),
    ("tasks/get", {"taskId": "x"}, -32021),
    ("tasks/list", {}, -32601),
    ("tasks/update", {"taskId": "x"}, -32021),
]


@pytest.mark.parametrize(("method", "params", "code"), UNSUPPORTED)
async def test_what_this_version_cannot_decide_on_is_refused(
    proxy: Gateway, tools: ToolServer, method: str, params: dict[str, Any], code: int
) -> None:
    _, refused = await proxy.modern(method, params)

    assert code == refused["error"]["code"]
    assert [] == tools.ran()
    assert 1 == len(proxy.records("call.rejected"))


async def test_what_is_decided_is_what_is_forwarded_and_digested(
    proxy: Gateway, tools: ToolServer
) -> None:
    body = (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read_note","arguments":'
        b'{"text":"\\u00e9 \\/ ","call":"c","n":123456789012345678901234567890},"_meta":%s}}'
        % orjson.dumps(
            {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {"sampling": {}},
                "com.behavry/decision": "forged",
                "progressToken": 1,
            }
        )
    )
    headers = {
        "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "read_note",
        "x-requester-id": "joe", "cookie": "a=b", "x-forwarded-for": "1.2.3.4", "tracestate": "x=y",
    }  # fmt: skip

    status, _ = await proxy.post(body, headers=headers)

    assert 200 == status
    canonical = '{"call":"c","n":123456789012345678901234567890,"text":"é / "}'.encode()
    assert canonical == proxy.authorizer.asks[-1].arguments_json
    forwarded = tools.bodies_seen()[-1]
    assert canonical in forwarded
    assert b"forged" not in forwarded
    assert b"sampling" not in forwarded
    seen = tools.headers_seen()[-1]
    assert not {"authorization", "cookie", "x-requester-id", "x-forwarded-for", "tracestate"} & set(
        seen
    )
    assert "identity" == seen["accept-encoding"]
    intent = proxy.records("call.intent")[-1]
    assert len(canonical) == intent["arguments"]["size"]
    assert "joe" == intent["requester"]["id"]


async def test_what_an_agent_says_of_its_call_is_decided_digested_and_goes_up(
    proxy: Gateway, tools: ToolServer
) -> None:
    own = {"example.org/b": {"path": "/etc/passwd"}, "example.org/a": 1}
    await proxy.call("read_note", {"call": "c"}, meta={**own, "traceparent": "x"})
    forwarded = orjson.loads(tools.bodies_seen()[-1])["params"]["_meta"]
    features = orjson.loads(proxy.authorizer.asks[-1].features)
    await proxy.call("read_note", {"call": "c"})  # the twin says nothing

    assert own == {key: value for key, value in forwarded.items() if key in own}
    assert "traceparent" not in forwarded
    assert ["call", "_meta"] == [one["name"] for one in features["keys"]]
    assert ["/etc/passwd"] == [one["value"] for one in features["paths"]]
    first, second = proxy.records("call.intent")
    canonical = b'{"example.org/a":1,"example.org/b":{"path":"/etc/passwd"}}'
    digester = Digester.load(proxy.settings.digest_keys)
    made = digester.make(TenantId(proxy.tenant), "meta", canonical)
    assert {"digest": made, "size": len(canonical)} == first["meta"]
    assert first["arguments"]["digest"] == second["arguments"]["digest"]
    assert "meta" not in second


async def test_headers_that_no_schema_knows_are_decided_and_digested_with_the_call(
    proxy: Gateway, tools: ToolServer
) -> None:
    said = {"mcp-param-b": "=?base64?L2V0Yy9wYXNzd2Q=?=", "mcp-param-a": "plain"}
    await proxy.call("read_note", {"call": "c"}, headers=said)
    features = orjson.loads(proxy.authorizer.asks[-1].features)
    seen = tools.headers_seen()[-1]
    await proxy.call("read_note", {"call": "c"})  # the twin brings none

    assert ("/etc/passwd", "plain") == (seen["mcp-param-b"], seen["mcp-param-a"])
    assert ["call", "_headers"] == [one["name"] for one in features["keys"]]
    assert ["/etc/passwd"] == [one["value"] for one in features["paths"]]
    first, second = proxy.records("call.intent")
    canonical = b'{"mcp-param-a":"plain","mcp-param-b":"/etc/passwd"}'
    digester = Digester.load(proxy.settings.digest_keys)
    made = digester.make(TenantId(proxy.tenant), "headers", canonical)
    assert {"digest": made, "size": len(canonical)} == first["headers"]
    assert "headers" not in second


async def test_nothing_rides_on_what_nobody_is_asked_about(
    proxy: Gateway, tools: ToolServer
) -> None:
    """Lists are asked for without a decision, and so without a word of the agent's."""
    client = {"name": "a", "version": "1", "note": "RIDER"}
    meta = {"example.org/note": "RIDER", "io.modelcontextprotocol/clientInfo": client}
    extra = {"note": "RIDER"}
    tools.behave(resources=("a", "b", "c"), page=2)
    seen = []
    for method in ("tools/list", "prompts/list", "resources/templates/list", "resources/list"):
        proxy.forget_catalog()
        _, listed = await proxy.modern(method, extra, meta=meta)
        seen.append(listed)
    cursor = seen[-1]["result"]["nextCursor"]
    _, rest = await proxy.modern("resources/list", {**extra, "cursor": cursor}, meta=meta)

    assert 3 == len(seen[-1]["result"]["resources"] + rest["result"]["resources"])
    assert [] == [body for body in tools.bodies_seen() if b"RIDER" in body]


async def test_no_payload_and_no_token_is_in_the_outbox(proxy: Gateway) -> None:
    """Digests and sizes are; the decided envelope is a part of its own, without arguments."""
    await proxy.call("read_note", {"call": "c", "text": "SECRET-PAYLOAD"})

    stored = b"".join(
        entry.body + b"".join(part.stored for part in entry.parts) for entry in proxy.entries()
    )
    assert b"SECRET-PAYLOAD" not in stored
    assert b"eyJ" not in stored
    intent = next(e for e in proxy.entries() if b'"call.intent"' in e.body)
    assert ["input"] == [part.kind for part in intent.parts]
    assert b"behavry.input/1" in intent.parts[0].stored


async def test_a_waiting_verdict_does_not_hold_back_others(
    proxy: Gateway, tools: ToolServer
) -> None:
    """Only the poisoned question is denied."""

    def poison(verdict: pb.Verdict) -> pb.Verdict | None:
        ask = next(one for one in proxy.authorizer.asks if one.id == verdict.id)
        return None if b"poison" in ask.arguments_json else verdict

    proxy.authorizer.twist = poison
    names = [f"c{i}" for i in range(6)] + ["poison"]

    answers = await asyncio.gather(*(proxy.call("read_note", {"call": name}) for name in names))

    denied = [
        name
        for name, (_, body) in zip(names, answers, strict=True)
        if body["result"].get("isError")
    ]
    assert ["poison"] == denied
    assert sorted(names[:-1]) == sorted(tools.ran())
