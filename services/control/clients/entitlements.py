"""Plans, overrides and licences: questions to entitlements, and changes there.

What a change makes of a tenant is held before the call returns (features.py); following what others
change is entitlements_feed.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

from behavry.entitlements.v1 import entitlements_pb2 as ent
from behavry.entitlements.v1 import entitlements_pb2_grpc
from services.common.ids import TenantId
from services.common.rpc.client import Link
from services.common.rpc.errors import known
from services.common.telemetry.counters import Counters
from services.control.clients.entitlements_wire import (
    entitlements_of,
    key_of,
    license_of,
    number_of,
)
from services.control.features import Entitlements, Features, License

ENTITLEMENTS_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Who changes what, and why, as entitlements keeps it. `expected_revision` 0: whatever it is.

    The same `request_id` is done once.
    """

    actor: str
    reason: str
    request_id: str
    expected_revision: int = 0

    def wire(self) -> ent.Cause:
        return ent.Cause(
            actor=self.actor,
            reason=self.reason,
            request_id=self.request_id,
            expected_revision=self.expected_revision,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PastOverride:
    id: str
    feature: str
    effect: str
    starts_at_s: int
    ends_at_s: int | None
    actor: str
    reason: str
    created_at_s: int


@dataclass(slots=True)
class Plans:
    """Nothing of it is on the way of a request whose plan is checked."""

    link: Link
    features: Features
    counters: Counters

    async def catalogue(self) -> dict[str, Any]:
        """Plans and features that can be had; no tenant's data, so the last list will do."""
        if self.features.catalogue is None:
            self.features.catalogue = await self.ask_catalogue()
        return self.features.catalogue

    async def ask_catalogue(self) -> dict[str, Any]:
        answer = await self._call(self._reader().ListPlanFeatures, ent.ListPlanFeaturesRequest())
        return {
            "plans": [
                {
                    "key": plan.key,
                    "name": plan.name,
                    "rank": plan.rank,
                    "audience": plan.audience,
                    "features": [key_of(feature) for feature in plan.features],
                }
                for plan in answer.plans
            ],
            "features": [
                {
                    "key": feature.key,
                    "name": feature.name,
                    "description": feature.description,
                    "plan": feature.plan,
                }
                for feature in answer.features
            ],
        }

    async def history(
        self, tenant: TenantId, *, page_size: int, page_token: str
    ) -> tuple[list[PastOverride], str]:
        """Newest first, and the next page's token. Raises INVALID_PAGE_TOKEN."""
        request = ent.ListOverridesRequest(
            tenant_id=tenant, page_size=page_size, page_token=page_token
        )
        answer = await self._call(self._reader().ListOverrides, request)
        past = [
            PastOverride(
                id=one.id,
                feature=key_of(one.feature),
                effect=ent.Effect.Name(one.effect).removeprefix("EFFECT_").lower(),
                starts_at_s=one.starts_at,
                ends_at_s=one.ends_at or None,
                actor=one.actor,
                reason=one.reason,
                created_at_s=one.created_at,
            )
            for one in answer.overrides
        ]
        return past, answer.next_page_token

    async def put_tenant(self, tenant: TenantId, slug: str, request_id: str) -> None:
        """Makes the tenant known there, on the trial plan. Again changes nothing."""
        request = ent.PutTenantRequest(tenant_id=tenant, slug=slug, request_id=request_id)
        answer = await self._call(self._admin().PutTenant, request)
        self.features.update(entitlements_of(answer.entitlements))

    async def set_plan(
        self, tenant: TenantId, plan: str, expires_at_s: int | None, cause: Cause
    ) -> Entitlements:
        request = ent.SetPlanRequest(
            tenant_id=tenant, plan=plan, expires_at=expires_at_s or 0, cause=cause.wire()
        )
        answer = await self._call(self._admin().SetPlan, request)
        return self._held(answer.entitlements)

    async def set_overrides(
        self,
        tenant: TenantId,
        *,
        enable: Sequence[str],
        disable: Sequence[str],
        clear: Sequence[str],
        starts_at_s: int | None,
        ends_at_s: int | None,
        cause: Cause,
    ) -> Entitlements:
        """Raises OVERRIDE_EXCEEDS_LICENSE, OVERRIDE_CONFLICT, STALE_REVISION."""
        request = ent.SetOverridesRequest(
            tenant_id=tenant,
            enable=map(number_of, enable),
            disable=map(number_of, disable),
            clear=map(number_of, clear),
            starts_at=starts_at_s or 0,
            ends_at=ends_at_s or 0,
            cause=cause.wire(),
        )
        answer = await self._call(self._admin().SetOverrides, request)
        return self._held(answer.entitlements)

    async def activate(
        self, tenant: TenantId, token: str, cause: Cause, *, replace: bool
    ) -> tuple[Entitlements, License | None]:
        """The licence is None where the token was a list of revocations. Raises LICENSE_<code>."""
        request = ent.ActivateLicenseRequest(
            tenant_id=tenant, token=token, replace=replace, cause=cause.wire()
        )
        answer = await self._call(self._admin().ActivateLicense, request)
        activated = license_of(answer.activated) if answer.HasField("activated") else None
        return self._held(answer.entitlements), activated

    def _held(self, wire: ent.TenantEntitlements) -> Entitlements:
        held = entitlements_of(wire)
        self.features.update(held)
        return held

    def _reader(self) -> Any:
        return entitlements_pb2_grpc.EntitlementsReaderServiceStub(self.link.channel)

    def _admin(self) -> Any:
        return entitlements_pb2_grpc.EntitlementsAdminServiceStub(self.link.channel)

    async def _call(self, method: Any, request: Any) -> Any:
        self.counters.counter("entitlements.calls").value += 1
        try:
            return await method(request, timeout=ENTITLEMENTS_S, metadata=self.link.metadata())
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from failure
