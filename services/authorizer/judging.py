"""Takes one ask through the steps: admit, build the input, ask the engine, conclude, and where
policy holds the call, ask people.

The rules are decision.py's; this is the order in which I/O happens around them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Protocol

from services.authorizer import decision, inputs, restriction
from services.authorizer.active import ActivePolicy
from services.authorizer.asks import Ask, Caller
from services.authorizer.bundles import VerifiedBundle
from services.authorizer.decision import EngineFailed, EngineSaid, Known, Verdict
from services.authorizer.engine.prune import prune
from services.authorizer.envelope import Envelope, EnvelopeInvalid, envelope_without_arguments
from services.authorizer.escalations import Escalations, Held, PolicyChanged
from services.authorizer.plane_state import Tenant
from services.authorizer.rates import Rates, Spending
from services.authorizer.staleness import Freshness
from services.common.clock import Clock
from services.common.ids import TenantId
from services.common.telemetry.counters import Counters

#: How often a call is judged again because the policy changed under it.
MAX_CHANGES: Final = 3


class Judge(Protocol):
    async def ask(
        self,
        tenant: TenantId,
        revision: str,
        item: bytes,
        *,
        source: tuple[str, str],
        budget_s: float,
    ) -> EngineSaid | EngineFailed:
        """One decision, batched with what else waits. `source` is (agent, tool)."""


@dataclass(frozen=True, slots=True)
class Judged:
    verdict: Verdict
    envelope: bytes
    bundle: VerifiedBundle | None
    tenant: Tenant | None
    age: Freshness
    #: What was decided on, where the call came that far.
    decided: Envelope | None = None


class Judging:
    def __init__(
        self,
        *,
        active: ActivePolicy,
        judge: Judge,
        rates: Rates,
        escalations: Escalations,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._active = active
        self._judge = judge
        self._rates = rates
        self._escalations = escalations
        self._clock = clock
        self._by_result = {
            decision.Result.ALLOW: counters.counter("authorizer.decisions.allow"),
            decision.Result.DENY: counters.counter("authorizer.decisions.deny"),
            decision.Result.INTERCEPT: counters.counter("authorizer.decisions.intercept"),
        }

    async def judge(
        self, ask: Ask, caller: Caller, *, deadline_s: float, now_s: float, continues: str = ""
    ) -> Judged:
        """`deadline_s` and `now_s` are of one monotonic clock, in seconds. `continues` is the
        escalation that the call waited for.
        """
        judged = await self._judge_settled(ask, caller, budget_s=deadline_s - now_s)
        if judged.verdict.result is decision.Result.INTERCEPT or continues:
            judged = await self._ask_people(
                judged, ask, caller, deadline_s=deadline_s, now_s=now_s, continues=continues
            )
        self._by_result[judged.verdict.result].value += 1
        return judged

    async def _ask_people(
        self,
        judged: Judged,
        ask: Ask,
        caller: Caller,
        *,
        deadline_s: float,
        now_s: float,
        continues: str,
    ) -> Judged:
        for _ in range(MAX_CHANGES):
            if judged.decided is None or judged.tenant is None:
                return judged  # denied before there was anything to hold
            held = Held(
                ask=ask,
                caller=caller,
                tenant=judged.tenant,
                envelope=judged.decided,
                continues=continues,
                deadline_s=deadline_s,
            )
            try:
                verdict = await self._escalations.settle(judged.verdict, held)
            except PolicyChanged:
                judged = await self._judge_settled(
                    ask, caller, budget_s=deadline_s - now_s, paid=True
                )
            else:
                return replace(judged, verdict=verdict)
        return replace(judged, verdict=decision.deny("revision_mismatch"))

    async def _judge_settled(
        self, ask: Ask, caller: Caller, *, budget_s: float, paid: bool = False
    ) -> Judged:
        judged = await self._judge_once(ask, caller, budget_s=budget_s, paid=paid)
        if judged.verdict.reason_code == "revision_mismatch":
            await self._active.settled()
            judged = await self._judge_once(ask, caller, budget_s=budget_s, paid=True)
        return judged

    async def _judge_once(self, ask: Ask, caller: Caller, *, budget_s: float, paid: bool) -> Judged:
        """`paid`: the call was counted already and is only judged again."""
        bundle, age = self._active.bundle, self._active.age()
        if bundle is None:
            return Judged(decision.deny("policy_missing"), b"", None, None, age)
        now_ns = self._clock.now_ns()
        tenant = bundle.state.tenants.get(caller.tenant)
        known = decision.identify(
            ask,
            caller,
            tenant,
            stops=self._active.kill_switch.stops,
            revocations=self._active.revocations,
            age=age,
            now_s=now_ns // 1_000_000_000,
        )
        if isinstance(known, Verdict):
            return Judged(known, b"", bundle, tenant, age)
        rated = (
            self._rates.passed if paid else await self._rates.take(_spending(ask, caller, known))
        )
        admitted = decision.admit(ask, caller, known, rated)
        if isinstance(admitted, Verdict):
            return Judged(admitted, b"", bundle, tenant, age)
        tenant = known.tenant
        try:
            envelope = inputs.build(ask, caller, tenant, admitted, age=age, now_ns=now_ns)
        except EnvelopeInvalid:
            refused = decision.deny(
                "input_invalid", action=admitted.action, category=admitted.category
            )
            return Judged(refused, b"", bundle, tenant, age)
        answer = await self._judge.ask(
            caller.tenant,
            bundle.revision,
            prune(envelope, tenant.reads),
            source=(caller.agent, ask.request.tool),
            budget_s=budget_s,
        )
        verdict = decision.conclude(admitted, answer)
        bare = envelope_without_arguments(envelope)
        return Judged(verdict, bare, bundle, tenant, age, envelope)


def _spending(ask: Ask, caller: Caller, known: Known) -> Spending:
    agent, session = known.agent_restriction, known.session_restriction
    return Spending(
        tenant=caller.tenant,
        limits=known.tenant.limits,
        agent=caller.agent,
        agent_milli=restriction.rate_milli(agent) if agent else 1000,
        session=caller.session if session else "",
        session_milli=restriction.rate_milli(session) if session else 1000,
        server=ask.request.server,
        tool=ask.request.tool,
    )
