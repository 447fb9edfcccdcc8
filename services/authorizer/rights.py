"""Whose rights a newer bundle ends, and who must hear of rights that end. Pure.

Signals of the link end them sooner, and the bundle then says the same once more; without a link the
bundle is all that says it.
"""

from __future__ import annotations

from typing import Protocol

from services.authorizer.decide_streams import RightsEnded
from services.authorizer.plane_state import PlaneState, Tenant


class Proxies(Protocol):
    def revoked(
        self, tenant: str, *, agents: tuple[str, ...] = (), sessions: tuple[str, ...] = ()
    ) -> None:
        """Nothing named means everybody of the tenant; no tenant means everybody."""


def ended(before: PlaneState, now: PlaneState) -> list[RightsEnded]:
    """For whom held calls must ask again and open streams end."""
    found = []
    for tenant_id, was in before.tenants.items():
        tenant = now.tenants.get(tenant_id)
        if was.status != "active":
            continue
        if tenant is None or tenant.status != "active":
            found.append(RightsEnded(tenant=tenant_id))
            continue
        agents, sessions = _agents(was, tenant), _sessions(was, tenant)
        if agents or sessions:
            found.append(RightsEnded(tenant=tenant_id, agents=agents, sessions=sessions))
    return found


def _agents(before: Tenant, now: Tenant) -> tuple[str, ...]:
    return tuple(
        agent_id
        for agent_id, agent in before.agents.items()
        if agent.status == "active"
        and (agent_id not in now.agents or now.agents[agent_id].status != "active")
    )


def _sessions(before: Tenant, now: Tenant) -> tuple[str, ...]:
    return tuple(now.revoked_sessions.keys() - before.revoked_sessions.keys())
