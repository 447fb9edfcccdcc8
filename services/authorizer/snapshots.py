"""What the proxy gets of the active bundle: who may reach which server, and where it is. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from services.authorizer.context_gate import reaches
from services.authorizer.plane_state import PlaneState, Tenant
from services.authorizer.revocations import Revocations


def proxy_part(state: PlaneState, revision: str, revocations: Revocations) -> bytes:
    """JSON of the part `proxy`. Agents whose rights were just taken away show it already."""
    document = {
        "plane_id": state.plane.id,
        "revision": revision,
        "serial": state.serial,
        "tenants": {
            tenant_id: _tenant(tenant_id, tenant, revocations)
            for tenant_id, tenant in state.tenants.items()
        },
    }
    return msgspec.json.encode(document)


def _tenant(tenant_id: str, tenant: Tenant, revocations: Revocations) -> dict[str, Any]:
    agents = {
        agent_id: {
            "name": agent.name,
            "class": agent.cls,
            "status": "suspended"
            if agent.status == "active" and revocations.agent(tenant_id, agent_id)
            else agent.status,
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
        "status": tenant.status,
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
                "trust": server.trust,
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
