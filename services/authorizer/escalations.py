"""What becomes of a call that policy holds: the ticket that asks people, and what its state means
for the call (core.md 9; step 12 of core.md 6).

Decides when a ticket is opened, answered or used up. An approval covers the codes that its ticket
lists and no others: the binding holds them. Tickets themselves are tickets/'s work, what people
decided comes in by approvals.py. No store, or nobody whose decisions could be verified: denied.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Final, Protocol, assert_never

from services.authorizer import decision
from services.authorizer.asks import Ask, Caller
from services.authorizer.decision import Escalation, Result, Verdict
from services.authorizer.envelope import Envelope
from services.authorizer.given_up import GivenUp
from services.authorizer.plane_state import Tenant
from services.authorizer.shown_features import shown
from services.authorizer.tickets import binding
from services.authorizer.tickets.binding import Bound
from services.authorizer.tickets.protocol import StoreUnavailable, TicketStore, TooManyPending
from services.authorizer.tickets.ticket import Opening, Refused, State, Ticket, TicketId, aged
from services.common.clock import Clock
from services.common.ids import AgentId, TenantId, uuid7
from services.common.outbox.digests import Digester

#: How often a ticket may change under a call before the call is refused.
MAX_TRIES: Final = 5
#: Nothing is used up for a caller who would not hear of it.
MIN_LEFT_S: Final = 0.01

#: What an ended ticket answers; the others are a matter for a new one.
ENDED: Final[dict[State, str]] = {
    State.DENIED: "escalation_denied",
    State.REVOKED: "escalation_denied",
    State.EXPIRED: "escalation_expired",
    State.LAPSED: "escalation_expired",
    State.CANCELLED: "escalation_cancelled",
}


class PolicyChanged(Exception):
    """The call was judged under a policy that is not the active one any more: judge it again."""


class Policies(Protocol):
    def tenant(self, tenant_id: str) -> Tenant | None:
        """As the bundle that is active now has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A call as it was judged. `continues` is the escalation that the caller says it waits for."""

    ask: Ask
    caller: Caller
    tenant: Tenant
    envelope: Envelope
    continues: str
    #: Of the loop's clock.
    deadline_s: float


class Escalations:
    """`verifiable`: the trust root says whose decisions count."""

    def __init__(
        self,
        *,
        store: TicketStore,
        digester: Digester,
        active: Policies,
        clock: Clock,
        verifiable: bool,
    ) -> None:
        self._store = store
        self._digester = digester
        self._active = active
        self._clock = clock
        self._verifiable = verifiable
        self._given_up = GivenUp()

    async def settle(self, verdict: Verdict, held: Held) -> Verdict:
        """Step 12 for a call that policy intercepts, or that continues an escalation. Raises
        PolicyChanged.

        1. nobody could decide, or not on what  2. the escalation it continues has ended
        3. the policy alone decides  4. the ticket of the binding  5. what its state means.
        """
        bindable = self._verifiable and held.ask.request.arguments_digest
        if not bindable and verdict.result is Result.INTERCEPT:  # 1
            return _refused(verdict, "escalation_unavailable")
        bound, before = self._bound(verdict, held), None
        try:
            before = await self._continued(held, bound)  # 2
            if before and before.state in ENDED and verdict.result is not Result.DENY:
                return _ended(verdict, before)
            if verdict.result is Result.INTERCEPT:
                settled = await self._by_ticket(verdict, held, bound)  # 4, 5
            else:
                settled = verdict  # 3
        except TooManyPending:
            settled = _refused(verdict, "escalation_limit")
        except StoreUnavailable:
            if verdict.result is Result.DENY:
                return verdict
            return _refused(verdict, "escalation_unavailable")
        if before and before.state is State.SUPERSEDED and settled.result is Result.DENY:
            return replace(settled, codes=(*settled.codes, "approval_superseded"))
        return settled

    async def cancel(self, tenant: TenantId, agent: AgentId, escalation: str) -> str:
        """The state that the agent's escalation has now; empty where it has none of that id. Raises
        StoreUnavailable.
        """
        now_ms = self._now_ms()
        ticket = await self._store.cancel(tenant, TicketId(escalation), agent=agent, now_ms=now_ms)
        if ticket and ticket.state is State.CANCELLED and ticket.changed_at_ms == now_ms:
            self._given_up.note((tenant, agent), now_ms)
        return ticket.state.value if ticket else ""

    async def _continued(self, held: Held, bound: Bound) -> Ticket | None:
        """Only the caller's own, and only for the very same call."""
        if not held.continues:
            return None
        ticket = await self._store.get(held.caller.tenant, TicketId(held.continues))
        if ticket is None or ticket.agent != held.caller.agent:
            return None
        if ticket.subject != binding.subject(bound, self._digester):
            return None
        return aged(ticket, self._now_ms())

    async def _by_ticket(self, verdict: Verdict, held: Held, bound: Bound) -> Verdict:
        for _ in range(MAX_TRIES):
            self._same_policy(held)
            now_ms = self._now_ms()
            opening = self._opening(verdict, held, bound, now_ms)
            if self._given_up.too_often((opening.tenant, opening.agent), now_ms):
                await self._must_speak(opening, now_ms)
            ticket = aged(await self._store.open(opening, now_ms=now_ms), now_ms)
            match ticket.state:
                case State.PENDING:
                    await self._end_if_stale(held)
                    return replace(verdict, escalation=_escalation(ticket))
                case State.APPROVED:
                    used = await self._consume(verdict, held, ticket)
                    if used is not None:
                        return used
                case State.CONSUMED | State.SUPERSEDED:
                    continue  # by another call, meanwhile: this one is asked anew
                case State.DENIED | State.REVOKED | State.CANCELLED | State.EXPIRED | State.LAPSED:
                    return _ended(verdict, ticket)
                case _:
                    assert_never(ticket.state)
        return _refused(verdict, "escalation_unavailable")

    async def _must_speak(self, opening: Opening, now_ms: int) -> None:
        """Raises TooManyPending where the call would be a new question to people."""
        found = await self._store.by_binding(opening.tenant, opening.binding, now_ms=now_ms)
        if found is None:
            raise TooManyPending("agent")

    async def _consume(self, verdict: Verdict, held: Held, ticket: Ticket) -> Verdict | None:
        """Allow once this process alone holds the use, durably; None where another call was first.
        Which of the two it was, a lost answer leaves open: then the use is spent and nothing ran.
        """
        if asyncio.get_running_loop().time() > held.deadline_s - MIN_LEFT_S:
            return _refused(verdict, "engine_timeout")
        self._same_policy(held)  # again: the ticket took its time
        used = await self._store.consume(
            ticket.tenant, ticket.id, binding=ticket.binding, now_ms=self._now_ms()
        )
        match used:
            case Ticket():
                escalation = replace(_escalation(used), state=State.CONSUMED.value)
                return replace(verdict, result=Result.ALLOW, escalation=escalation)
            case Refused.LATE | Refused.CLOCK_SUSPECT:
                return _refused(verdict, "escalation_expired")
            case Refused.UNKNOWN | Refused.NOT_APPROVED:
                return None
            case _:
                assert_never(used)

    def _same_policy(self, held: Held) -> None:
        tenant = self._active.tenant(held.caller.tenant)
        if tenant is None or tenant.policy_revision != held.tenant.policy_revision:
            raise PolicyChanged

    async def _end_if_stale(self, held: Held) -> None:
        """The policy may have changed while the ticket was written: nobody else would end it."""
        try:
            self._same_policy(held)
        except PolicyChanged:
            tenant = self._active.tenant(held.caller.tenant)
            await self._store.supersede(
                held.caller.tenant,
                keep_revision=tenant.policy_revision if tenant else "",
                now_ms=self._now_ms(),
            )
            raise

    def _bound(self, verdict: Verdict, held: Held) -> Bound:
        who, request = held.envelope.requester, held.envelope.request
        return Bound(
            tenant=held.caller.tenant,
            agent=held.caller.agent,
            requester=(who.id, who.channel, who.verified) if who else None,
            delegation=None,  # calls with one are refused in this version
            workflow=None,
            server=request.server,
            tool=request.tool,
            method=request.method,
            resource=request.resource,
            arguments_digest=request.arguments_digest,
            schema_hash=request.schema_hash,
            policy_revision=held.tenant.policy_revision,
            codes=tuple(sorted(set(verdict.codes))),
        )

    def _opening(self, verdict: Verdict, held: Held, bound: Bound, now_ms: int) -> Opening:
        given, request = held.envelope, held.envelope.request
        times = held.tenant.escalations
        decide_s: int = getattr(times.decide_seconds, given.risk.tier)
        return Opening(
            id=TicketId(uuid7(self._clock.now_ns())),
            tenant=bound.tenant,
            agent=bound.agent,
            agent_name=given.agent.name,
            agent_class=given.agent.class_,
            requester_id=given.requester.id if given.requester else "",
            requester_verified=bool(given.requester and given.requester.verified),
            server=request.server,
            tool=request.tool,
            method=request.method,
            action=request.action,
            category=request.category,
            resource=request.resource,
            resource_kind=request.resource_kind,
            codes=bound.codes,
            reason=verdict.reason,
            policies=verdict.policies,
            features=shown(given.features),
            finding_tags=given.findings.tags,
            binding=binding.binding(bound, self._digester),
            subject=binding.subject(bound, self._digester),
            policy_revision=bound.policy_revision,
            schema_hash=request.schema_hash or "",
            quorum=_quorum(verdict, given),
            tier=given.risk.tier,
            opened_at_ms=now_ms,
            decide_by_ms=now_ms + decide_s * 1000,
            execute_for_s=times.execute_seconds,
        )

    def _now_ms(self) -> int:
        return self._clock.now_ns() // 1_000_000


def _quorum(verdict: Verdict, given: Envelope) -> int:
    """What the policy asks for, and never one person alone for what weighs most."""
    grave = given.request.action == "admin" or given.risk.tier == "critical"
    return max(verdict.quorum, 2 if grave else 1)


def _escalation(ticket: Ticket) -> Escalation:
    return Escalation(
        id=ticket.id,
        state=ticket.state.value,
        decide_by_ms=ticket.decide_by_ms if ticket.state is State.PENDING else 0,
        execute_by_ms=ticket.execute_by_ms if ticket.state is State.APPROVED else 0,
        codes=ticket.codes,
    )


def _ended(verdict: Verdict, ticket: Ticket) -> Verdict:
    return replace(_refused(verdict, ENDED[ticket.state]), escalation=_escalation(ticket))


def _refused(verdict: Verdict, code: str) -> Verdict:
    """A Deny that still lists why the call was held."""
    held_for = verdict.codes if verdict.result is Result.INTERCEPT else ()
    return replace(
        verdict,
        result=Result.DENY,
        reason_code=code,
        reason=decision.REASONS.get(code, code.replace("_", " ")),
        codes=tuple(dict.fromkeys((*held_for, code))),
        obligations=b"",
        escalation=None,
    )
