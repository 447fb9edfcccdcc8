"""What planes tell of their escalations, brought within bounds that rows can hold. Pure.

Texts come from agents and tools: they are cut to a length and freed of NUL, nothing else; who shows
them makes them safe to look at. What has no usable identity, binding or clock is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from services.common.ids import AgentId, TenantId, is_uuid
from services.control.escalations import MAX_QUORUM, MAX_USES, STATES

MAX_TEXT: Final = 8_192
MAX_FEATURES_BYTES: Final = 64 << 10
_MAX_ENTRIES: Final = 64
_MAX_BINDING: Final = 256
_MAX_EXECUTE_S: Final = 86_400
_MIN_EXECUTE_S: Final = 60
_MAX_VERSION: Final = (1 << 63) - 1
#: The year 2200: no clock of ours says more.
_LAST_MS: Final = 7_258_118_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A call that waits for a person."""

    id: str
    tenant: TenantId
    agent: AgentId
    agent_name: str
    agent_class: str
    requester: str
    requester_verified: bool
    server: str
    tool: str
    method: str
    action: str
    category: str
    resource: str
    resource_kind: str
    codes: list[str]
    reason: str
    policies: list[str]
    features: bytes
    finding_tags: list[str]
    binding: str
    policy_revision: str
    quorum: int
    tier: str
    opened_at_ms: int
    decide_by_ms: int
    execute_for_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What became of an escalation in the plane."""

    id: str
    tenant: TenantId
    state: str
    version: int
    uses_left: int


def opened(told: Opened) -> Opened | None:
    """As it can be kept; None: it cannot."""
    ids = (told.id, told.tenant, told.agent)
    clocks = (told.opened_at_ms, told.decide_by_ms)
    if not all(is_uuid(named) for named in ids) or not all(0 < ms <= _LAST_MS for ms in clocks):
        return None
    if not 0 < len(told.binding) <= _MAX_BINDING or "\0" in told.binding:
        return None
    return replace(
        told,
        agent_name=_text(told.agent_name),
        agent_class=_text(told.agent_class),
        requester=_text(told.requester),
        server=_text(told.server),
        tool=_text(told.tool),
        method=_text(told.method),
        action=_text(told.action),
        category=_text(told.category),
        resource=_text(told.resource),
        resource_kind=_text(told.resource_kind),
        codes=_texts(told.codes),
        reason=_text(told.reason),
        policies=_texts(told.policies),
        features=told.features if len(told.features) <= MAX_FEATURES_BYTES else b"",
        finding_tags=_texts(told.finding_tags),
        policy_revision=_text(told.policy_revision),
        quorum=min(max(told.quorum, 1), MAX_QUORUM),
        tier=_text(told.tier),
        execute_for_s=min(max(told.execute_for_s, _MIN_EXECUTE_S), _MAX_EXECUTE_S),
    )


def reported(told: Reported) -> Reported | None:
    """As it can be kept; None: it cannot."""
    if not is_uuid(told.id) or not is_uuid(told.tenant) or told.version > _MAX_VERSION:
        return None
    if told.state not in STATES:
        return None
    return replace(told, uses_left=min(told.uses_left, MAX_USES))


def _text(text: str) -> str:
    """A NUL is shown by its picture: rows cannot hold it."""
    return text[:MAX_TEXT].replace("\0", "\u2400")


def _texts(texts: Iterable[str]) -> list[str]:
    return [_text(text) for text in texts][:_MAX_ENTRIES]
