"""Tells whoever listens that rights were taken away: agents or sessions that must be refused now.

Called after the commit. The bundle that follows says the same for good; this is only faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.common.ids import AgentId, SessionId, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    tenant: TenantId
    agents: tuple[AgentId, ...] = ()
    sessions: tuple[SessionId, ...] = ()


Listener = Callable[[Revoked], None]


class Revocations:
    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def publish(
        self,
        tenant: TenantId,
        *,
        agents: Sequence[AgentId] = (),
        sessions: Sequence[SessionId] = (),
    ) -> None:
        if not (agents or sessions):
            return
        revoked = Revoked(tenant=tenant, agents=tuple(agents), sessions=tuple(sessions))
        for listener in self._listeners:
            listener(revoked)
