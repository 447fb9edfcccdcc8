"""What the proxy gets of the active bundle: who may reach which server, and where it is. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from services.authorizer.context_gate import reaches
from services.authorizer.kill_switch import Stops
from services.authorizer.plane_state import Agent, PlaneState, Tenant
from services.authorizer.revocations import Revocations


def proxy_part(state: PlaneState, revision: str, revocations: Revocations, stops: Stops) -> bytes:
    """JSON of the part `proxy`. Whose rights were just taken away, and what a kill switch holds,
    shows it already: the streams of what is not active end.
    """
    document = {
        "plane_id": state.plane.id,
        "revision": revision,
        "serial": state.serial,
        "tenants": {
            tenant_id: _tenant(tenant_id, tenant, revocations, stops)
            for tenant_id, tenant in state.tenants.items()
        },
    }
    return msgspec.json.encode(document)


def _tenant(
    tenant_id: str, tenant: Tenant, revocations: Revocations, stops: Stops
) -> dict[str, Any]:
    agents = {
        agent_id: {
            "name": agent.name,
            "class": agent.cls,
            "status": _status(tenant_id, agent_id, agent, revocations, stops),
            "servers": [
                slug
                for slug, server in tenant.servers.items()
                if reaches(tenant.permissions(agent), server.domain)
            ],
        }
        for agent_id, agent in tenant.agents.items()
    }
    return {
        "slug": tenant.slug,
        "status": "suspended"
        if tenant.status == "active" and stops.tenant(tenant_id, tenant.slug)
        else tenant.status,
        "modes": tenant.modes,
        "agents": agents,
        "revoked_sessions": [
            *tenant.revoked_sessions,
            *revocations.sessions_of(tenant_id),
        ],
        "servers": {
            slug: {
                "id": server.id,
                "domain": server.domain,
                "trust": "blocked" if stops.server(tenant_id, slug) else server.trust,
                "transport": server.transport,
                "urls": server.urls,
                "stdio": server.stdio,
                "era": server.era,
                "case_fold": server.case_fold,
                "credential": server.credential,
            }
            for slug, server in tenant.servers.items()
        },
    }


def _status(
    tenant_id: str, agent_id: str, agent: Agent, revocations: Revocations, stops: Stops
) -> str:
    if agent.status == "active" and (
        revocations.agent(tenant_id, agent_id) or stops.agent(tenant_id, agent_id, agent.cls)
    ):
        return "suspended"
    return agent.status
