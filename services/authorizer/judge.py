"""The engine as the steps see it: offers a verified bundle, asks for decisions through the batcher,
keeps a pruner per tenant and revision, and turns answers into this service's own values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from services.authorizer.bundles import BundleRefused, VerifiedBundle
from services.authorizer.decision import EngineFailed, EngineSaid, Result
from services.authorizer.engine.answer import EngineAnswer, EngineFailure
from services.authorizer.engine.batching import Batcher
from services.authorizer.engine.protocol import (
    Engine,
    EngineBundle,
    EngineRefused,
    TenantPolicies,
)
from services.authorizer.plane_state import Tenant
from services.common.ids import NIL_TENANT, TenantId
from services.common.rego.names import PolicyRef, base_policies


class EngineJudge:
    """Made once; the batcher and the engine live as long as the process."""

    def __init__(self, engine: Engine, batcher: Batcher) -> None:
        self._engine = engine
        self._batcher = batcher

    async def offer(self, bundle: VerifiedBundle) -> None:
        """Returns once the engine answers for this bundle. Raises BundleRefused."""
        offered = EngineBundle(
            revision=bundle.revision,
            etag=bundle.digest,
            archive=bundle.archive,
            modules=bundle.modules,
            tenants=_tenants(bundle.state.tenants),
            data_json=bundle.data_json,
        )
        try:
            await self._engine.offer(offered)
        except EngineRefused as refused:
            raise BundleRefused(refused.reason, refused.message) from refused

    async def ask_alone(
        self, tenant: TenantId, revision: str, item: bytes, *, budget_s: float
    ) -> EngineSaid | EngineFailed:
        deadline = asyncio.get_running_loop().time() + budget_s
        (answer,) = await self._engine.evaluate(tenant, revision, [item], deadline)
        return _told(answer)

    async def ask(
        self,
        tenant: TenantId,
        revision: str,
        item: bytes,
        *,
        source: tuple[str, str],
        budget_s: float,
    ) -> EngineSaid | EngineFailed:
        deadline = asyncio.get_running_loop().time() + budget_s
        return _told(await self._batcher.ask(tenant, revision, item, source, deadline))


def _tenants(tenants: Mapping[str, Tenant]) -> dict[str, TenantPolicies]:
    """The nil tenant holds the base policies alone: canaries are asked under it."""
    base = base_policies()
    known = {
        tenant_id: TenantPolicies(
            policies=(
                *base,
                *(
                    PolicyRef(key=policy.key, package=policy.package, state=policy.state)
                    for policy in tenant.policies
                ),
            )
        )
        for tenant_id, tenant in tenants.items()
    }
    return {**known, NIL_TENANT: TenantPolicies(policies=base)}


def _told(answer: EngineAnswer | EngineFailure) -> EngineSaid | EngineFailed:
    if isinstance(answer, EngineFailure):
        return EngineFailed(code=answer.code, engine=answer.engine, engine_us=answer.engine_us)
    decision = answer.decision
    return EngineSaid(
        result=Result(decision.result),
        reason_code=decision.reason_code,
        reason=decision.reason,
        codes=decision.codes,
        policies=decision.policies,
        obligations=b"[" + b",".join(decision.obligations) + b"]" if decision.obligations else b"",
        shadow=msgspec.json.encode(decision.shadow) if decision.shadow else b"",
        engine=answer.engine,
        engine_us=answer.engine_us,
    )
