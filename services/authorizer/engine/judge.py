"""The engine as the rest of the authorizer sees it: bundles in, verdict material out.

Joins an Engine with its batching and translates both ways; decides nothing.
"""

from __future__ import annotations

import asyncio

import msgspec

from services.authorizer.bundles import BundleRefused, VerifiedBundle
from services.authorizer.decision import EngineFailed, EngineSaid, Result
from services.authorizer.engine.answer import EngineAnswer, EngineFailure
from services.authorizer.engine.batching import Batcher, Said
from services.authorizer.engine.protocol import (
    Engine,
    EngineBundle,
    EngineRefused,
    TenantPolicies,
)
from services.common.ids import NIL_TENANT, TenantId
from services.common.rego.names import PolicyRef, base_policies
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters


class EngineJudge:
    """`supervisor` runs the queries for as long as the judge is used."""

    def __init__(self, engine: Engine, supervisor: Supervisor, counters: Counters) -> None:
        self._engine = engine
        self._batcher = Batcher(engine, supervisor, counters)
        self._loop = asyncio.get_running_loop()

    async def offer(self, bundle: VerifiedBundle) -> None:
        """Returns once the engine answers for this bundle. Raises BundleRefused."""
        try:
            await self._engine.offer(_engine_bundle(bundle))
        except EngineRefused as refused:
            raise BundleRefused(refused.reason, refused.message) from refused

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
        deadline = self._loop.time() + budget_s
        return _translated(await self._batcher.submit(tenant, revision, item, source, deadline))

    async def ask_alone(
        self, tenant: TenantId, revision: str, item: bytes, *, budget_s: float
    ) -> EngineSaid | EngineFailed:
        """One evaluation outside any batch."""
        deadline = self._loop.time() + budget_s
        (said,) = await self._engine.evaluate(tenant, revision, [item], deadline)
        return _translated(said)


def _engine_bundle(bundle: VerifiedBundle) -> EngineBundle:
    """The nil tenant is in it, with the base policies alone: canaries are asked under it."""
    tenants = {
        tenant: TenantPolicies(
            policies=(
                *base_policies(),
                *(
                    PolicyRef(key=policy.key, package=policy.package, state=policy.state)
                    for policy in state.policies
                ),
            )
        )
        for tenant, state in bundle.state.tenants.items()
    }
    tenants.setdefault(NIL_TENANT, TenantPolicies(policies=base_policies()))
    return EngineBundle(
        revision=bundle.revision,
        etag=bundle.digest,
        archive=bundle.archive,
        modules=bundle.modules,
        tenants=tenants,
        data_json=bundle.data_json,
    )


def _translated(said: Said) -> EngineSaid | EngineFailed:
    match said:
        case EngineFailure():
            return EngineFailed(code=said.code, engine=said.engine, engine_us=said.engine_us)
        case EngineAnswer(decision=decision):
            return EngineSaid(
                result=Result(decision.result),
                reason_code=decision.reason_code,
                reason=decision.reason,
                codes=decision.codes,
                policies=decision.policies,
                obligations=_list(decision.obligations),
                shadow=msgspec.json.encode(decision.shadow) if decision.shadow else b"",
                engine=said.engine,
                engine_us=said.engine_us,
                quorum=decision.quorum,
            )


def _list(obligations: tuple[bytes, ...]) -> bytes:
    return b"[%b]" % b",".join(obligations) if obligations else b""
