"""Puts rows together as a tenant's part of the bundle. Pure; reading them is store/desired.py's.

A decision's `policy_revision` covers policies, limits and the classified tools: enrolling or
restricting an agent, a stop, or a tool that was seen for the first time changes the bundle's serial
alone, and so supersedes no approval.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from services.common.ids import NIL_TENANT, TenantId
from services.common.rego import shipped
from services.common.rego.authz import ActivePolicy, authz_module
from services.common.rego.guards import Guards
from services.common.rego.names import Path, PolicyRef, policy_package, tenant_segment
from services.common.rego.references import reads_for
from services.control import tenant_limits
from services.control.bundles import TenantContent

#: Fields of a server that decide nothing about where a call goes.
_BESIDE: Final = frozenset({"grants", "first_byte_s", "share"})
#: Fields that came later; empty they change no revision of before.
_LATER: Final = frozenset({"headers", "ca"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRow:
    """A policy version that takes part in decisions; `state` is enforce or shadow."""

    key: str
    version: int
    state: str
    source: str = field(repr=False)
    reads: tuple[Path, ...]
    guards: Guards


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRows:
    """What the store found for one tenant; mappings are by the key that the bundle uses."""

    id: TenantId
    slug: str
    status: str
    classes: Mapping[str, Any]
    roles: Mapping[str, Sequence[str]]
    agents: Mapping[str, Any]
    revoked_sessions: Mapping[str, int]
    servers: Mapping[str, Any]
    tools: Mapping[str, Mapping[str, Any]]
    policies: Sequence[PolicyRow]
    #: What agents and sessions are held to, by their ids.
    restrictions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    restricted_sessions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Kill switches that are on: scope and subject.
    stops: Sequence[Mapping[str, str]] = ()
    #: The document of `settings/limits`.
    limits: Mapping[str, Any] = field(default_factory=lambda: tenant_limits.SHIPPED)


def tenant_content(rows: TenantRows, modes: Mapping[str, str]) -> TenantContent:
    """`modes`: the 17 features' modes, as entitlements last said them."""
    active = [_active(rows.id, policy) for policy in rows.policies]
    read_sets = [frozenset(policy.reads) for policy in rows.policies]
    state = {
        "slug": rows.slug,
        "status": rows.status,
        "policy_revision": policy_revision(rows),
        "modes": dict(modes),
        "classes": rows.classes,
        "roles": rows.roles,
        "agents": {
            agent_id: {**agent, "restriction": rows.restrictions.get(agent_id)}
            for agent_id, agent in rows.agents.items()
        },
        "revoked_sessions": rows.revoked_sessions,
        "restricted_sessions": rows.restricted_sessions,
        "stops": rows.stops,
        "limits": rows.limits["rates"],
        "escalations": rows.limits["escalations"],
        "servers": rows.servers,
        "tools": rows.tools,
        "policies": [
            {
                "key": policy.key,
                "version": policy.version,
                "state": policy.state,
                "package": policy_package(rows.id, policy.key),
            }
            for policy in rows.policies
        ],
        "reads": reads_for([shipped.base_references(), *read_sets]),
    }
    segment = tenant_segment(rows.id)
    modules = {
        f"behavry/tenant/{segment}/{policy.key}.rego": policy.source for policy in rows.policies
    }
    modules |= entry_module(rows.id, active)
    return TenantContent(id=rows.id, state=state, modules=modules)


def shipped_modules() -> dict[str, str]:
    """Base policies, libraries, and the nil tenant's entry, under which canaries are asked."""
    return {**shipped.modules(), **entry_module(NIL_TENANT, [])}


def entry_module(tenant: TenantId, own: Sequence[ActivePolicy]) -> dict[str, str]:
    path = f"behavry/authz/{tenant_segment(tenant)}.rego"
    return {path: authz_module(tenant, [*shipped.active_base(), *own])}


def policy_revision(rows: TenantRows) -> str:
    """`sha256:<hex>` over what decides, not over who asks."""
    decides = {
        "policies": [
            [policy.key, policy.version, policy.state, policy.source] for policy in rows.policies
        ],
        "classes": rows.classes,
        "roles": rows.roles,
        "servers": {slug: _reached(server) for slug, server in rows.servers.items()},
        "tools": _classified(rows.tools),
        "limits": rows.limits["rates"],
    }
    encoded = json.dumps(decides, separators=(",", ":"), sort_keys=True).encode()
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}"


def _reached(server: Mapping[str, Any]) -> dict[str, Any]:
    """Where a server is and how it is spoken to: nobody who approved a call did so for another
    machine. What it may ask back, and how long it may take, is no part of that.
    """
    said = {name: value for name, value in server.items() if name not in _BESIDE}
    return {name: value for name, value in said.items() if value or name not in _LATER}


def _classified(tools: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """An unclassified tool is denied like one that does not exist."""
    return [
        [slug, name, tool]
        for slug, named in tools.items()
        for name, tool in named.items()
        if tool["state"] != "unclassified"
    ]


def _active(tenant: TenantId, policy: PolicyRow) -> ActivePolicy:
    ref = PolicyRef(
        key=policy.key,
        package=policy_package(tenant, policy.key),
        state="shadow" if policy.state == "shadow" else "enforce",
    )
    return ActivePolicy(ref=ref, guards=policy.guards)
