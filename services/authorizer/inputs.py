"""Fills `behavry.input/1` from an ask and the active bundle. Pure.

What has no producer in this build is null, `none`, zero or empty; a policy that reads it is
refused when it is saved.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, TypeVar

import msgspec

from services.authorizer import envelope
from services.authorizer.asks import Ask, Caller
from services.authorizer.decision import Admitted
from services.authorizer.plane_state import Agent, Tenant
from services.authorizer.staleness import Freshness
from services.common.clock import rfc3339

Section = TypeVar("Section", bound=msgspec.Struct)

_NO_COUNTERS: Final = envelope.Counters(
    deletes=0, recipients=0, items=0, bytes_out=0, hosts=0, calls_minute=0
)
_NO_RISK: Final = envelope.Risk(score=0, tier="low", age_s=0, flags=())


def build(
    ask: Ask,
    caller: Caller,
    tenant: Tenant,
    admitted: Admitted,
    *,
    age: Freshness,
    now_ns: int,
) -> envelope.Envelope:
    """The decided input, arguments included. Raises EnvelopeInvalid where the bundle's own values
    do not fit the schema.
    """
    asked = ask.request
    second = now_ns // 1_000_000_000
    hour, weekday = _hour_and_weekday(second // 3600)
    return envelope.Envelope(
        schema=envelope.SCHEMA,
        replay=False,
        tenant=_tenant(caller.tenant, tenant.slug),
        request=envelope.Request(
            id=asked.id,
            kind=asked.kind,
            method=asked.method,
            server=asked.server,
            domain=admitted.server.domain,
            tool=asked.tool,
            action=admitted.action,  # type: ignore[arg-type]  # the bundle's literal, checked there
            category=admitted.category,
            resource=asked.resource,
            resource_kind=asked.resource_kind,
            arguments=msgspec.Raw(ask.arguments),
            arguments_omitted=asked.arguments_omitted,
            arguments_digest=asked.arguments_digest,
            schema_hash=asked.schema_hash,
            schema_pinned=admitted.pinned,
        ),
        catalog=None,
        features=ask.features,
        findings=ask.findings,
        context=envelope.Context(
            now=rfc3339(now_ns),
            now_ns=now_ns,
            hour=hour,
            weekday=weekday,
            transport=caller.transport,
            policy_state=age.state,
            bundle_age_s=age.age_s,
            session_calls=0,
            session_age_s=max(0, second - caller.issued_at_s) if caller.issued_at_s else 0,
            session_flagged=False,
            session_tags=(),
            volume_ratio=None,
            z_max=None,
            baseline="none",
            trust_domain=admitted.server.trust,
            counters_state=admitted.counters,
            counters=_NO_COUNTERS,
        ),
        agent=_agent(
            caller.agent,
            admitted.agent,
            admitted.permissions,
            critical=tenant.critical(admitted.agent),
            restriction=admitted.restriction,
        ),
        requester=_requester(caller),
        workflow=None,
        delegation=None,
        risk=_NO_RISK,
    )


@lru_cache(maxsize=1024)
def _tenant(tenant_id: str, slug: str) -> envelope.Tenant:
    return _checked(envelope.Tenant(id=tenant_id, slug=slug), "tenant")


@lru_cache(maxsize=8192)
def _agent(
    agent_id: str, agent: Agent, permissions: tuple[str, ...], *, critical: bool, restriction: str
) -> envelope.Agent:
    """Checked against the schema once per agent and bundle; calls reuse it."""
    section = envelope.Agent(
        id=agent_id,
        name=agent.name,
        class_=agent.cls,
        critical=critical,
        type=agent.type,
        status=agent.status,
        roles=agent.roles,
        permissions=permissions,
        tags=agent.tags,
        restriction=envelope.Restriction(profile=restriction) if restriction else None,
        budget="unknown",
    )
    return _checked(section, "agent")


@lru_cache(maxsize=4)
def _hour_and_weekday(hours: int) -> tuple[int, int]:
    moment = datetime.fromtimestamp(hours * 3600, UTC)
    return moment.hour, moment.isoweekday()


def _requester(caller: Caller) -> envelope.Requester | None:
    if not caller.requester_id:
        return None
    requester = envelope.Requester(
        id=caller.requester_id, channel=caller.requester_channel, verified=False
    )
    return _checked(requester, "requester")


def _checked(section: Section, name: str) -> Section:
    try:
        return msgspec.json.decode(msgspec.json.encode(section), type=type(section))
    except msgspec.DecodeError:
        raise envelope.EnvelopeInvalid(name) from None
