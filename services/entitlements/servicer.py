"""The service's gRPC face: translates between the contract and effective.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from behavry.entitlements.v1 import entitlements_pb2 as wire
from behavry.entitlements.v1 import entitlements_pb2_grpc
from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import TenantId, is_uuid
from services.entitlements import effective
from services.entitlements.catalog import FEATURE_CATALOG, PLANS, TRIAL_DAYS, included
from services.entitlements.store import Store

#: A change by time is told within 2 s of its instant.
LOOK_S: Final = 1.0
ALIVE_S: Final = 15.0


class EntitlementsReader(entitlements_pb2_grpc.EntitlementsReaderServiceServicer):
    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def GetEntitlements(
        self, request: wire.GetEntitlementsRequest, context: Any
    ) -> wire.GetEntitlementsResponse:
        entitlements = await self._of(_tenant(request.tenant_id))
        return wire.GetEntitlementsResponse(entitlements=entitlements)

    async def WatchEntitlements(
        self, request: wire.WatchEntitlementsRequest, context: Any
    ) -> AsyncIterator[wire.WatchEntitlementsResponse]:
        told: dict[TenantId, bytes] = {}
        quiet_s, synced = 0.0, False
        while True:
            # The revision is read first: a change in between is then told twice, never missed.
            installation = await self._store.installation()
            changed = False
            for tenant in await self._store.tenants():
                entitlements = await self._of(tenant)
                encoded = entitlements.SerializeToString(deterministic=True)
                if told.get(tenant) != encoded:
                    told[tenant], changed = encoded, True
                    yield wire.WatchEntitlementsResponse(tenant=entitlements)
            if changed or not synced:
                synced, quiet_s = True, 0.0
                yield wire.WatchEntitlementsResponse(
                    synced=wire.Synced(epoch=installation.epoch, revision=installation.revision)
                )
            elif quiet_s >= ALIVE_S:
                quiet_s = 0.0
                yield wire.WatchEntitlementsResponse(alive=wire.Alive())
            await asyncio.sleep(LOOK_S)
            quiet_s += LOOK_S

    async def ListPlanFeatures(
        self, request: wire.ListPlanFeaturesRequest, context: Any
    ) -> wire.ListPlanFeaturesResponse:
        plans = [
            wire.PlanInfo(
                key=plan.key,
                name=plan.name,
                rank=plan.rank,
                audience=plan.audience,
                features=[_number(one.key) for one in FEATURE_CATALOG if included(one, plan.key)],
            )
            for plan in PLANS
        ]
        features = [
            wire.FeatureInfo(
                feature=_number(feature.key),
                key=feature.key,
                name=feature.name,
                description=feature.description,
                plan=feature.plan,
            )
            for feature in FEATURE_CATALOG
        ]
        return wire.ListPlanFeaturesResponse(plans=plans, features=features)

    async def CheckFeature(
        self, request: wire.CheckFeatureRequest, context: Any
    ) -> wire.CheckFeatureResponse:
        held = await self._of(_tenant(request.tenant_id))
        return wire.CheckFeatureResponse(
            answer=_answer_to(held, request.feature), revision=held.revision
        )

    async def BatchCheckFeatures(
        self, request: wire.BatchCheckFeaturesRequest, context: Any
    ) -> wire.BatchCheckFeaturesResponse:
        if len(request.features) > len(FEATURE_CATALOG):
            raise BehavryError("INVALID_ARGUMENT", "more features than there are")
        held = await self._of(_tenant(request.tenant_id))
        return wire.BatchCheckFeaturesResponse(
            answers=[_answer_to(held, feature) for feature in request.features],
            revision=held.revision,
        )

    async def GetLicense(
        self, request: wire.GetLicenseRequest, context: Any
    ) -> wire.GetLicenseResponse:
        held = await self._of(_tenant(request.tenant_id))
        return wire.GetLicenseResponse(revision=held.revision)

    async def ListOverrides(
        self, request: wire.ListOverridesRequest, context: Any
    ) -> wire.ListOverridesResponse:
        await self._of(_tenant(request.tenant_id))
        return wire.ListOverridesResponse()

    async def _of(self, tenant: TenantId) -> wire.TenantEntitlements:
        plan = await self._store.plan(tenant)
        return entitlements_of(tenant, plan, self._clock.now_ns() // 1_000_000_000)


class EntitlementsAdmin(entitlements_pb2_grpc.EntitlementsAdminServiceServicer):
    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def PutTenant(
        self, request: wire.PutTenantRequest, context: Any
    ) -> wire.PutTenantResponse:
        tenant = _tenant(request.tenant_id)
        if not request.slug:
            raise BehavryError("INVALID_ARGUMENT", "a tenant needs a slug")
        now_s = self._clock.now_ns() // 1_000_000_000
        await self._store.put(
            tenant,
            slug=request.slug,
            plan="trial",
            expires_at_s=now_s + TRIAL_DAYS * 86_400,
            now_s=now_s,
        )
        plan = await self._store.plan(tenant)
        return wire.PutTenantResponse(entitlements=entitlements_of(tenant, plan, now_s))

    async def DeleteTenant(
        self, request: wire.DeleteTenantRequest, context: Any
    ) -> wire.DeleteTenantResponse:
        raise _not_yet()

    async def SetPlan(self, request: wire.SetPlanRequest, context: Any) -> wire.SetPlanResponse:
        raise _not_yet()

    async def SetOverrides(
        self, request: wire.SetOverridesRequest, context: Any
    ) -> wire.SetOverridesResponse:
        raise _not_yet()

    async def ActivateLicense(
        self, request: wire.ActivateLicenseRequest, context: Any
    ) -> wire.ActivateLicenseResponse:
        raise _not_yet()

    async def RemoveLicense(
        self, request: wire.RemoveLicenseRequest, context: Any
    ) -> wire.RemoveLicenseResponse:
        raise _not_yet()


def _not_yet() -> BehavryError:
    return BehavryError("NOT_AVAILABLE_HERE", "this build changes no plan")


def _answer_to(
    held: wire.TenantEntitlements, feature: wire.Feature.ValueType
) -> wire.FeatureAnswer:
    for answer in held.features:
        if answer.feature == feature:
            return answer
    raise BehavryError("FEATURE_UNKNOWN", "no such feature")


def entitlements_of(
    tenant: TenantId, plan: effective.TenantPlan, now_s: int
) -> wire.TenantEntitlements:
    return wire.TenantEntitlements(
        tenant_id=tenant,
        plan=plan.plan,
        plan_expires_at=plan.expires_at_s or 0,
        revision=plan.revision,
        status=effective.status(plan, now_s),
        features=[
            wire.FeatureAnswer(
                feature=_number(answer.feature),
                allowed=answer.allowed,
                mode=wire.Mode.Value(f"MODE_{answer.mode.upper()}"),
                source=wire.SOURCE_PLAN,
                required_plan=answer.required_plan,
            )
            for answer in effective.resolve(plan, now_s)
        ],
    )


def _number(key: str) -> wire.Feature.ValueType:
    return wire.Feature.Value(f"FEATURE_{key.upper()}")


def _tenant(text: str) -> TenantId:
    if not is_uuid(text):
        raise BehavryError("TENANT_UNSET", "the call names no tenant")
    return TenantId(text)
