"""Takes one ask through the steps: admit, build the input, ask the engine, conclude.

The rules are decision.py's; this is the order in which I/O happens around them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.authorizer import decision, inputs
from services.authorizer.active import ActivePolicy
from services.authorizer.asks import Ask, Caller
from services.authorizer.bundles import VerifiedBundle
from services.authorizer.decision import EngineFailed, EngineSaid, Verdict
from services.authorizer.engine.prune import prune
from services.authorizer.envelope import EnvelopeInvalid, envelope_without_arguments
from services.authorizer.plane_state import Tenant
from services.authorizer.staleness import Freshness
from services.common.clock import Clock
from services.common.ids import TenantId
from services.common.telemetry.counters import Counters


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


class Judging:
    def __init__(
        self, *, active: ActivePolicy, judge: Judge, clock: Clock, counters: Counters
    ) -> None:
        self._active = active
        self._judge = judge
        self._clock = clock
        self._by_result = {
            decision.Result.ALLOW: counters.counter("authorizer.decisions.allow"),
            decision.Result.DENY: counters.counter("authorizer.decisions.deny"),
            decision.Result.INTERCEPT: counters.counter("authorizer.decisions.intercept"),
        }

    async def judge(self, ask: Ask, caller: Caller, *, deadline_s: float, now_s: float) -> Judged:
        """`deadline_s` and `now_s` are of one monotonic clock, in seconds."""
        judged = await self._judge_once(ask, caller, budget_s=deadline_s - now_s)
        if judged.verdict.reason_code == "revision_mismatch":
            await self._active.settled()
            judged = await self._judge_once(ask, caller, budget_s=deadline_s - now_s)
        self._by_result[judged.verdict.result].value += 1
        return judged

    async def _judge_once(self, ask: Ask, caller: Caller, *, budget_s: float) -> Judged:
        bundle, age = self._active.bundle, self._active.age()
        if bundle is None:
            return Judged(decision.deny("policy_missing"), b"", None, None, age)
        tenant = bundle.state.tenants.get(caller.tenant)
        admitted = decision.admit(ask, caller, tenant, self._active.revocations, age)
        if isinstance(admitted, Verdict) or tenant is None:
            refused = admitted if isinstance(admitted, Verdict) else decision.deny("tenant_unset")
            return Judged(refused, b"", bundle, tenant, age)
        try:
            envelope = inputs.build(
                ask, caller, tenant, admitted, age=age, now_ns=self._clock.now_ns()
            )
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
        return Judged(verdict, envelope_without_arguments(envelope), bundle, tenant, age)
