"""What planes tell of escalations, out of its messages and within bounds that rows can hold.

Texts come from agents and tools: they are cut to a length and freed of NUL, nothing else; who shows
them makes them safe to look at. A message without a usable identity is answered with None.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from behavry.control.v1 import plane_link_pb2 as wire
from services.common.ids import AgentId, is_uuid
from services.control.escalations import MAX_QUORUM, MAX_USES
from services.control.store.escalation_inbox import Reported
from services.control.store.escalations import Opened
from services.control.store.moments import moment

MAX_TEXT: Final = 8_192
MAX_FEATURES_BYTES: Final = 64 << 10
_MAX_ENTRIES: Final = 64
_MAX_BINDING: Final = 256
_MAX_EXECUTE_S: Final = 86_400
_MIN_EXECUTE_S: Final = 60
_MAX_VERSION: Final = (1 << 63) - 1
#: The year 2200: no clock of ours says more.
_LAST_MS: Final = 7_258_118_400_000


def opened(said: wire.EscalationOpened) -> Opened | None:
    ids = (said.id, said.tenant_id, said.agent_id)
    clocks = (said.opened_at_ms, said.decide_by_ms)
    if not all(is_uuid(named) for named in ids) or not all(0 < ms <= _LAST_MS for ms in clocks):
        return None
    if not 0 < len(said.binding) <= _MAX_BINDING or "\0" in said.binding:
        return None
    return Opened(
        id=said.id,
        agent=AgentId(said.agent_id),
        agent_name=_text(said.agent_name),
        agent_class=_text(said.agent_class),
        requester=_text(said.requester_id),
        requester_verified=said.requester_verified,
        server=_text(said.server),
        tool=_text(said.tool),
        method=_text(said.method),
        action=_text(said.action),
        category=_text(said.category),
        resource=_text(said.resource),
        resource_kind=_text(said.resource_kind),
        codes=_texts(said.codes),
        reason=_text(said.reason),
        policies=_texts(said.policies),
        features=said.features if len(said.features) <= MAX_FEATURES_BYTES else b"",
        finding_tags=_texts(said.finding_tags),
        binding=said.binding,
        policy_revision=_text(said.policy_revision),
        quorum=min(max(said.quorum, 1), MAX_QUORUM),
        tier=_text(said.tier),
        opened_at=_moment(said.opened_at_ms),
        decide_by=_moment(said.decide_by_ms),
        execute_for_s=min(max(said.execute_for_s, _MIN_EXECUTE_S), _MAX_EXECUTE_S),
    )


def reported(said: wire.EscalationChanged) -> Reported | None:
    if not is_uuid(said.id) or not is_uuid(said.tenant_id) or said.version > _MAX_VERSION:
        return None
    return Reported(
        id=said.id,
        state=said.state,
        version=said.version,
        uses_left=min(said.uses_left, MAX_USES),
    )


def _text(text: str) -> str:
    """A NUL is shown by its picture: rows cannot hold it."""
    return text[:MAX_TEXT].replace("\0", "\u2400")


def _texts(texts: Iterable[str]) -> list[str]:
    return [_text(text) for text in texts][:_MAX_ENTRIES]


def _moment(ms: int) -> datetime:
    return moment(ms * 1_000_000)
