"""What audit holds of a tenant, asked for page by page, and verified there."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from behavry.audit.v1 import audit_pb2, audit_pb2_grpc
from services.common.ids import TenantId
from services.common.rpc.client import Link
from services.common.rpc.errors import known

READ_S: Final = 5.0

T = TypeVar("T")


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
        answer = await self._ask(self._stub.ListTraces, request)
        return [_trace(trace) for trace in answer.traces], answer.next_page_token

    async def trace(
        self, tenant: TenantId, id: str
    ) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """(events in chain order, the decided envelope while it exists). Raises NOT_FOUND."""
        request = audit_pb2.GetTraceRequest(tenant_id=tenant, id=id)
        answer = await self._ask(self._stub.GetTrace, request)
        envelope = json.loads(answer.input) if answer.input else None
        return [_event(event) for event in answer.events], envelope

    async def heads(self, tenant: TenantId) -> list[dict[str, Any]]:
        request = audit_pb2.ListHeadsRequest(tenant_id=tenant)
        answer = await self._ask(self._stub.ListHeads, request)
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
        answer = await self._ask(self._stub.StartVerify, request)
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

    async def _ask(self, method: Callable[..., Awaitable[T]], request: Message) -> T:
        try:
            return await method(request, timeout=READ_S, metadata=self._link.metadata())
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
