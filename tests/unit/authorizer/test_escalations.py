"""What a ticket means for a call, and who is first when several want it: the rules between policy's
Intercept and the answer, over a real journal.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.authorizer import asks, envelope
from services.authorizer.asks import Caller
from services.authorizer.decision import Result, Verdict, deny
from services.authorizer.escalations import Escalations, Held, PolicyChanged
from services.authorizer.plane_state import DecideSeconds, Tenant
from services.authorizer.plane_state import Escalations as Times
from services.authorizer.tickets.local import LocalTicketStore, local_ticket_store
from services.authorizer.tickets.protocol import StoreUnavailable
from services.authorizer.tickets.ticket import (
    PENDING_PER_AGENT,
    Decided,
    Refused,
    State,
    Ticket,
    TicketId,
)
from services.authorizer.tickets.ticket import Verdict as Said
from services.common.ids import AgentId, SessionId, TenantId
from services.common.outbox.digests import Digester
from services.common.telemetry.logging import get_log
from tests.fakes import asks as asked
from tests.fakes.clock import START_NS, ManualClock
from tests.fakes.envelopes import example

TENANT = TenantId("0199d0d0-0000-7000-8000-000000000001")
AGENT = AgentId("0199d0d0-0000-7000-8000-00000000000a")
OTHER_AGENT = AgentId("0199d0d0-0000-7000-8000-00000000000b")
NOW_MS = START_NS // 1_000_000
HELD = Verdict(
    result=Result.INTERCEPT,
    reason_code="ask_first",
    reason="ask",
    codes=("ask_first",),
    policies=("mine",),
    obligations=b"",
)
ALLOWED = replace(HELD, result=Result.ALLOW, reason_code="granted", codes=())
POLICY = Tenant(slug="acme", policy_revision="sha256:1")
OTHER_POLICY = Tenant(slug="acme", policy_revision="sha256:2")


@dataclass(slots=True)
class Policies:
    now: Tenant | None = POLICY

    def tenant(self, tenant_id: str) -> Tenant | None:
        return self.now if tenant_id == TENANT else None


@dataclass(slots=True)
class Bent:
    """A real store, in which something else happens before a step, or which is away."""

    real: LocalTicketStore
    away: bool = False
    before: dict[str, Callable[[], Awaitable[Any]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **options: Any) -> Any:
            self.asked.append(name)
            if self.away:
                raise StoreUnavailable("away")
            if first := self.before.pop(name, None):
                await first()
            return await getattr(self.real, name)(*args, **options)

        return call


@dataclass(slots=True)
class Desk:
    """Everything around one call."""

    store: Bent
    policies: Policies
    clock: ManualClock
    verifiable: bool = True

    async def settle(
        self, verdict: Verdict = HELD, *, continues: str = "", left_s: float = 5, **changes: Any
    ) -> Verdict:
        escalations = Escalations(
            store=self.store,
            digester=Digester([b"k" * 32]),
            active=self.policies,
            clock=self.clock,
            verifiable=self.verifiable,
        )
        return await escalations.settle(verdict, held(continues, left_s, **changes))

    async def decide(self, verdict: Verdict, said: Said = Said.APPROVE) -> TicketId:
        """People decide on the ticket of this answer."""
        assert verdict.escalation is not None
        id_ = TicketId(verdict.escalation.id)
        ticket = await self.store.real.get(TENANT, id_)
        assert ticket is not None
        decided = Decided(binding=ticket.binding, verdict=said, execute_by_ms=NOW_MS + 900_000)
        await self.store.real.decide(TENANT, id_, decided, now_ms=NOW_MS)
        return id_

    async def ticket(self, id_: str) -> Ticket:
        found = await self.store.real.get(TENANT, TicketId(id_))
        assert found is not None
        return found


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with local_ticket_store(tmp_path, get_log("test")) as store:
        yield Desk(Bent(store), Policies(), ManualClock())


def held(
    continues: str,
    left_s: float,
    *,
    agent: AgentId = AGENT,
    tenant: Tenant = POLICY,
    digest: str = asked.DIGEST,
    **changes: Any,
) -> Held:
    wire = asked.ask(arguments_digest=digest)
    ask = asks.decode(wire.request, wire.features, wire.findings, wire.arguments_json)
    paths = {"tenant.id": TENANT, "agent.id": agent, "request.arguments_digest": digest}
    decided = envelope.decode(json.dumps(example(paths | changes)).encode())
    return Held(
        ask=ask,
        caller=Caller(
            tenant=TENANT,
            agent=agent,
            session=SessionId("session"),
            transport="http",
            requester_id="",
            requester_channel="",
            issued_at_s=0,
            delegation_presented=False,
            workflow_presented=False,
        ),
        tenant=tenant,
        envelope=decided,
        continues=continues,
        deadline_s=asyncio.get_running_loop().time() + left_s,
    )


def told(verdict: Verdict) -> tuple[Result, str]:
    return verdict.result, verdict.reason_code


async def test_a_plain_allow_or_deny_touches_no_store(desk: Desk) -> None:
    allowed, denied = await desk.settle(ALLOWED), await desk.settle(deny("policy"))

    assert (ALLOWED, deny("policy")) == (allowed, denied)
    assert [] == desk.store.asked


async def test_the_time_to_decide_is_the_tenants_for_the_agents_tier(desk: Desk) -> None:
    times = Times(decide_seconds=DecideSeconds(high=77), execute_seconds=99)
    tenant = msgspec.structs.replace(POLICY, escalations=times)
    of_the_agent: dict[str, Any] = {"risk.tier": "high"}
    verdict = await desk.settle(tenant=tenant, **of_the_agent)

    assert verdict.escalation is not None
    assert NOW_MS + 77_000 == verdict.escalation.decide_by_ms
    ticket = await desk.ticket(verdict.escalation.id)
    assert ("high", 99) == (ticket.tier, ticket.execute_for_s)


@pytest.mark.parametrize(
    ("asked_for", "changes", "quorum"),
    [
        (1, {}, 1),
        (1, {"request.action": "admin"}, 2),
        (1, {"risk.tier": "critical"}, 2),
        (4, {"risk.tier": "critical"}, 4),
        (5, {}, 5),
    ],
)
async def test_what_is_grave_needs_two_and_a_policy_may_ask_for_more(
    desk: Desk, asked_for: int, changes: dict[str, Any], quorum: int
) -> None:
    verdict = await desk.settle(replace(HELD, quorum=asked_for), **changes)

    assert verdict.escalation is not None
    assert quorum == (await desk.ticket(verdict.escalation.id)).quorum


async def test_of_two_that_find_the_approval_the_second_asks_people_again(desk: Desk) -> None:
    first = await desk.settle()
    id_ = await desk.decide(first)
    used: list[Verdict] = []

    async def quicker() -> None:
        used.append(await desk.settle())

    desk.store.before["consume"] = quicker
    second = await desk.settle()

    assert [(Result.ALLOW, "ask_first")] == [told(one) for one in used]
    assert (Result.INTERCEPT, "ask_first") == told(second)
    assert second.escalation is not None
    assert id_ != second.escalation.id
    assert State.CONSUMED is (await desk.ticket(id_)).state


async def test_an_approval_taken_back_at_the_last_moment_runs_nothing(desk: Desk) -> None:
    first = await desk.settle()
    await desk.decide(first)

    async def revoke() -> None:
        await desk.decide(first, Said.REVOKE)

    desk.store.before["consume"] = revoke
    second = await desk.settle()

    assert (Result.DENY, "escalation_denied") == told(second)


async def test_nothing_is_used_up_for_a_caller_who_would_not_hear_of_it(desk: Desk) -> None:
    id_ = await desk.decide(await desk.settle())
    late = await desk.settle(left_s=0.001)
    in_time = await desk.settle()

    assert (Result.DENY, "engine_timeout") == told(late)
    assert Result.ALLOW is in_time.result
    assert State.CONSUMED is (await desk.ticket(id_)).state


async def test_a_policy_that_changed_before_the_ticket_has_the_call_judged_again(
    desk: Desk,
) -> None:
    desk.policies.now = OTHER_POLICY
    with pytest.raises(PolicyChanged):
        await desk.settle()

    assert "open" not in desk.store.asked


async def test_a_policy_that_changed_while_the_ticket_was_written_ends_it(desk: Desk) -> None:
    async def switch() -> None:
        desk.policies.now = OTHER_POLICY

    desk.store.before["open"] = switch
    with pytest.raises(PolicyChanged):
        await desk.settle()

    assert [] == await desk.store.real.live()


async def test_a_policy_that_changed_while_the_approval_was_looked_up_uses_none_up(
    desk: Desk,
) -> None:
    id_ = await desk.decide(await desk.settle())

    async def switch() -> None:
        desk.policies.now = OTHER_POLICY

    desk.store.before["open"] = switch
    with pytest.raises(PolicyChanged):
        await desk.settle()

    assert State.APPROVED is (await desk.ticket(id_)).state
    desk.policies.now = POLICY
    assert Result.ALLOW is (await desk.settle()).result


@pytest.mark.parametrize(
    ("said", "code"),
    [(Said.DENY, "escalation_denied"), (Said.CANCEL, "escalation_cancelled")],
)
async def test_an_escalation_that_ended_answers_the_call_that_continues_it_whatever_policy_says_now(
    desk: Desk, said: Said, code: str
) -> None:
    id_ = await desk.decide(await desk.settle(), said)
    desk.clock.advance(2 * 86_400)
    by_id = await desk.settle(continues=id_)
    allowed_now = await desk.settle(ALLOWED, continues=id_)
    denied_now = await desk.settle(deny("policy"), continues=id_)
    fresh = await desk.settle()

    assert (Result.DENY, code) == told(by_id) == told(allowed_now)
    assert (Result.DENY, "policy") == told(denied_now)
    assert Result.INTERCEPT is fresh.result


async def test_another_agents_escalation_or_another_calls_says_nothing(desk: Desk) -> None:
    id_ = await desk.decide(await desk.settle(), Said.DENY)
    other_call = await desk.settle(continues=id_, digest="h1:00000000:other")
    other_agent = await desk.settle(continues=id_, agent=OTHER_AGENT)
    unknown = await desk.settle(continues=AGENT, digest="h1:00000000:third")

    assert {Result.INTERCEPT} == {one.result for one in (other_call, other_agent, unknown)}


async def test_an_approval_covers_only_the_codes_that_it_lists(desk: Desk) -> None:
    id_ = await desk.decide(await desk.settle())
    more = await desk.settle(replace(HELD, codes=("ask_first", "large")), continues=id_)
    fewer = await desk.settle(replace(HELD, codes=("large",)))
    same = await desk.settle()

    assert Result.INTERCEPT is more.result is fewer.result
    assert Result.ALLOW is same.result
    assert same.escalation is not None
    assert (id_, ("ask_first",)) == (same.escalation.id, same.escalation.codes)


async def test_a_denial_after_a_changed_policy_says_that_the_approval_was_superseded(
    desk: Desk,
) -> None:
    id_ = await desk.decide(await desk.settle())
    desk.policies.now = OTHER_POLICY
    await desk.store.real.supersede(TENANT, keep_revision="sha256:2", now_ms=NOW_MS)
    denied = await desk.settle(deny("policy"), continues=id_, tenant=OTHER_POLICY)
    held_anew = await desk.settle(continues=id_, tenant=OTHER_POLICY)
    for number in range(19):
        await desk.settle(tenant=OTHER_POLICY, digest=f"h1:00000000:{number}")
    assert held_anew.escalation is not None
    await desk.decide(held_anew)
    await desk.settle(tenant=OTHER_POLICY)
    await desk.settle(tenant=OTHER_POLICY, digest="h1:00000000:last")
    no_room = await desk.settle(continues=id_, tenant=OTHER_POLICY)

    assert ("policy", "approval_superseded") == denied.codes
    assert ("ask_first", "escalation_limit", "approval_superseded") == no_room.codes
    assert ("ask_first",) == held_anew.codes
    assert Result.INTERCEPT is held_anew.result


async def test_without_a_store_or_anybody_to_decide_the_call_is_denied_and_says_why_it_was_held(
    desk: Desk,
) -> None:
    desk.verifiable = False
    nobody = await desk.settle()
    desk.verifiable, desk.store.away = True, True
    away = await desk.settle()
    denied = await desk.settle(deny("policy"), continues=AGENT)
    no_digest = await desk.settle(digest="")

    assert (Result.DENY, "escalation_unavailable") == told(nobody) == told(away)
    assert told(away) == told(no_digest)
    assert ("ask_first", "escalation_unavailable") == away.codes
    assert deny("policy") == denied


async def test_a_use_whose_answer_was_lost_is_spent_and_was_not_used(desk: Desk) -> None:
    id_ = await desk.decide(await desk.settle())
    ticket = await desk.ticket(id_)

    async def lose_the_answer() -> None:
        taken = await desk.store.real.consume(TENANT, id_, binding=ticket.binding, now_ms=NOW_MS)
        assert not isinstance(taken, Refused)
        raise StoreUnavailable("away")

    desk.store.before["consume"] = lose_the_answer
    lost = await desk.settle()
    after = await desk.settle()

    assert (Result.DENY, "escalation_unavailable") == told(lost)
    assert Result.INTERCEPT is after.result


async def test_whoever_asks_and_gives_up_again_and_again_rings_for_nobody_any_more(
    desk: Desk,
) -> None:
    escalations = Escalations(
        store=desk.store, digester=Digester([b"k" * 32]), active=desk.policies, clock=desk.clock,
        verifiable=True,
    )  # fmt: skip

    async def ask(number: int, agent: AgentId = AGENT) -> Verdict:
        digest = f"h1:{number:064x}"
        return await escalations.settle(HELD, held("", 5, agent=agent, digest=digest))

    waiting = await ask(0)
    for number in range(1, PENDING_PER_AGENT + 1):
        asked_now = await ask(number)
        assert asked_now.escalation is not None
        await escalations.cancel(TENANT, AGENT, asked_now.escalation.id)
    refused, still = await ask(99), await ask(0)
    another = await ask(99, OTHER_AGENT)
    desk.clock.advance(61)
    later = await ask(99)

    assert (Result.DENY, "escalation_limit") == told(refused)
    assert waiting.escalation == still.escalation
    assert [Result.INTERCEPT] * 2 == [another.result, later.result]
