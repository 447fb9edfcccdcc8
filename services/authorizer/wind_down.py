"""Watches for the moment at which a wind-down becomes a suspension: nothing else says so then. The
proxies hear of it as of any other right that ends; refusing the calls is restriction.py's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from services.authorizer import restriction
from services.authorizer.active import ActivePolicy
from services.authorizer.plane_state import PlaneState
from services.authorizer.rights import Proxies
from services.common.clock import Clock

#: The wall clock may jump; looking costs one comparison per wind-down.
LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    """An agent's wind-down, or a session's."""

    until_s: int
    tenant: str
    agents: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class WindDownWatch:
    active: ActivePolicy
    proxies: Proxies
    clock: Clock
    _coming: list[_Ending] = field(default_factory=list)

    async def run(self) -> None:
        """Until cancelled. What was over before its bundle came is in the bundle's snapshot."""
        version, state = -1, None
        while True:
            bundle = self.active.bundle
            if bundle is not None and bundle.state is not state:
                state = bundle.state
                self._coming = _coming(state, self._now_s())
            over = [one for one in self._coming if one.until_s <= self._now_s()]
            if over:
                self._coming = [one for one in self._coming if one not in over]
                self.active.changed()
                for one in over:
                    self.proxies.revoked(one.tenant, agents=one.agents, sessions=one.sessions)
            try:
                version = await asyncio.wait_for(
                    self.active.next_version(version), LOOK_S if self._coming else None
                )
            except TimeoutError:
                continue

    def _now_s(self) -> int:
        return self.clock.now_ns() // 1_000_000_000


def _coming(state: PlaneState, now_s: int) -> list[_Ending]:
    agents = [
        _Ending(until_s=agent.restriction.until_s, tenant=tenant_id, agents=(agent_id,))
        for tenant_id, tenant in state.tenants.items()
        for agent_id, agent in tenant.agents.items()
        if agent.restriction is not None and restriction.winds_down(agent.restriction, now_s)
    ]
    sessions = [
        _Ending(until_s=held.until_s, tenant=tenant_id, sessions=(session_id,))
        for tenant_id, tenant in state.tenants.items()
        for session_id, held in tenant.restricted_sessions.items()
        if restriction.winds_down(held, now_s)
    ]
    return [*agents, *sessions]
