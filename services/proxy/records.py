"""What the proxy records (audit.md 1.2), as fields of `behavry.record/1`. Pure.

Decides which facts of a call go into the chain. Payloads never do: the bundle says
`metadata_only`, so arguments and results leave a digest and a size.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from services.common.clock import Clock, micros
from services.common.ids import NIL_TENANT, EventId, RequestId, TenantId
from services.common.outbox.parts import Part, make_part
from services.common.outbox.record import Record
from services.proxy.calls import NOTHING, Caller, Decision, Resource, Result, Visit

PAYLOAD: Final = {"mode": "metadata_only", "state": "not_stored"}
_KEPT_TEXT: Final = 1024
_VERDICTS: Final = {"call.intent": "allow", "call.denied": "deny", "call.held": "intercept"}


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What every record of one call says alike."""

    visit: Visit
    id: RequestId
    method: str
    tool: str = ""
    resource: Resource = NOTHING
    schema_hash: str | None = None
    arguments_digest: str = ""
    arguments_size: int = 0
    #: Digest and size of what the agent says beside what it asks for: its `_meta`, its headers.
    beside: tuple[tuple[str, str, int], ...] = ()
    trace_id: str | None = None
    #: Not recorded: what the tool server is told of the trace.
    traceparent: str = ""


def decided(
    subject: Subject, decision: Decision, *, type: str, reason: str, clock: Clock
) -> tuple[Record, tuple[Part, ...]]:
    """`call.intent`, `call.denied` or `call.held`, with the decided envelope as its purgeable
    part.
    """
    visit = subject.visit
    parts = (make_part("input", decision.envelope, mode="input"),) if decision.envelope else ()
    revision, escalation = decision.revision, decision.escalation
    fields: dict[str, Any] = {
        **_call(subject),
        "decision": subject.id,
        "action": decision.action or None,
        "category": decision.category or None,
        "resource": subject.resource.value[:_KEPT_TEXT] or None,
        "resource_kind": subject.resource.kind,
        "verdict": _VERDICTS[type],
        "reason": reason,
        "approval": {"escalation": escalation.id, "codes": list(escalation.codes)}
        if escalation is not None
        else None,
        "reasons": list(decision.codes) or None,
        "policies": list(decision.policies) or None,
        "shadow": _plain(decision.shadow) or None,
        "revision": {
            "bundle_serial": revision.bundle_serial,
            "bundle_digest": revision.bundle_digest or None,
            "policy_revision": revision.policy_revision or None,
            "policy_state": revision.policy_state or None,
            "bundle_age_s": revision.bundle_age_s,
        },
        "engine": {"name": decision.engine, "us": decision.engine_us} if decision.engine else None,
        "schema_hash": subject.schema_hash,
        "arguments": {
            "digest": subject.arguments_digest,
            "size": subject.arguments_size,
            **PAYLOAD,
        },
        "input": {"commit": parts[0].commit, "size": len(decision.envelope)} if parts else None,
    }
    if escalation is None:  # what a person approved runs without it
        fields |= {name: {"digest": digest, "size": size} for name, digest, size in subject.beside}
    return _record(type, visit, fields, clock, id=EventId(subject.id)), parts


def outcome(
    subject: Subject,
    *,
    status: str,
    clock: Clock,
    latency_us: dict[str, int],
    error: str | None = None,
    upstream_status: int | None = None,
    result_digest: str | None = None,
    result_size: int = 0,
) -> Record:
    fields: dict[str, Any] = {
        **_call(subject),
        "decision": subject.id,
        "status": status,
        "error": error,
        "upstream_status": upstream_status,
        "result": {"digest": result_digest, "size": result_size, **PAYLOAD}
        if result_digest
        else None,
        "latency_us": latency_us,
    }
    return _record("call.outcome", subject.visit, fields, clock)


def completed(
    subject: Subject,
    *,
    status: str,
    error: str | None,
    upstream_status: int | None,
    result_digest: str | None,
    result_size: int,
    took_us: int,
    clock: Clock,
) -> Record:
    """The outcome of what needs no decision, so that there is no intent that it ends."""
    fields: dict[str, Any] = {
        **_call(subject),
        "status": status,
        "error": error,
        "upstream_status": upstream_status,
        "arguments": {
            "digest": subject.arguments_digest,
            "size": subject.arguments_size,
            **PAYLOAD,
        },
        "result": {"digest": result_digest, "size": result_size, **PAYLOAD}
        if result_digest
        else None,
        "latency_us": {"upstream": took_us, "total": took_us},
    }
    return _record("call.outcome", subject.visit, fields, clock)


