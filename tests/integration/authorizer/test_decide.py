"""Decisions of a running authorizer, over its real stream and the embedded engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from behavry.authorizer.v1 import authorizer_pb2 as wire
from behavry.authorizer.v1 import authorizer_pb2_grpc
from tests.fakes.asks import FINDINGS, ask
from tests.fakes.clock import ManualClock
from tests.fakes.control import (
    AGENT,
    OTHER_TENANT,
    SCHEMA_HASH,
    TENANT,
    FakeControl,
    policy,
    rows,
)
from tests.integration.authorizer.conftest import RunningAuthorizer, Start
from tests.promises import promise

ALLOW, DENY, INTERCEPT = (
    wire.DECISION_RESULT_ALLOW,
    wire.DECISION_RESULT_DENY,
    wire.DECISION_RESULT_INTERCEPT,
)
ASK_FIRST = """verdicts contains {"result": "intercept", "code": "ask_first", "reason": "ask",
\t"obligations": []} if input.request.tool == "read_file"
"""


def now_s(clock: ManualClock) -> int:
    return clock.now_ns() // 10**9


async def until_serial(authorizer: RunningAuthorizer, serial: int) -> None:
    """Waits until the snapshot stream shows this bundle."""
    stub = authorizer_pb2_grpc.SnapshotServiceStub(authorizer.proxy.channel)
    watch = stub.Watch(wire.WatchRequest(part="proxy"), metadata=authorizer.proxy.metadata())

    async def seen() -> None:
        async for message in watch:
            if json.loads(message.snapshot)["serial"] >= serial:
                return

    await asyncio.wait_for(seen(), 5)
    watch.cancel()


async def test_a_granted_read_is_allowed_and_says_under_which_policy(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    control.publish(rows(), now_s=now_s(clock))

    async with start() as authorizer:
        await until_serial(authorizer, 1)
        (verdict,) = await authorizer.decider.ask(ask())

    assert (ALLOW, "read", "embedded", ["grants"]) == (
        verdict.decision.result,
        verdict.decision.action,
        verdict.decision.engine,
        list(verdict.decision.policies),
    )
    assert (1, "fresh") == (verdict.revision.bundle_serial, verdict.revision.policy_state)
    assert verdict.revision.policy_revision.startswith("sha256:")
    envelope = json.loads(verdict.envelope)
    assert (AGENT, None) == (envelope["agent"]["id"], envelope["request"]["arguments"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an action that no role grants": ({"tool": "delete_file"}, "tool_hidden"),
    "an unclassified tool": ({"tool": "no_such_tool"}, "tool_hidden"),
    "another definition": ({"schema_hash": "sha256:" + "2" * 64}, "tool_schema_changed"),
    "no definition": ({"schema_hash": None}, "tool_schema_changed"),
    "a foreign server": ({"server": "other"}, "unknown_server"),
    "an unknown agent": ({"caller": {"agent_id": AGENT[:-1] + "b"}}, "agent_unknown"),
    "another tenant": ({"caller": {"tenant_id": OTHER_TENANT}}, "tenant_unset"),
    "no tenant": ({"caller": {"tenant_id": ""}}, "input_invalid"),
    "no session": ({"caller": {"session_id": ""}}, "input_invalid"),
    "an unknown transport": ({"caller": {"transport": "smoke"}}, "input_invalid"),
    "a delegation token": ({"caller": {"delegation_presented": True}}, "delegation_invalid"),
    "a workflow session": ({"caller": {"workflow_presented": True}}, "workflow_scope"),
    "findings nobody can judge": ({"findings": {**FINDINGS, "scan": "complete"}}, "scan_failed"),
    "arguments that are a list": ({"arguments": b"[1]"}, "input_invalid"),
    "arguments cut short": ({"arguments": b'{"path":'}, "input_invalid"),
    "two arguments objects": ({"arguments": b"{}{}"}, "input_invalid"),
    "arguments left out silently": ({"arguments": b""}, "input_invalid"),
    "features with keys missing": ({"features": {"keys": []}}, "input_invalid"),
    "an unknown kind": ({"kind": "list"}, "input_invalid"),
    "an unknown key": ({"unknown_key": 1}, "input_invalid"),
    "an id that is none": ({"id": "no-uuid"}, "input_invalid"),
    "a key that is not the proxy's to fill": ({"action": "read"}, "input_invalid"),
    "a tool call without tool": ({"tool": ""}, "input_invalid"),
    "a tool name that is too long": ({"tool": "x" * 129}, "input_invalid"),
    "no time left": ({"budget_ms": 1}, "engine_timeout"),
}


async def test_anything_else_is_denied_by_its_reason_and_leaves_its_neighbour_alone(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    control.publish(rows(), now_s=now_s(clock))
    got, twins = {}, set()

    async with start() as authorizer:
        await until_serial(authorizer, 1)
        for name, (changes, _) in REFUSED.items():
            refused, twin = await authorizer.decider.ask(ask(**changes), ask())
            got[name] = (refused.decision.result, refused.decision.reason_code)
            twins.add(twin.decision.result)

    assert {name: (DENY, code) for name, (_, code) in REFUSED.items()} == got
    assert {ALLOW} == twins


@promise("failure:no-bundle")
async def test_without_any_bundle_everything_is_denied(control: FakeControl, start: Start) -> None:
    control.refuse = 503

    async with start() as authorizer:
        (verdict,) = await authorizer.decider.ask(ask())

    assert (DENY, "policy_missing") == (verdict.decision.result, verdict.decision.reason_code)


async def test_a_new_bundle_changes_decisions_and_their_revision(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    control.publish(rows(), now_s=now_s(clock))

    async with start() as authorizer:
        await until_serial(authorizer, 1)
        (before,) = await authorizer.decider.ask(ask())
        intercepting = policy(TENANT, "ask_first", ASK_FIRST)
        control.publish(rows(policies=[intercepting]), now_s=now_s(clock))
        await until_serial(authorizer, 2)
        (after,) = await authorizer.decider.ask(ask())

    assert (ALLOW, 1) == (before.decision.result, before.revision.bundle_serial)
    assert (INTERCEPT, "ask_first", 2) == (
        after.decision.result,
        after.decision.reason_code,
        after.revision.bundle_serial,
    )
    assert before.revision.policy_revision != after.revision.policy_revision


async def test_a_shadow_policy_is_recorded_and_never_counted(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    shadowed = policy(TENANT, "ask_first", ASK_FIRST, state="shadow")
    control.publish(rows(policies=[shadowed]), now_s=now_s(clock))

    async with start() as authorizer:
        await until_serial(authorizer, 1)
        (verdict,) = await authorizer.decider.ask(ask())

    assert ALLOW == verdict.decision.result
    assert [{"policy": "ask_first", "result": "intercept", "code": "ask_first"}] == json.loads(
        verdict.decision.shadow
    )


@promise("failure:bad-bundle")
async def test_an_older_bundle_and_a_second_one_of_the_same_serial_are_refused(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    control.publish(rows(), now_s=now_s(clock), serial=5)

    async with start() as authorizer:
        await until_serial(authorizer, 5)
        intercepting = policy(TENANT, "ask_first", ASK_FIRST)
        for serial in (4, 5):
            control.publish(rows(policies=[intercepting]), now_s=now_s(clock), serial=serial)
            for _ in range(2):
                control.fetched.clear()
                await asyncio.wait_for(control.fetched.wait(), 5)
            (verdict,) = await authorizer.decider.ask(ask())

            assert (ALLOW, 5) == (verdict.decision.result, verdict.revision.bundle_serial)


async def test_a_restart_without_control_decides_as_before(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    control.publish(rows(), now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)

    control.refuse = 503
    async with start() as authorizer:
        allowed, denied = await authorizer.decider.ask(ask(), ask(tool="delete_file"))

    assert (ALLOW, DENY) == (allowed.decision.result, denied.decision.result)


@promise("failure:control-expired")
async def test_policy_ages_from_fresh_over_stale_to_expired_and_then_denies(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    control.publish(rows(), now_s=now_s(clock))

    async with start() as authorizer:
        await until_serial(authorizer, 1)
        control.refuse = 503
        states = []
        for seconds in (0, 301, 86_400):
            clock.advance(seconds)
            (verdict,) = await authorizer.decider.ask(ask())
            states.append((verdict.revision.policy_state, verdict.decision.reason_code))

    assert ("fresh", "stale") == (states[0][0], states[1][0])
    assert ("expired", "policy_expired") == states[2]


async def test_an_agents_view_holds_exactly_what_it_may_call(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    control.publish(rows(), now_s=now_s(clock))
    offered = [
        wire.OfferedTool(name=name, schema_hash=SCHEMA_HASH)
        for name in ("read_file", "delete_file", "unclassified")
    ]
    view = wire.ViewRequest(tenant_id=TENANT, agent_id=AGENT, server="files", tools=offered)

    async with start() as authorizer:
        await until_serial(authorizer, 1)
        stub = authorizer_pb2_grpc.AuthorizerServiceStub(authorizer.proxy.channel)
        seen = await stub.View(view, metadata=authorizer.proxy.metadata(), timeout=5)
        asked = [ask(tool=tool.name) for tool in offered]
        verdicts = await authorizer.decider.ask(*asked)

    assert ["read_file"] == list(seen.visible)
    assert [ALLOW, DENY, DENY] == [verdict.decision.result for verdict in verdicts]
