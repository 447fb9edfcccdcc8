"""A call that policy holds, from the question to people to the one execution they approved, through
a running authorizer and a real link to a control plane that can be bent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from joserfc.jwk import ECKey

from behavry.authorizer.v1 import authorizer_pb2 as wire
from behavry.authorizer.v1 import authorizer_pb2_grpc
from behavry.control.v1 import plane_link_pb2
from services.common.ids import TenantId
from tests.fakes.asks import FEATURES, ask
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
from tests.fakes.plane_desk import PlaneDesk
from tests.integration.authorizer.conftest import RunningAuthorizer, Start
from tests.integration.authorizer.test_decide import (
    ALLOW,
    ASK_FIRST,
    DENY,
    INTERCEPT,
    now_s,
    until_serial,
)
from tests.promises import promise

ASKING = rows(policies=[policy(TENANT, "ask_first", ASK_FIRST)])
OTHER_AGENT = AGENT[:-1] + "b"
OTHER_HASH = "sha256:" + "2" * 64


def now_ms(clock: ManualClock) -> int:
    return clock.now_ns() // 1_000_000


def said(verdict: wire.Verdict) -> tuple[int, str, str]:
    """Result, reason and the escalation's state."""
    decision = verdict.decision
    return decision.result, decision.reason_code, decision.escalation.state


@pytest.fixture
async def desk(state_dir: Path, control: FakeControl) -> AsyncIterator[PlaneDesk]:
    assert control.url
    (state_dir / "run").mkdir(exist_ok=True)
    async with PlaneDesk().serving(state_dir / "run" / "control.sock") as made:
        yield made