def rejected(visit: Visit, *, method: str, code: int, reason: str, clock: Clock) -> Record:
    """An authenticated request that never became a question."""
    fields = {
        **_common(visit),
        "method": method[:128] or None,
        "verdict": "deny",
        "reason": reason,
        "error": str(code),
    }
    return _record("call.rejected", visit, fields, clock)


def turned_away(
    caller: Caller, *, known_tenant: bool, server: str, client_ip: str, clock: Clock
) -> Record:
    """An authenticated request for a server that does not exist for this agent."""
    return Record(
        type="call.rejected",
        tenant=caller.tenant if known_tenant else NIL_TENANT,
        chain=f"agent:{caller.agent}" if known_tenant else "system",
        at_us=micros(clock.now_ns()),
        fields={
            "actor": {"kind": "agent", "id": caller.agent, "session": caller.session},
            "client_ip": client_ip or None,
            "server": server[:40],
            "verdict": "deny",
            "reason": "unknown_server",
        },
    )


def served(visit: Visit, *, visible: int, offered: int, digest: str, clock: Clock) -> Record:
    """The agent's view of a server changed."""
    fields = {
        **_common(visit),
        "method": "tools/list",
        "verdict": "allow",
        "resource": f"{visible} of {offered} tools",
        "resource_kind": "other",
        "schema_hash": digest,
    }
    return _record("catalog.served", visit, fields, clock)


def task_changed(visit: Visit, *, task_id: str, tool: str, status: str, clock: Clock) -> Record:
    """A tool server's task is further than when it was last asked for. `parent`: what let its call
    run.
    """
    fields = {
        **_common(visit),
        "parent": task_id,
        "method": "tasks/get",
        "tool": tool[:128],
        "status": status,
    }
    return _record("call.task", visit, fields, clock)


def auth_failed(
    *,
    tenant: TenantId | None,
    agent: str,
    reason: str,
    server: str,
    client_ip: str,
    count: int,
    clock: Clock,
) -> Record:
    """In the tenant's chain where the credential names one that exists, else in the system's."""
    return Record(
        type="auth.failed",
        tenant=tenant or NIL_TENANT,
        chain="tenant" if tenant else "system",
        at_us=micros(clock.now_ns()),
        fields={
            "actor": {"kind": "agent", "id": agent or None},
            "server": server or None,
            "client_ip": client_ip,
            "verdict": "deny",
            "reason": reason,
            "count": count if count > 1 else None,
        },
    )


def _common(visit: Visit) -> dict[str, Any]:
    caller = visit.caller
    return {
        "actor": {
            "kind": "agent",
            "id": caller.agent,
            "name": visit.agent.name,
            "class": visit.agent.cls,
            "session": caller.session,
            "identity": "grace" if caller.graced else "token",
        },
        "requester": {"id": visit.requester_id, "channel": "header", "verified": False}
        if visit.requester_id
        else None,
        "client_ip": visit.client_ip,
        "server": visit.slug,
    }


def _call(subject: Subject) -> dict[str, Any]:
    fields = _common(subject.visit)
    fields["method"] = subject.method
    fields["tool"] = subject.tool or None
    fields["trace_id"] = subject.trace_id
    return fields


def _record(
    type: str, visit: Visit, fields: dict[str, Any], clock: Clock, *, id: EventId | None = None
) -> Record:
    return Record(
        type=type,
        tenant=visit.caller.tenant,
        chain=f"agent:{visit.caller.agent}",
        at_us=micros(clock.now_ns()),
        fields=fields,
        id=id,
    )


def _plain(shadow: tuple[Any, ...]) -> list[dict[str, str]]:
    """Shadow results as the record's profile takes them."""
    return [
        {
            "policy": str(one.get("policy", "")),
            "result": str(one.get("result", "")),
            "code": str(one.get("code", "")),
        }
        for one in shadow
        if isinstance(one, dict)
    ]


__all__ = ["Result", "Subject", "auth_failed", "decided", "outcome", "rejected", "served"]
