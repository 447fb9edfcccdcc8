"""Reads a tenant's desired state for the bundle: one snapshot, one statement per kind."""

from __future__ import annotations

import json
from typing import Any, Final

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.control.credentials import LEEWAY, SESSION_IDLE
from services.control.desired_state import PolicyRow, TenantRows
from services.control.restrictions import Restriction
from services.control.signals import Stop
from services.control.store import tenant_limits

_TENANT: Final = "SELECT slug, status FROM control.tenants WHERE id = $1"
_CLASSES: Final = "SELECT name, critical FROM control.agent_classes ORDER BY name"
_ROLES: Final = "SELECT name, permissions FROM control.agent_roles ORDER BY name"
_AGENTS: Final = """
SELECT id, name, type, class, owner, tags, roles, status FROM control.agents ORDER BY id
"""
_ENDED: Final = """
SELECT id, extract(epoch FROM token_expires_at)::bigint AS until
FROM control.agent_sessions
WHERE ended_at IS NOT NULL AND token_expires_at > to_timestamp($1)
ORDER BY id
"""
_SERVERS: Final = """
SELECT id, slug, domain, trust, transport, urls, stdio, era, case_fold, credential_kind,
       credential_header, credential_ref, credential_settings, grants, first_byte_s, share,
       headers, ca
FROM control.servers ORDER BY slug
"""
_TOOLS: Final = """
SELECT s.slug, t.name, t.state, t.action, t.category, t.allow_tags, t.pinned_hash
FROM control.tools t
JOIN control.servers s ON s.tenant_id = t.tenant_id AND s.id = t.server_id
ORDER BY s.slug, t.name
"""
_STOPS: Final = """
SELECT scope, subject FROM control.kill_switches WHERE off_at IS NULL ORDER BY scope, subject
"""
#: A session that can have no valid token any more needs no holding.
_RESTRICTIONS: Final = """
SELECT r.subject_id, r.agent_id, r.profile, r.until, r.tools, r.resources, r.max_arg_bytes,
       r.rate_factor_milli
FROM control.restrictions r
LEFT JOIN control.agent_sessions s ON s.tenant_id = r.tenant_id AND s.id = r.subject_id
WHERE (r.until > to_timestamp($1) OR r.profile = 'wind_down')
  AND (s.id IS NULL OR (s.ended_at IS NULL AND s.renewed_at > to_timestamp($1) - $2::interval))
ORDER BY r.subject_id
"""
_POLICIES: Final = """
SELECT p.key, p.state, v.version, v.source, v.reads, v.guards
FROM control.policies p
JOIN control.policy_versions v
  ON v.tenant_id = p.tenant_id AND v.policy_id = p.id AND v.version = p.active_version
WHERE p.state IN ('enforce', 'shadow')
ORDER BY p.key
"""


async def read(connection: Connection, tenant: TenantId, *, now_s: int) -> TenantRows:
    """Inside a transaction that has this tenant set."""
    head = await connection.fetchrow(_TENANT, tenant)
    if head is None:
        raise LookupError(tenant)
    tools: dict[str, dict[str, Any]] = {}
    for row in await connection.fetch(_TOOLS):
        tools.setdefault(row["slug"], {})[row["name"]] = {
            "state": row["state"],
            "action": row["action"],
            "category": row["category"],
            "allow_tags": list(row["allow_tags"]),
            "schema_hash": row["pinned_hash"],
        }
    restrictions = [
        dict(row) for row in await connection.fetch(_RESTRICTIONS, now_s, SESSION_IDLE + LEEWAY)
    ]
    limits = await tenant_limits.get(connection)
    return TenantRows(
        id=tenant,
        slug=head["slug"],
        status=head["status"],
        classes={
            row["name"]: {"critical": row["critical"]} for row in await connection.fetch(_CLASSES)
        },
        roles={row["name"]: list(row["permissions"]) for row in await connection.fetch(_ROLES)},
        agents={str(row["id"]): _agent(row) for row in await connection.fetch(_AGENTS)},
        revoked_sessions={
            str(row["id"]): row["until"] for row in await connection.fetch(_ENDED, now_s)
        },
        servers={row["slug"]: _server(row) for row in await connection.fetch(_SERVERS)},
        tools=tools,
        policies=[_policy(row) for row in await connection.fetch(_POLICIES)],
        restrictions={
            str(row["agent_id"]): Restriction.of(row).desired()
            for row in restrictions
            if row["subject_id"] == row["agent_id"]
        },
        restricted_sessions={
            str(row["subject_id"]): Restriction.of(row).desired()
            for row in restrictions
            if row["subject_id"] != row["agent_id"]
        },
        stops=[{"scope": stop.scope, "subject": stop.subject} for stop in await stops(connection)],
        limits=limits.document,
    )


async def stops(connection: Connection) -> list[Stop]:
    """The tenant's kill switches that are on."""
    rows = await connection.fetch(_STOPS)
    return [Stop(scope=row["scope"], subject=row["subject"]) for row in rows]


def _agent(row: Any) -> dict[str, Any]:
    return {
        "name": row["name"],
        "type": row["type"],
        "class": row["class"],
        "owner": str(row["owner"]) if row["owner"] else None,
        "tags": list(row["tags"]),
        "roles": list(row["roles"]),
        "status": row["status"],
    }


def _server(row: Any) -> dict[str, Any]:
    credential = {"kind": row["credential_kind"], **json.loads(row["credential_settings"])}
    if row["credential_kind"] == "header":
        credential |= {"name": row["credential_header"], "value": row["credential_ref"]}
    return {
        "id": str(row["id"]),
        "domain": row["domain"],
        "trust": row["trust"],
        "transport": row["transport"],
        "urls": list(row["urls"]),
        "stdio": row["stdio"],
        "era": row["era"],
        "case_fold": row["case_fold"],
        "credential": credential,
        "grants": json.loads(row["grants"]),
        "first_byte_s": row["first_byte_s"],
        "share": row["share"],
        "headers": json.loads(row["headers"]),
        "ca": row["ca"],
    }


def _policy(row: Any) -> PolicyRow:
    guards = json.loads(row["guards"]) if row["guards"] else None
    return PolicyRow(
        key=row["key"],
        version=row["version"],
        state=row["state"],
        source=row["source"],
        reads=tuple(tuple(path) for path in json.loads(row["reads"])),
        guards=None
        if guards is None
        else tuple(tuple((tuple(path), value) for path, value in guard) for guard in guards),
    )
