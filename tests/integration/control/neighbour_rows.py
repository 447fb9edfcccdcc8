"""What the second tenant (neighbour.py) has: two rows in each table that has tenants.

They are written from the catalogue, so that a new table has some on the day it comes. They are such
as would be found (people are active, a policy is enforced, an agent may work), but nobody is woken:
what runs by itself (notices, stops, decisions on their way, jobs) is over.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

from services.common.postgres.connection import SingleConnection
from services.common.rego.names import policy_package
from services.control import tenant_limits
from tests.fakes.clock import START_NS
from tests.fakes.postgres import Database
from tests.integration.control.neighbour import MARK, SLUG, TENANT, id_of, name_of, tables

ROWS: Final = 2
#: Why a table with tenants has no row of it.
UNPLANTED: Final = {"outbox": "what is in it is sent to audit, and is audit's from then on"}
_NOW: Final = datetime.fromtimestamp(START_NS / 1e9, UTC)
_BEFORE: Final = _NOW - timedelta(hours=1)
_LATER: Final = datetime(2199, 1, 1, tzinfo=UTC)
#: Moments that have not come.
_ENDS: Final = frozenset({
    "expires_at", "token_expires_at", "decide_by", "until", "give_up_at", "next_at",
})  # fmt: skip


def _policy(row: int) -> str:
    return f"{MARK}_policy_{row}"


def _said(table: str, row: int) -> dict[str, Any]:
    """What the kind of a column alone does not say."""
    first = row == 1
    said: dict[str, dict[str, Any]] = {
        "users": {
            "role": "admin" if first else "viewer", "status": "active",
            "email": f"{name_of('email', row)}@example.org",
        },
        "user_sessions": {
            "id": id_of(table, row), "kind": "bearer", "method": "password",
            "client_ip": "127.0.0.1",
        },
        "user_factors": {"kind": "totp" if first else "passkey", "confirmed_at": _BEFORE},
        "sign_in_challenges": {"purpose": "sign_in", "session_kind": "browser"},
        "device_answers": {"approved": True},
        "invites": {"role": "viewer", "email": f"{name_of('invited', row)}@example.org"},
        "auth_settings": {
            "provider": "oidc",
            "document": {"oidc": {
                "issuer": f"https://{MARK}.example.org", "client_id": MARK,
                "client_secret": f"secret://{MARK}", "scopes": ["openid"], "role_claim": None,
                "roles": [], "just_in_time": True, "email_domains": [],
            }},
        },
        "auth_changes": {"document": {"provider": "password"}},
        "api_keys": {"role": "admin" if first else "viewer", "replaced_by": None},
        "agents": {
            "type": "autonomous", "owner": id_of("users", row), "status": "active",
            "roles": [name_of("name", row)], "token_life_s": 900,
        },
        "agent_sessions": {"secret_id": id_of("agent_secrets", row)},
        "agent_secrets": {},
        "enrollment_tokens": {"type": "autonomous", "class": name_of("name", row)},
        "servers": {
            "trust": "trusted", "transport": "http", "credential_kind": "none",
            "credential_ref": "", "era": "auto", "urls": [f"https://{MARK}.example.org/mcp"],
        },
        "tools": {"state": "approved", "action": "read"},
        "jobs": {"state": "succeeded", "finished_at": _BEFORE},
        "policies": {
            "key": _policy(row), "state": "enforce" if first else "draft",
            "active_version": 1 if first else None,
        },
        "policy_versions": {
            "source": f"package {policy_package(TENANT, _policy(row))}\n\nimport rego.v1\n\n"
            f'verdicts contains {{"result": "deny", "code": "hit", "reason": "{MARK}",'
            f' "obligations": []}} if input.request.tool == "{MARK}"\n',
            "tests": [], "reads": [], "guards": None,
        },
        "escalations": {
            "plane_id": "dp-local", "requester_id": id_of("users", row),
            "agent_id": id_of("agents", row), "state": "pending" if first else "denied",
            "action": "write", "tier": "low", "features": b"{}",
        },
        "escalation_votes": {"verdict": "approve"},
        "escalation_decisions": {
            "plane_id": "dp-local", "verdict": "deny", "approvers": [id_of("users", row)],
            "done_at": _BEFORE,
        },
        "kill_switches": {
            "scope": "agent", "subject": id_of("agents", row), "off_at": _BEFORE,
        },
        "restrictions": {"profile": "read_only"},
        "notification_destinations": {
            "kind": "webhook", "enabled": True,
            "settings": {"url": f"https://{MARK}.example.org", "key": f"secret://{MARK}"},
            "events": ["escalation.opened"],
        },
        "notification_deliveries": {
            "event": "escalation.opened", "subject_id": id_of("escalations", row),
            "state": "delivered", "delivered_at": _BEFORE, "last_error": "",
        },
        "tenant_limits": {"document": tenant_limits.SHIPPED},
        "license_terms": {"event": "", "term": "", "step": 0, "modes": {}},
        "idempotency": {"status": 201},
    }  # fmt: skip
    return said.get(table, {})


# Planting -------------------------------------------------------------------------------------

_COLUMNS: Final = """
SELECT c.relname AS table, a.attname AS column, t.typname AS type,
       a.attnotnull AS mandatory, a.atthasdef AS has_default
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
WHERE c.relnamespace = 'control'::regnamespace AND c.relkind = 'r'
  AND a.attidentity = '' AND a.attgenerated = '' ORDER BY c.relname, a.attnum"""
_REFERENCES: Final = """
SELECT c.relname AS table, r.relname AS other, a.attname AS column, b.attname AS named
FROM pg_constraint f
JOIN pg_class c ON c.oid = f.conrelid JOIN pg_class r ON r.oid = f.confrelid
CROSS JOIN LATERAL unnest(f.conkey, f.confkey) AS pair (here, there)
JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = pair.here
JOIN pg_attribute b ON b.attrelid = f.confrelid AND b.attnum = pair.there
WHERE f.contype = 'f' AND c.relnamespace = 'control'::regnamespace AND r.relname <> 'tenants'"""
_ONE_OF_A_TENANT: Final = """
SELECT c.relname AS table FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
WHERE c.relnamespace = 'control'::regnamespace AND i.indisunique AND i.indnkeyatts = 1
  AND a.attname = 'tenant_id'"""


async def plant(database: Database) -> None:
    """Into a migrated database, with every reference and check in force."""
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        await _planted(connection)
    finally:
        await connection.close()


async def plant_gone(database: Database) -> None:
    """The same of a tenant that was deleted: entitlements is not told of it, and whoever is left
    speaks for the installation.
    """
    await plant(database)
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        await connection.execute(
            "UPDATE control.tenants SET status = 'deleted' WHERE id = $1", TENANT
        )
    finally:
        await connection.close()


async def _planted(connection: SingleConnection) -> None:
    await connection.set_type_codec(
        "jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
    )
    await connection.execute(
        "INSERT INTO control.tenants (id, slug, name, status, created_at)"
        " VALUES ($1, $2, $3, 'active', $4)",
        TENANT, SLUG, SLUG, _BEFORE,
    )  # fmt: skip
    columns: dict[str, list[Any]] = {}
    for column in await connection.fetch(_COLUMNS):
        columns.setdefault(column["table"], []).append(column)
    references: dict[str, list[Any]] = {}
    for reference in await connection.fetch(_REFERENCES):
        references.setdefault(reference["table"], []).append(reference)
    alone = {row["table"] for row in await connection.fetch(_ONE_OF_A_TENANT)}
    rows: dict[tuple[str, int], dict[str, Any]] = {}

    async def planted(table: str) -> None:
        """What it names comes first."""
        if (table, 1) in rows:
            return
        named = references.get(table, [])
        for other in {reference["other"] for reference in named}:
            await planted(other)
        for row in range(1, (1 if table in alone else ROWS) + 1):
            made = _row(table, row, columns[table])
            for one in named:
                made[one["column"]] = rows[one["other"], row][one["named"]]
            rows[table, row] = made
            names = ", ".join(f'"{name}"' for name in made)
            slots = ", ".join(f"${at}" for at in range(1, len(made) + 1))
            await connection.execute(
                f"INSERT INTO control.{table} ({names}) VALUES ({slots})",  # the catalogue's
                *made.values(),
            )

    for table in await tables(connection):
        if table not in UNPLANTED:
            await planted(table)


def _row(table: str, row: int, columns: list[Any]) -> dict[str, Any]:
    said, made = _said(table, row), {}
    for column in columns:
        name = column["column"]
        if name in said:
            made[name] = said[name]
        elif not column["has_default"]:
            made[name] = _value(table, row, name, column["type"], mandatory=column["mandatory"])
    return made


def _value(table: str, row: int, column: str, kind: str, *, mandatory: bool) -> Any:
    match kind:
        case "uuid" if column == "tenant_id":
            return TENANT
        case "text":
            return name_of(column, row)
        case "_text":
            return [name_of(column, row)]
        case "bytea" if mandatory:
            return f"{MARK}{row}{table}{column}".encode()[:32].ljust(32, b".")
        case "jsonb" if mandatory:
            return {"of": name_of(column, row)}
        case _ if not mandatory:
            return None
        case "uuid":
            return id_of(table, row, column)
        case "timestamptz":
            return _LATER if column in _ENDS else _BEFORE
        case "bool":
            return False
        case "int4" | "int8":
            return 1
        case _:
            raise LookupError(f"control.{table}.{column} is {kind}: say in _said what it holds")
