"""What the proxy gets of the active bundle: who may reach which server, and where it is. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from services.authorizer import restriction
from services.authorizer.context_gate import reaches
from services.authorizer.kill_switch import Stops
from services.authorizer.plane_state import Agent, PlaneState, Tenant
from services.authorizer.revocations import Revocations


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What the bundle itself does not say: whose rights have ended since."""

    revocations: Revocations
    stops: Stops
    now_s: int


def proxy_part(state: PlaneState, revision: str, ended: Ended) -> bytes:
    """JSON of the part `proxy`. Whose rights have ended, and what a kill switch holds, shows it
    already: the streams of what is not active end.
    """
    document = {
        "plane_id": state.plane.id,
        "revision": revision,
        "serial": state.serial,
        "tenants": {
            tenant_id: _tenant(tenant_id, tenant, ended)
            for tenant_id, tenant in state.tenants.items()
        },
    }
    return msgspec.json.encode(document)


def _tenant(tenant_id: str, tenant: Tenant, ended: Ended) -> dict[str, Any]:
    stops = ended.stops
    agents = {
        agent_id: {
            "name": agent.name,
            "class": agent.cls,
            "status": _status(tenant_id, agent_id, agent, ended),
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
            *ended.revocations.sessions_of(tenant_id),
            *(
                session
                for session, held in tenant.restricted_sessions.items()
                if restriction.wound_down(held, ended.now_s)
            ),
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
                "grants": server.grants,
                "first_byte_s": server.first_byte_s,
                "share": server.share,
                "headers": server.headers,
                "ca": server.ca,
            }
            for slug, server in tenant.servers.items()
        },
    }


def _status(tenant_id: str, agent_id: str, agent: Agent, ended: Ended) -> str:
    if agent.status == "active" and (
        ended.revocations.agent(tenant_id, agent_id)
        or ended.stops.agent(tenant_id, agent_id, agent.cls)
        or restriction.wound_down(agent.restriction, ended.now_s)
    ):
        return "suspended"
    return agent.status