async def test_an_approved_call_runs_once_and_the_next_asks_people_again(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        (held,) = await authorizer.decider.ask(ask())
        (again,) = await authorizer.decider.ask(ask())
        (opened,) = await desk.until_opened()
        decision = control.decide(opened, now_ms=now_ms(clock))
        desk.send(decision)
        told = await authorizer.decider.ticket_changed()
        (allowed,) = await authorizer.decider.ask(ask(escalation=opened.id))
        used = await desk.until_changed(opened.id, "consumed")
        (fresh,) = await authorizer.decider.ask(ask())
        await desk.until_acknowledged(decision)

    assert (INTERCEPT, "ask_first", "pending") == said(held)
    assert held.decision.escalation == again.decision.escalation
    assert opened.id == held.decision.escalation.id
    assert now_ms(clock) + 86_400_000 == held.decision.escalation.decide_by_ms
    assert (opened.id, "approved") == told
    assert (ALLOW, "ask_first", "consumed") == said(allowed)
    assert ["ask_first"] == list(allowed.decision.escalation.codes)
    assert (2, 0) == (used.version, used.uses_left)
    assert (INTERCEPT, "ask_first", "pending") == said(fresh)
    assert opened.id != fresh.decision.escalation.id


async def test_a_denied_call_stays_denied(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask())
        (opened,) = await desk.until_opened()
        desk.send(control.decide(opened, "deny", now_ms=now_ms(clock)))
        told = await authorizer.decider.ticket_changed()
        (by_id,) = await authorizer.decider.ask(ask(escalation=opened.id))
        (repeated,) = await authorizer.decider.ask(ask())

    assert (opened.id, "denied") == told
    assert (DENY, "escalation_denied", "denied") == said(by_id) == said(repeated)


async def cancel(
    authorizer: RunningAuthorizer, escalation: str, *, agent: str = AGENT, tenant: str = TENANT
) -> str:
    stub = authorizer_pb2_grpc.AuthorizerServiceStub(authorizer.proxy.channel)
    request = wire.CancelEscalationRequest(
        tenant_id=tenant, agent_id=agent, escalation_id=escalation
    )
    answer = await stub.CancelEscalation(request, timeout=5, metadata=authorizer.proxy.metadata())
    return answer.state


async def until_store_answers(authorizer: RunningAuthorizer) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                await cancel(authorizer, OTHER_AGENT)
            except grpc.aio.AioRpcError:
                continue
            return


async def test_what_the_agents_side_gives_up_is_cancelled_and_nobody_elses(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        (held,) = await authorizer.decider.ask(ask())
        id_ = held.decision.escalation.id
        foreign = [
            await cancel(authorizer, id_, agent=OTHER_AGENT),
            await cancel(authorizer, id_, tenant=OTHER_TENANT),
            await cancel(authorizer, OTHER_AGENT),
            await cancel(authorizer, "no-id"),
        ]
        (still,) = await authorizer.decider.ask(ask())
        own = [await cancel(authorizer, id_), await cancel(authorizer, id_)]
        told = await authorizer.decider.ticket_changed()
        (by_id,) = await authorizer.decider.ask(ask(escalation=id_))
        await desk.until_changed(id_, "cancelled")

    assert ["", "", "", ""] == foreign
    assert id_ == still.decision.escalation.id
    assert ["cancelled", "cancelled"] == own
    assert (id_, "cancelled") == told
    assert (DENY, "escalation_cancelled", "cancelled") == said(by_id)


async def test_both_clocks_end_an_escalation_and_wake_who_waits(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    an_hour = {"decide_seconds": {"low": 3600, "medium": 60, "high": 60, "critical": 60}}
    escalations = {**ASKING.limits["escalations"], **an_hour}
    limits = {**ASKING.limits, "escalations": escalations}
    control.publish(replace(ASKING, limits=limits), now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask(arguments_digest="h1:00000000:1"))
        await authorizer.decider.ask(ask(arguments_digest="h1:00000000:2"))
        undecided, unused = await desk.until_opened(2)
        desk.send(control.decide(unused, now_ms=now_ms(clock)))
        approved = await authorizer.decider.ticket_changed()
        clock.advance(901)
        lapsed = await authorizer.decider.ticket_changed()
        (too_late,) = await authorizer.decider.ask(
            ask(arguments_digest="h1:00000000:2", escalation=unused.id)
        )
        clock.advance(3600 - 901 + 1)
        expired = await authorizer.decider.ticket_changed()
        late = control.decide(undecided, now_ms=now_ms(clock))
        desk.send(late)
        await desk.until_acknowledged(late)
        (undecided_yet,) = await authorizer.decider.ask(
            ask(arguments_digest="h1:00000000:1", escalation=undecided.id)
        )

    assert [(unused.id, "approved"), (unused.id, "lapsed")] == [approved, lapsed]
    assert (DENY, "escalation_expired", "lapsed") == said(too_late)
    assert (undecided.id, "expired") == expired
    assert (DENY, "escalation_expired", "expired") == said(undecided_yet)


async def test_an_approval_whose_time_is_over_runs_nothing_even_before_the_watch_sees_it(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask())
        (opened,) = await desk.until_opened()
        desk.send(control.decide(opened, now_ms=now_ms(clock)))
        await authorizer.decider.ticket_changed()
        clock.advance(901)
        (late,) = await authorizer.decider.ask(ask())

    assert (DENY, "escalation_expired") == said(late)[:2]


@promise("failure:clock")
async def test_a_clock_that_went_back_makes_no_approval_younger(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask())
        (opened,) = await desk.until_opened()
        desk.send(control.decide(opened, now_ms=now_ms(clock)))
        await authorizer.decider.ticket_changed()
        clock.set_wall(clock.wall_ns - 301 * 10**9)
        (suspect,) = await authorizer.decider.ask(ask())
        clock.set_wall(clock.wall_ns + 301 * 10**9)
        (believed,) = await authorizer.decider.ask(ask())

    assert (DENY, "escalation_expired") == said(suspect)[:2]
    assert (ALLOW, "consumed") == (said(believed)[0], said(believed)[2])


async def test_a_grant_is_good_for_its_uses_and_no_more(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask())
        (opened,) = await desk.until_opened()
        desk.send(control.decide(opened, now_ms=now_ms(clock), uses=3))
        told = [await authorizer.decider.ticket_changed()]
        answers = [(await authorizer.decider.ask(ask()))[0] for _ in range(4)]
        told += [await authorizer.decider.ticket_changed() for _ in range(3)]
        used = await desk.until_changed(opened.id, "consumed")

    assert [ALLOW, ALLOW, ALLOW, INTERCEPT] == [said(one)[0] for one in answers]
    assert ["approved", "consumed", "consumed", "consumed"] == [state for _, state in told]
    assert (4, 0) == (used.version, used.uses_left)


async def test_an_approval_taken_back_is_used_by_nobody(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask())
        (opened,) = await desk.until_opened()
        approval = control.decide(opened, now_ms=now_ms(clock))
        desk.send(approval, control.decide(opened, "revoke", now_ms=now_ms(clock)))
        told = [await authorizer.decider.ticket_changed() for _ in range(2)]
        replayed = plane_link_pb2.EscalationDecision()
        replayed.CopyFrom(approval)
        replayed.signal_id = "again"
        desk.send(replayed)
        await desk.until_acknowledged(approval, replayed)
        (answer,) = await authorizer.decider.ask(ask(escalation=opened.id))

    assert ["approved", "revoked"] == [state for _, state in told]
    assert (DENY, "escalation_denied", "revoked") == said(answer)


HOLD_ALL = """verdicts contains {"result": "intercept", "code": "ask_first", "reason": "ask",
\t"obligations": []}

verdicts contains {"result": "intercept", "code": "large", "reason": "ask",
\t"obligations": []} if input.features.arg_bytes > 100
"""


def everything_held(tenant: TenantId, **changes: Any) -> Any:
    """Two agents, two servers, two tools: whatever is asked, people are."""
    plain = rows()
    agents = {AGENT: plain.agents[AGENT], OTHER_AGENT: {**plain.agents[AGENT], "name": "other"}}
    server = plain.servers["files"]
    tool = plain.tools["files"]["read_file"]
    tools = {"read_file": tool, "read_other": tool}
    return rows(
        tenant,
        slug=f"acme-{tenant[-1]}",
        agents=agents,
        servers={"files": server, "more": {**server, "id": server["id"][:-1] + "e"}},
        tools={"files": tools, "more": tools},
        policies=[policy(tenant, "hold", HOLD_ALL)],
        **changes,
    )


BASE: dict[str, Any] = {"caller": {"requester_id": "mail:ann", "requester_channel": "slack"}}
READ: dict[str, Any] = {"method": "resources/read", "tool": "", "schema_hash": None}
FLIPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tenant": (BASE, {"caller": {**BASE["caller"], "tenant_id": OTHER_TENANT}}),
    "agent": (BASE, {"caller": {**BASE["caller"], "agent_id": OTHER_AGENT}}),
    "requester": (BASE, {"caller": {**BASE["caller"], "requester_id": "mail:bob"}}),
    "requester's channel": (BASE, {"caller": {**BASE["caller"], "requester_channel": "mail"}}),
    "no requester": (BASE, {"caller": {}}),
    "server": (BASE, {**BASE, "server": "more"}),
    "tool": (BASE, {**BASE, "tool": "read_other"}),
    "method": ({**BASE, **READ}, {**BASE, **READ, "method": "prompts/get"}),
    "resource": ({**BASE, **READ, "resource": "a"}, {**BASE, **READ, "resource": "b"}),
    "arguments": (BASE, {**BASE, "arguments_digest": "h1:00000000:other"}),
    "codes": (BASE, {**BASE, "features": {**FEATURES, "arg_bytes": 101}}),
    "definition": (BASE, {**BASE, "schema_hash": OTHER_HASH}),
}


@promise("escalations:bound")
async def test_an_approval_runs_the_call_that_it_was_given_for_and_no_other(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(everything_held(TENANT), everything_held(OTHER_TENANT), now_s=now_s(clock))
    got = {}
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        for number, (name, (base, flipped)) in enumerate(FLIPS.items(), start=1):
            digest = {"arguments_digest": f"h1:00000000:{number}"}
            other_session = {**base, "caller": {**base["caller"], "session_id": "another"}}
            (held,) = await authorizer.decider.ask(ask(**{**digest, **base}))
            id_ = held.decision.escalation.id
            opened = {one.id: one for one in await desk.until_opened(len(desk.opened))}
            while id_ not in opened:
                opened = {one.id: one for one in await desk.until_opened(len(opened) + 1)}
            desk.send(control.decide(opened[id_], now_ms=now_ms(clock)))
            while await authorizer.decider.ticket_changed() != (id_, "approved"):
                continue
            answers = [
                (await authorizer.decider.ask(ask(**{**digest, **flipped})))[0],
                (await authorizer.decider.ask(ask(escalation=id_, **{**digest, **flipped})))[0],
                (await authorizer.decider.ask(ask(**{**digest, **other_session})))[0],
                (await authorizer.decider.ask(ask(**{**digest, **base})))[0],
            ]
            got[name] = [one.decision.result == ALLOW for one in answers]
            for one in answers:
                if one.decision.escalation.state == "pending":
                    who = {"agent_id": AGENT, "tenant_id": TENANT, **flipped["caller"]}
                    for agent in (AGENT, OTHER_AGENT):
                        await cancel(
                            authorizer,
                            one.decision.escalation.id,
                            agent=agent,
                            tenant=who["tenant_id"],
                        )
                        await cancel(authorizer, one.decision.escalation.id, agent=agent)
            clock.advance(61)  # else that many given up would be too many

    assert {name: [False, False, True, False] for name in FLIPS} == got


async def test_another_policy_ends_what_was_asked_under_the_one_before(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    stricter = rows(
        policies=[
            policy(TENANT, "ask_first", ASK_FIRST),
            policy(TENANT, "no_large", HOLD_ALL.replace("intercept", "deny").split("\n\n")[1]),
        ]
    )
    large: dict[str, Any] = {
        "features": {**FEATURES, "arg_bytes": 101},
        "arguments_digest": "h1:00000000:large",
    }
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask())
        (approved,) = await desk.until_opened()
        desk.send(control.decide(approved, now_ms=now_ms(clock)))
        await authorizer.decider.ticket_changed()
        (pending,) = await authorizer.decider.ask(ask(**large))
        control.publish(stricter, now_s=now_s(clock))
        desk.notify(2)
        told = dict([await authorizer.decider.ticket_changed() for _ in range(2)])
        (anew,) = await authorizer.decider.ask(ask(escalation=approved.id))
        (refused,) = await authorizer.decider.ask(
            ask(escalation=pending.decision.escalation.id, **large)
        )
        control.publish(ASKING, now_s=now_s(clock))
        desk.notify(3)
        await until_serial(authorizer, 3)
        (back,) = await authorizer.decider.ask(ask())

    ids = {approved.id, pending.decision.escalation.id}
    assert dict.fromkeys(ids, "superseded") == told
    assert (INTERCEPT, "ask_first", "pending") == said(anew)
    assert (DENY, "large") == said(refused)[:2]
    assert "approval_superseded" == refused.decision.codes[-1]
    assert (INTERCEPT, "pending") == (said(back)[0], said(back)[2])
    assert len({*ids, anew.decision.escalation.id, back.decision.escalation.id}) == 4


async def test_another_definition_of_the_tool_ends_what_was_asked_of_the_one_before(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    tool = {**rows().tools["files"]["read_file"], "schema_hash": OTHER_HASH}
    redefined = rows(tools={"files": {"read_file": tool}}, policies=ASKING.policies)
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask())
        (opened,) = await desk.until_opened()
        desk.send(control.decide(opened, now_ms=now_ms(clock)))
        await authorizer.decider.ticket_changed()
        control.publish(redefined, now_s=now_s(clock))
        desk.notify(2)
        told = await authorizer.decider.ticket_changed()
        (old,) = await authorizer.decider.ask(ask(schema_hash=SCHEMA_HASH))
        (new,) = await authorizer.decider.ask(ask(schema_hash=OTHER_HASH))

    assert (opened.id, "superseded") == told
    assert (DENY, "tool_schema_changed") == said(old)[:2]
    assert (INTERCEPT, "pending") == (said(new)[0], said(new)[2])


async def test_tickets_clocks_and_what_control_must_hear_survive_restarts(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    desk.keeps = False
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        (held,) = await authorizer.decider.ask(ask())
    clock.advance(60)
    desk.keeps = True
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        (opened,) = await desk.until_opened()
        (again,) = await authorizer.decider.ask(ask())
        decision = control.decide(opened, now_ms=now_ms(clock))
        desk.send(decision)
        await desk.until_acknowledged(decision)
    clock.advance(60)
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        desk.keeps = False
        (allowed,) = await authorizer.decider.ask(ask())
    desk.keeps = True
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        (fresh,) = await authorizer.decider.ask(ask(escalation=opened.id))
        used = await desk.until_changed(opened.id, "consumed")

    assert held.decision.escalation == again.decision.escalation
    assert opened.id == held.decision.escalation.id
    assert (ALLOW, "ask_first", "consumed") == said(allowed)
    assert 2 == used.version
    assert (INTERCEPT, "pending") == (said(fresh)[0], said(fresh)[2])


async def test_what_control_kept_is_not_told_again(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask(arguments_digest="h1:00000000:1"))
        (kept,) = await desk.until_opened()
        desk.keeps = False
        await authorizer.decider.ask(ask(arguments_digest="h1:00000000:2"))
        desk.heard.clear()
        desk.keeps = True
        connected = desk.connected
        desk.hang_up()
        await desk.until_connected(connected + 1)
        opened = await desk.until_opened(2)

    told = [one.escalation_opened.id for one in desk.heard if one.HasField("escalation_opened")]
    assert kept.id not in told
    assert opened[1].id in told


REFUSED_DECISIONS: dict[str, dict[str, Any]] = {
    "another hand": {"key": ECKey.generate_key("P-256")},
    "another binding": {"binding": "b1:00000000:" + "0" * 64},
    "another plane": {"plane": "dp-other"},
    "another tenant": {"tenant": OTHER_TENANT},
    "another escalation": {"escalation": OTHER_AGENT},
    "another type": {"header": {"typ": "JWT"}},
    "another key's name": {"header": {"kid": "someone"}},
    "too many uses": {"uses": 21},
    "too long": {"execute_by_ms": 2**52},
}


@promise("escalations:signed")
async def test_what_people_did_not_decide_changes_nothing_and_is_recorded(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start, state_dir: Path
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask())
        (opened,) = await desk.until_opened()
        forged = [
            control.decide(opened, now_ms=now_ms(clock), **changes)
            for changes in REFUSED_DECISIONS.values()
        ]
        desk.send(*forged)
        (waiting,) = await authorizer.decider.ask(ask())
        real = control.decide(opened, now_ms=now_ms(clock))
        desk.send(real)
        await desk.until_acknowledged(real)
        (allowed,) = await authorizer.decider.ask(ask())

    assert (INTERCEPT, "pending") == (said(waiting)[0], said(waiting)[2])
    assert ALLOW == said(allowed)[0]
    assert {real.signal_id} == desk.acknowledged
    recorded = recorded_types(state_dir)
    assert len(REFUSED_DECISIONS) == recorded.count("escalation.refused")
    assert ["escalation.opened", "escalation.approved", "escalation.consumed"] == [
        one for one in recorded if one.startswith("escalation.") and "refused" not in one
    ]


def recorded_types(state_dir: Path) -> list[str]:
    """The types of all records that wait in the authorizer's outbox, in order."""
    return [
        chunk.split(b'"', 1)[0].decode()
        for segment in sorted((state_dir / "outbox" / "authorizer").rglob("*.seg"))
        for chunk in segment.read_bytes().split(b'"type":"')[1:]
    ]


async def test_an_old_trust_root_lets_nobody_approve_and_so_nobody_is_asked(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.write_trust(decision=False)
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        (verdict,) = await authorizer.decider.ask(ask())

    assert (DENY, "escalation_unavailable", "") == said(verdict)
    assert {} == desk.opened


@promise("failure:escalation-store")
async def test_a_store_that_cannot_be_believed_denies_until_it_can(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start, state_dir: Path
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    journal = state_dir / "tickets" / "000000000001.journal"
    journal.parent.mkdir(mode=0o700)
    journal.write_bytes(b"no journal")
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        held, plain = await authorizer.decider.ask(ask(), ask(tool="list_files"))
        with pytest.raises(grpc.aio.AioRpcError) as away:
            await cancel(authorizer, OTHER_AGENT)
        journal.unlink()
        await until_store_answers(authorizer)
        (healed,) = await authorizer.decider.ask(ask())

    assert (DENY, "escalation_unavailable", "") == said(held)
    assert ["ask_first", "escalation_unavailable"] == list(held.decision.codes)
    assert "tool_hidden" == plain.decision.reason_code
    assert grpc.StatusCode.UNAVAILABLE == away.value.code()
    assert (INTERCEPT, "ask_first", "pending") == said(healed)


async def test_a_twenty_first_escalation_of_an_agent_is_denied_and_another_agents_is_not(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(everything_held(TENANT), now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        held = await authorizer.decider.ask(
            *(ask(arguments_digest=f"h1:00000000:{number}") for number in range(20))
        )
        over, repeated, other = await authorizer.decider.ask(
            ask(arguments_digest="h1:00000000:20"),
            ask(arguments_digest="h1:00000000:0"),
            ask(caller={"agent_id": OTHER_AGENT}, arguments_digest="h1:00000000:20"),
        )
        await desk.until_opened(21)

    assert {(INTERCEPT, "ask_first", "pending")} == {said(one) for one in held}
    assert (DENY, "escalation_limit", "") == said(over)
    assert INTERCEPT == said(repeated)[0] == said(other)[0]


async def test_what_weighs_most_needs_two_and_a_policy_may_ask_for_more(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    tool = rows().tools["files"]["read_file"]
    three = ASK_FIRST.replace('"obligations": []', '"obligations": [], "quorum": 3')
    hold = HOLD_ALL.split("\n\n", maxsplit=1)[0]
    control.publish(
        rows(
            roles={"reader": ["filesystem:*"]},
            tools={
                "files": {
                    "read_file": tool,
                    "mount": {**tool, "action": "admin"},
                    "list_files": tool,
                }
            },
            policies=[policy(TENANT, "three", three), policy(TENANT, "hold", hold)],
        ),
        now_s=now_s(clock),
    )
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask(), ask(tool="mount"), ask(tool="list_files"))
        opened = await desk.until_opened(3)

    assert {"read_file": 3, "mount": 2, "list_files": 1} == {one.tool: one.quorum for one in opened}


async def test_control_hears_what_people_need_and_no_payload(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask(arguments=b'{"path":"/tmp/secret-in-arguments"}', **BASE))
        (opened,) = await desk.until_opened()

    assert ("agent", "default", "files", "read_file", "tools/call", "read") == (
        opened.agent_name,
        opened.agent_class,
        opened.server,
        opened.tool,
        opened.method,
        opened.action,
    )
    assert ("mail:ann", False, ["ask_first"], "ask", 1, "low", 900) == (
        opened.requester_id,
        opened.requester_verified,
        list(opened.codes),
        opened.reason,
        opened.quorum,
        opened.tier,
        opened.execute_for_s,
    )
    assert FEATURES == json.loads(opened.features)
    assert b"secret-in-arguments" not in opened.SerializeToString()


async def test_who_lost_their_rights_is_named_to_the_proxies_at_once(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await desk.until_connected(1)
        desk.revoke(
            plane_link_pb2.Revocation(
                signal_id="r1", tenant_id=TENANT, agent_ids=[AGENT], min_serial=2
            )
        )
        revoked = await asyncio.wait_for(authorizer.decider.revoked.get(), 5)
        (refused,) = await authorizer.decider.ask(ask())

    assert (TENANT, [AGENT], []) == (
        revoked.tenant_id,
        list(revoked.agent_ids),
        list(revoked.session_ids),
    )
    assert (DENY, "agent_suspended") == said(refused)[:2]


async def test_rights_that_only_a_bundle_ends_are_told_to_the_proxies_too(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    suspended = {AGENT: {**ASKING.agents[AGENT], "status": "suspended"}}
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await desk.until_connected(1)
        control.publish(rows(agents=suspended, policies=ASKING.policies), now_s=now_s(clock))
        desk.notify(2)
        revoked = await asyncio.wait_for(authorizer.decider.revoked.get(), 5)

    assert (TENANT, [AGENT]) == (revoked.tenant_id, list(revoked.agent_ids))
