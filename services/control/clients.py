"""Control's calls to other services, as our own types: audit's reader and entitlements.

Every unary call carries a deadline. An error leaves here as the BehavryError that the other side
raised, or as DEPENDENCY_UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

from behavry.audit.v1 import audit_pb2, audit_pb2_grpc
from behavry.entitlements.v1 import entitlements_pb2 as ent
from behavry.entitlements.v1 import entitlements_pb2_grpc
from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.common.rpc.client import Link
from services.common.rpc.errors import known
from services.common.telemetry.counters import Counters
from services.control.features import Entitlements, FeatureAnswer, Features, License, Limits

READ_S: Final = 5.0
ENTITLEMENTS_S: Final = 0.5
#: Silence of the watch after which it is opened anew (Alive comes every 15 s).
WATCH_SILENCE_S: Final = 45.0
RETRY_S: Final = 0.5


# --- audit --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyState:
    """How far a verification is; `verdict` is empty until it is done."""

    rows_done: int
    rows_total: int
    chain: str
    done: bool
    verdict: str
    assurance: str
    chains: int
    why: str
    findings: tuple[dict[str, Any], ...]


class AuditReader:
    def __init__(self, link: Link) -> None:
        self._link = link
        self._stub = audit_pb2_grpc.AuditReaderServiceStub(link.channel)

    async def traces(
        self, tenant: TenantId, *, filter: str, page_size: int, page_token: str
    ) -> tuple[list[dict[str, Any]], str]:
        request = audit_pb2.ListTracesRequest(
            tenant_id=tenant, filter=filter, page_size=page_size, page_token=page_token
        )
        try:
            answer = await self._stub.ListTraces(
                request, timeout=READ_S, metadata=self._link.metadata()
            )
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from failure
        return [_trace(trace) for trace in answer.traces], answer.next_page_token

    async def trace(
        self, tenant: TenantId, id: str
    ) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """(events in chain order, the decided envelope while it exists). Raises NOT_FOUND."""
        request = audit_pb2.GetTraceRequest(tenant_id=tenant, id=id)
        try:
            answer = await self._stub.GetTrace(
                request, timeout=READ_S, metadata=self._link.metadata()
            )
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from failure
        envelope = json.loads(answer.input) if answer.input else None
        return [_event(event) for event in answer.events], envelope

    async def heads(self, tenant: TenantId) -> list[dict[str, Any]]:
        request = audit_pb2.ListHeadsRequest(tenant_id=tenant)
        try:
            answer = await self._stub.ListHeads(
                request, timeout=READ_S, metadata=self._link.metadata()
            )
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from failure
        return [
            {
                "chain": head.chain,
                "incarnation": head.incarnation,
                "position": head.seq,
                "hash": head.event_hash.hex(),
            }
            for head in answer.heads
        ]

    async def start_verify(self, tenant: TenantId, chain: str) -> str:
        request = audit_pb2.StartVerifyRequest(tenant_id=tenant, chain=chain)
        try:
            answer = await self._stub.StartVerify(
                request, timeout=READ_S, metadata=self._link.metadata()
            )
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from failure
        return answer.verify_id

    async def watch_verify(self, tenant: TenantId, verify_id: str) -> AsyncGenerator[VerifyState]:
        """States until the last one, which is done."""
        request = audit_pb2.WatchVerifyRequest(tenant_id=tenant, verify_id=verify_id)
        try:
            async for state in self._stub.WatchVerify(request, metadata=self._link.metadata()):
                yield VerifyState(
                    rows_done=state.rows_done,
                    rows_total=state.rows_total,
                    chain=state.chain,
                    done=state.done,
                    verdict=state.verdict,
                    assurance=state.assurance,
                    chains=state.chains,
                    why=state.why,
                    findings=tuple(
                        {"chain": f.chain, "position": f.seq, "code": f.code}
                        for f in state.findings
                    ),
                )
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from failure


def _trace(trace: audit_pb2.Trace) -> dict[str, Any]:
    """A decision and its outcome, with what a list shows in front."""
    decision = _event(trace.decision)
    outcome = _event(trace.outcome) if trace.HasField("outcome") else None
    record = decision["record"]
    return {
        "id": decision["id"],
        "type": record.get("type"),
        "at": record.get("at"),
        "agent": record.get("actor"),
        "server": record.get("server"),
        "tool": record.get("tool"),
        "action": record.get("action"),
        "verdict": record.get("verdict"),
        "reason": record.get("reason"),
        "reasons": record.get("reasons", []),
        "policies": record.get("policies", []),
        "status": outcome["record"].get("status") if outcome else None,
        "decision": decision,
        "outcome": outcome,
    }


def _event(event: audit_pb2.Event) -> dict[str, Any]:
    return {
        "id": event.event_id,
        "chain": event.chain,
        "incarnation": event.incarnation,
        "position": event.seq,
        "committed_at": event.committed_at_us,
        "previous_hash": event.previous_hash.hex(),
        "hash": event.event_hash.hex(),
        "record": json.loads(event.body),
    }


# --- entitlements -------------------------------------------------------------------------------


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
    """Questions to entitlements and changes there. What a change makes of a tenant is held before
    the call returns. Nothing of it is on the way of a request whose plan is checked.
    """

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
                    "features": [_key(feature) for feature in plan.features],
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
                feature=_key(one.feature),
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
            enable=map(_number, enable),
            disable=map(_number, disable),
            clear=map(_number, clear),
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
        activated = _license(answer.activated) if answer.HasField("activated") else None
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


@dataclass(slots=True)
class EntitlementsFeed:
    """Keeps Features fed. Each call is one stream; away or silent, dial again."""

    link: Link
    features: Features
    plans: Plans

    async def watch(self) -> None:
        """Until the stream ends or is silent. Raises DEPENDENCY_UNAVAILABLE and its kin."""
        await self._follow(all_the_way=True)

    async def reread(self) -> None:
        """Everything once more: what a stream lost would else be lost for ever."""
        await self._follow(all_the_way=False)

    async def _follow(self, *, all_the_way: bool) -> None:
        stub = entitlements_pb2_grpc.EntitlementsReaderServiceStub(self.link.channel)
        stream = stub.WatchEntitlements(
            ent.WatchEntitlementsRequest(), metadata=self.link.metadata()
        )
        #: What is told before Synced counts together with it, since only that names the epoch.
        listed: dict[TenantId, Entitlements] | None = {}
        try:
            while True:
                async with asyncio.timeout(WATCH_SILENCE_S):
                    message = await stream.read()
                if not isinstance(message, ent.WatchEntitlementsResponse):  # the stream's end
                    return
                if message.HasField("synced"):
                    with contextlib.suppress(BehavryError):  # names are not worth a stream
                        self.features.catalogue = await self.plans.ask_catalogue()
                    self.features.sync(message.synced.epoch, message.synced.revision, listed or {})
                    listed = None
                    if not all_the_way:
                        return
                elif message.HasField("tenant"):
                    self._told(message.tenant, listed)
                elif listed is None:
                    self.features.heard()
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from failure
        finally:
            stream.cancel()

    def _told(
        self, tenant: ent.TenantEntitlements, listed: dict[TenantId, Entitlements] | None
    ) -> None:
        named = TenantId(tenant.tenant_id)
        if listed is None and tenant.deleted:
            self.features.forget(named, tenant.revision)
        elif listed is None:
            self.features.update(entitlements_of(tenant))
        elif not tenant.deleted:
            held, before = entitlements_of(tenant), self.features.of(named)
            # The same is held once, however often all is read again.
            listed[named] = before if before is not None and before == held else held


def entitlements_of(tenant: ent.TenantEntitlements) -> Entitlements:
    has_ceiling = tenant.HasField("installation_license")
    ceiling = _license(tenant.installation_license) if has_ceiling else None
    return Entitlements(
        tenant=TenantId(tenant.tenant_id),
        plan=sys.intern(tenant.plan),
        status=sys.intern(tenant.status),
        plan_expires_at_s=tenant.plan_expires_at or None,
        revision=tenant.revision,
        features=tuple(
            FeatureAnswer(
                key=_key(answer.feature),
                allowed=answer.allowed,
                mode=_mode(answer.mode),
                source=sys.intern(ent.Source.Name(answer.source).removeprefix("SOURCE_")),
                required_plan=sys.intern(answer.required_plan),
                changes_at_s=answer.changes_at or None,
            )
            for answer in tenant.features
        ),
        grace_ends_at_s=tenant.grace_ends_at or None,
        limits=_limits(tenant.limits),
        license=_license(tenant.license) if tenant.HasField("license") else ceiling,
        scheduled=_license(tenant.scheduled) if tenant.HasField("scheduled") else None,
        overrides=dict(tenant.feature_overrides),
        ceiling=ceiling,
    )


def _limits(limits: ent.Limits) -> Limits:
    return Limits(
        agents=limits.agents if limits.HasField("agents") else None,
        tenants=limits.tenants if limits.HasField("tenants") else None,
        data_planes=limits.data_planes if limits.HasField("data_planes") else None,
    )


def _license(license: ent.License) -> License:
    return License(
        jti=license.jti,
        customer=license.customer,
        key_id=license.key_id,
        scope=license.scope,
        plan=license.plan,
        status=license.status,
        issued_at_s=license.issued_at,
        not_before_s=license.not_before,
        expires_at_s=license.expires_at,
        grace_ends_at_s=license.grace_ends_at,
    )


def _key(feature: ent.Feature.ValueType) -> str:
    return sys.intern(ent.Feature.Name(feature).removeprefix("FEATURE_").lower())


def _number(key: str) -> ent.Feature.ValueType:
    return ent.Feature.Value(f"FEATURE_{key.upper()}")


def _mode(mode: ent.Mode.ValueType) -> str:
    """An unspecified mode enforces the configuration present, as frozen does."""
    name = sys.intern(ent.Mode.Name(mode).removeprefix("MODE_").lower())
    return "frozen" if name == "unspecified" else name
