"""The service's gRPC face: translates between the contract, what is known and what may be changed.

`actor` and `reason` are what control states; this service knows no user.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from behavry.entitlements.v1 import entitlements_pb2 as wire
from behavry.entitlements.v1 import entitlements_pb2_grpc
from services.common.errors import BehavryError
from services.common.ids import TenantId, is_uuid
from services.entitlements import license as licenses
from services.entitlements.catalog import FEATURE_CATALOG, MIXES_MODELS, PLANS, included
from services.entitlements.effective import Answer, Named, View
from services.entitlements.overrides import Effect
from services.entitlements.publishing import Board
from services.entitlements.rows import PastOverride
from services.entitlements.standing import State
from services.entitlements.store.tables import Store
from services.entitlements.watching import Alive, Synced, Told
from services.entitlements.writer import Cause, Change, Writer

MAX_PAGE: Final = 500
MAX_TEXT: Final = 500


class EntitlementsReader(entitlements_pb2_grpc.EntitlementsReaderServiceServicer):
    def __init__(self, *, board: Board, store: Store) -> None:
        self._board = board
        self._store = store

    async def GetEntitlements(
        self, request: wire.GetEntitlementsRequest, context: Any
    ) -> wire.GetEntitlementsResponse:
        return wire.GetEntitlementsResponse(entitlements=self._of(request.tenant_id))

    async def WatchEntitlements(
        self, request: wire.WatchEntitlementsRequest, context: Any
    ) -> AsyncIterator[wire.WatchEntitlementsResponse]:
        async for news in self._board.watch():
            match news:
                case list() if request.takes_lists and len(news) > 1:
                    told = wire.ToldTenants(tenants=[self._wire(one) for one in news])
                    yield wire.WatchEntitlementsResponse(tenants=told)
                case list():
                    for one in news:
                        yield wire.WatchEntitlementsResponse(tenant=self._wire(one))
                case Synced():
                    synced = wire.Synced(epoch=news.epoch, revision=news.revision)
                    yield wire.WatchEntitlementsResponse(synced=synced)
                case Alive():
                    yield wire.WatchEntitlementsResponse(alive=wire.Alive())

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
        held = self._of(request.tenant_id)
        return wire.CheckFeatureResponse(
            answer=_answer_to(held, request.feature), revision=held.revision, plan=held.plan
        )

    async def BatchCheckFeatures(
        self, request: wire.BatchCheckFeaturesRequest, context: Any
    ) -> wire.BatchCheckFeaturesResponse:
        if len(request.features) > len(FEATURE_CATALOG):
            raise BehavryError("INVALID_ARGUMENT", "more features than there are")
        held = self._of(request.tenant_id)
        return wire.BatchCheckFeaturesResponse(
            answers=[_answer_to(held, feature) for feature in request.features],
            revision=held.revision,
            plan=held.plan,
        )

    async def GetLicense(
        self, request: wire.GetLicenseRequest, context: Any
    ) -> wire.GetLicenseResponse:
        held = self._of(request.tenant_id)
        return wire.GetLicenseResponse(
            license=held.license if held.HasField("license") else None,
            scheduled=held.scheduled if held.HasField("scheduled") else None,
            installation_license=(
                held.installation_license if held.HasField("installation_license") else None
            ),
            revision=held.revision,
        )

    async def ListOverrides(
        self, request: wire.ListOverridesRequest, context: Any
    ) -> wire.ListOverridesResponse:
        tenant = _tenant(request.tenant_id)
        self._board.of(tenant)
        size = min(request.page_size or MAX_PAGE, MAX_PAGE)
        before = 0
        if request.page_token:
            if not (request.page_token.isascii() and request.page_token.isdigit()):
                raise BehavryError("INVALID_PAGE_TOKEN", "the page token is none of ours")
            before = int(request.page_token[:18])
        found = await self._store.history(tenant, before=before, size=size + 1)
        following = str(found[size - 1].row.seq) if len(found) > size else ""
        return wire.ListOverridesResponse(
            overrides=[_override(one) for one in found[:size]], next_page_token=following
        )

    def _of(self, tenant_id: str) -> wire.TenantEntitlements:
        return self._wire(self._board.of(_tenant(tenant_id)))

    def _wire(self, told: Told) -> wire.TenantEntitlements:
        suspect = self._board.beliefs.ceiling.clock_suspect
        return entitlements_of(told.tenant, told.revision, told.view, clock_suspect=suspect)


class EntitlementsAdmin(entitlements_pb2_grpc.EntitlementsAdminServiceServicer):
    def __init__(self, *, board: Board, writer: Writer) -> None:
        self._board = board
        self._writer = writer

    async def PutTenant(
        self, request: wire.PutTenantRequest, context: Any
    ) -> wire.PutTenantResponse:
        tenant = _tenant(request.tenant_id)
        if not request.slug:
            raise BehavryError("INVALID_ARGUMENT", "a tenant needs a slug")
        await self._writer.put_tenant(tenant, request.slug)
        await self._board.look(tenant)
        return wire.PutTenantResponse(entitlements=self._told(tenant))

    async def DeleteTenant(
        self, request: wire.DeleteTenantRequest, context: Any
    ) -> wire.DeleteTenantResponse:
        tenant = _tenant(request.tenant_id)
        await self._writer.delete_tenant(tenant, _cause(request.cause))
        await self._board.look(tenant)
        return wire.DeleteTenantResponse()

    async def SetPlan(self, request: wire.SetPlanRequest, context: Any) -> wire.SetPlanResponse:
        answer = await self._writer.set_plan(
            self._change(request), request.plan, request.expires_at or None
        )
        await self._board.look(TenantId(request.tenant_id))
        return wire.SetPlanResponse(entitlements=wire.TenantEntitlements.FromString(answer))

    async def SetOverrides(
        self, request: wire.SetOverridesRequest, context: Any
    ) -> wire.SetOverridesResponse:
        effects = [
            *((_key(feature), Effect.ENABLE) for feature in request.enable),
            *((_key(feature), Effect.DISABLE) for feature in request.disable),
            *((_key(feature), Effect.CLEAR) for feature in request.clear),
        ]
        answer = await self._writer.set_overrides(
            self._change(request),
            effects,
            starts_at_s=request.starts_at or None,
            ends_at_s=request.ends_at or None,
        )
        await self._board.look(TenantId(request.tenant_id))
        return wire.SetOverridesResponse(entitlements=wire.TenantEntitlements.FromString(answer))

    async def ActivateLicense(
        self, request: wire.ActivateLicenseRequest, context: Any
    ) -> wire.ActivateLicenseResponse:
        tenant = _tenant(request.tenant_id) if request.tenant_id else None
        taken = await self._writer.activate(
            tenant, request.token.strip(), _cause(request.cause), replacing=request.replace
        )
        await self._board.look(tenant)
        response = wire.ActivateLicenseResponse()
        if tenant is not None:
            response.entitlements.CopyFrom(self._told(tenant))
        if isinstance(taken, licenses.Revocations):
            response.revocations_serial = taken.serial
        else:
            response.activated.CopyFrom(_license_of(taken, self._writer.state_of(taken)))
        return response

    async def RemoveLicense(
        self, request: wire.RemoveLicenseRequest, context: Any
    ) -> wire.RemoveLicenseResponse:
        tenant = _tenant(request.tenant_id) if request.tenant_id else None
        await self._writer.remove(tenant, request.jti, _cause(request.cause))
        await self._board.look(tenant)
        response = wire.RemoveLicenseResponse()
        if tenant is not None:
            response.entitlements.CopyFrom(self._told(tenant))
        return response

    def _change(self, request: wire.SetPlanRequest | wire.SetOverridesRequest) -> Change:
        tenant = _tenant(request.tenant_id)
        asked = type(request)()
        asked.CopyFrom(request)  # type: ignore[arg-type]  # its own type
        asked.ClearField("cause")
        suspect = self._board.beliefs.ceiling.clock_suspect

        def encode(revision: int, view: View) -> bytes:
            answer = entitlements_of(tenant, revision, view, clock_suspect=suspect)
            return answer.SerializeToString(deterministic=True)

        return Change(
            tenant=tenant,
            cause=_cause(request.cause),
            asked=type(request).__name__.encode() + asked.SerializeToString(deterministic=True),
            encode=encode,
        )

    def _told(self, tenant: TenantId) -> wire.TenantEntitlements:
        told = self._board.of(tenant)
        suspect = self._board.beliefs.ceiling.clock_suspect
        return entitlements_of(tenant, told.revision, told.view, clock_suspect=suspect)


def entitlements_of(
    tenant: TenantId, revision: int, view: View | None, *, clock_suspect: bool
) -> wire.TenantEntitlements:
    if view is None:
        return wire.TenantEntitlements(tenant_id=tenant, revision=revision, deleted=True)
    return wire.TenantEntitlements(
        tenant_id=tenant,
        plan=view.plan,
        plan_expires_at=view.expires_at_s or 0,
        grace_ends_at=view.grace_ends_at_s or 0,
        revision=revision,
        status=view.state.value,
        features=_answers(view.answers, view.changes_at_s),
        limits=_limits(view.limits),
        license=_license(view.license),
        scheduled=_license(view.scheduled),
        installation_license=_license(view.ceiling),
        models=view.models,
        feature_overrides=dict(view.overrides),
        clock_suspect=clock_suspect,
        mixes_models=MIXES_MODELS[view.plan],
    )


#: By what is the same for many tenants. The answers are in it, so that what they are known by is
#: nobody else's meanwhile.
_MADE: Final[
    dict[tuple[int, tuple[int | None, ...]], tuple[tuple[Answer, ...], list[wire.FeatureAnswer]]]
] = {}
_MOST_MADE: Final = 4096


def _answers(
    answers: tuple[Answer, ...], changes_at_s: tuple[int | None, ...]
) -> list[wire.FeatureAnswer]:
    """`resolve` gives the same object for the same situation: few are made for many tenants."""
    key = (id(answers), changes_at_s)
    if (made := _MADE.get(key)) is None:
        if len(_MADE) >= _MOST_MADE:
            _MADE.clear()
        each = zip(answers, changes_at_s, strict=True)
        made = _MADE[key] = answers, [_answer(answer, at_s) for answer, at_s in each]
    return made[1]


def _answer(answer: Answer, changes_at_s: int | None) -> wire.FeatureAnswer:
    return wire.FeatureAnswer(
        feature=_number(answer.feature),
        allowed=answer.allowed,
        mode=wire.Mode.Value(f"MODE_{answer.mode.upper()}"),
        source=wire.Source.Value(f"SOURCE_{answer.source.value.upper()}"),
        required_plan=answer.required_plan,
        changes_at=changes_at_s or 0,
    )


def _limits(limits: licenses.Limits) -> wire.Limits:
    return wire.Limits(agents=limits.agents, tenants=limits.tenants, data_planes=limits.data_planes)


def _license(named: Named | None) -> wire.License | None:
    return None if named is None else _license_of(named.held.license, named.state)


def _license_of(license: licenses.License, state: State) -> wire.License:
    return wire.License(
        jti=license.jti,
        customer=license.customer,
        key_id=license.key_id,
        issued_at=license.issued_at_s,
        not_before=license.not_before_s,
        expires_at=license.expires_at_s,
        grace_ends_at=license.grace_ends_at_s,
        scope=license.scope,
        plan=license.plan,
        limits=_limits(license.limits),
        models=license.models,
        status=state.value,
        token_sha256=license.token_sha256,
    )


def _override(past: PastOverride) -> wire.Override:
    return wire.Override(
        id=past.id,
        feature=_number(past.row.feature),
        effect=wire.Effect.Value(f"EFFECT_{past.row.effect.value.upper()}"),
        starts_at=past.row.starts_at_s,
        ends_at=past.row.ends_at_s or 0,
        actor=past.actor,
        reason=past.reason,
        request_id=past.request_id,
        created_at=past.created_at_s,
    )


def _answer_to(
    held: wire.TenantEntitlements, feature: wire.Feature.ValueType
) -> wire.FeatureAnswer:
    for answer in held.features:
        if answer.feature == feature:
            return answer
    raise BehavryError("FEATURE_UNKNOWN", "no such feature")


def _number(key: str) -> wire.Feature.ValueType:
    return wire.Feature.Value(f"FEATURE_{key.upper()}")


def _key(feature: wire.Feature.ValueType) -> str:
    """Raises FEATURE_UNKNOWN."""
    if feature not in _KEYS:
        raise BehavryError("FEATURE_UNKNOWN", "no such feature")
    return _KEYS[feature]


_KEYS: Final = {_number(feature.key): feature.key for feature in FEATURE_CATALOG}


def _cause(cause: wire.Cause) -> Cause:
    if not cause.actor or not cause.request_id:
        raise BehavryError("INVALID_ARGUMENT", "a change names its actor and its request")
    if max(len(cause.actor), len(cause.reason), len(cause.request_id)) > MAX_TEXT:
        raise BehavryError("INVALID_ARGUMENT", "actor, reason and request id are short texts")
    return Cause(
        actor=cause.actor,
        reason=cause.reason,
        request_id=cause.request_id,
        expected_revision=cause.expected_revision,
    )


def _tenant(text: str) -> TenantId:
    if not is_uuid(text):
        raise BehavryError("TENANT_UNSET", "the call names no tenant")
    return TenantId(text)
