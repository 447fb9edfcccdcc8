"""Control's calls to other services, as our own types: audit's reader and entitlements.

Every unary call carries a deadline. An error leaves here as the BehavryError that the other side
raised, or as DEPENDENCY_UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from behavry.audit.v1 import audit_pb2, audit_pb2_grpc
from behavry.entitlements.v1 import entitlements_pb2 as ent
from behavry.entitlements.v1 import entitlements_pb2_grpc
from services.common.ids import TenantId
from services.common.rpc.client import Link
from services.common.rpc.errors import known
from services.common.telemetry.counters import Counters
from services.control.features import Entitlements, FeatureAnswer, Features

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


@dataclass(slots=True)
class PlanCatalogue:
    """Plans and features that can be had; no tenant's data, so it is asked for once per start."""

    link: Link
    counters: Counters
    _catalogue: dict[str, Any] | None = field(default=None, init=False)

    async def read(self) -> dict[str, Any]:
        if self._catalogue is None:
            self._catalogue = await self._ask()
        return self._catalogue

    async def _ask(self) -> dict[str, Any]:
        self.counters.counter("entitlements.calls").value += 1
        stub = entitlements_pb2_grpc.EntitlementsReaderServiceStub(self.link.channel)
        try:
            answer = await stub.ListPlanFeatures(
                ent.ListPlanFeaturesRequest(),
                timeout=ENTITLEMENTS_S,
                metadata=self.link.metadata(),
            )
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from failure
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


@dataclass(slots=True)
class EntitlementsFeed:
    """Keeps Features fed, for as long as it runs; away or silent, it dials again."""

    link: Link
    features: Features
    counters: Counters

    async def put_tenant(self, tenant: TenantId, slug: str, request_id: str) -> None:
        """Makes the tenant known there, on the trial plan. Again changes nothing."""
        self.counters.counter("entitlements.calls").value += 1
        stub = entitlements_pb2_grpc.EntitlementsAdminServiceStub(self.link.channel)
        request = ent.PutTenantRequest(tenant_id=tenant, slug=slug, request_id=request_id)
        try:
            answer = await stub.PutTenant(
                request, timeout=ENTITLEMENTS_S, metadata=self.link.metadata()
            )
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from failure
        self.features.update(entitlements_of(answer.entitlements))

    async def watch(self) -> None:
        """One stream until it ends or is silent. Raises DEPENDENCY_UNAVAILABLE and its kin."""
        stub = entitlements_pb2_grpc.EntitlementsReaderServiceStub(self.link.channel)
        stream = stub.WatchEntitlements(
            ent.WatchEntitlementsRequest(), metadata=self.link.metadata()
        )
        try:
            while True:
                async with asyncio.timeout(WATCH_SILENCE_S):
                    message = await stream.read()
                if not isinstance(message, ent.WatchEntitlementsResponse):  # the stream's end
                    return
                self.features.heard()
                if message.HasField("tenant"):
                    self.features.update(entitlements_of(message.tenant))
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from failure
        finally:
            stream.cancel()


def entitlements_of(tenant: ent.TenantEntitlements) -> Entitlements:
    return Entitlements(
        tenant=TenantId(tenant.tenant_id),
        plan=tenant.plan,
        status=tenant.status,
        plan_expires_at_s=tenant.plan_expires_at or None,
        revision=tenant.revision,
        features=tuple(
            FeatureAnswer(
                key=_key(answer.feature),
                allowed=answer.allowed,
                mode=_mode(answer.mode),
                source=ent.Source.Name(answer.source).removeprefix("SOURCE_").lower(),
                required_plan=answer.required_plan,
            )
            for answer in tenant.features
        ),
    )


def _key(feature: ent.Feature.ValueType) -> str:
    return ent.Feature.Name(feature).removeprefix("FEATURE_").lower()


def _mode(mode: ent.Mode.ValueType) -> str:
    """An unspecified mode enforces the configuration present, as frozen does."""
    name = ent.Mode.Name(mode).removeprefix("MODE_").lower()
    return "frozen" if name == "unspecified" else name
