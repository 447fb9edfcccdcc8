"""What the second tenant of neighbour.py has: rows in every table with tenants.

Audit's are stored by the service itself, so its chains verify. They name the very agents, tools and
servers that tests call theirs: what is counted or listed across tenants is counted wrongly. Says
too how the rows are compared at a test's end, and what of them may change by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import asyncpg

from services.common.postgres.connection import SingleConnection
from tests.fakes.audit import AGENT_CHAIN, Source, audit_service
from tests.fakes.clock import START_NS
from tests.fakes.licenses import license_token
from tests.fakes.neighbour import AGENT, MARK, TENANT, marked_id
from tests.fakes.postgres import Database, Plant

NOW_S: Final = START_NS // 10**9
#: Of entitlements.tenants, what the service itself writes beside a change: what a tenant has had,
#: and up to when it was told of time. Both follow the installation's licence, which tests change.
FOLLOWS: Final = {"entitlements.tenants": ("entitled", "revision", "settled_at_s")}
_TABLES: Final = """
SELECT n.nspname || '.' || c.relname AS name,
    array_agg(a.attname::text ORDER BY a.attnum) AS columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = ANY ($1)
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
GROUP BY 1 HAVING bool_or(a.attname = 'tenant_id') ORDER BY 1"""


async def plant_audit(database: Database) -> None:
    """Two agents' chains, one of them of an agent that tests have too; control's, and the tenant's
    own; records with all parts, and one that was refused.
    """
    proxy = Source(id=marked_id(0x10), boot=marked_id(0x11))
    control = Source(id=marked_id(0x12), boot=marked_id(0x13), kind="control")
    numbers = iter(range(0x20, 0x100))
    entries = []
    for chain, name in ((AGENT_CHAIN, "demo-agent"), (f"agent:{AGENT}", f"{MARK}-agent")):
        actor = {"kind": "agent", "id": chain[6:], "name": name, "session": "s-1"}
        decision = marked_id(next(numbers))
        entries.append(
            proxy.entry(
                TENANT, chain=chain, id=decision, tool="now", server="time", verdict="allow",
                reason=f"{MARK}-reason", actor=actor,
                parts=[("arguments", f'{{"{MARK}":1}}'.encode()), ("input", b"{}")],
            )
        )  # fmt: skip
        entries.append(
            proxy.entry(
                TENANT, chain=chain, id=marked_id(next(numbers)), type="call.outcome",
                decision=decision, status="ok", parts=[("result", f'"{MARK}result"'.encode())],
            )
        )  # fmt: skip
        entries.append(
            proxy.entry(
                TENANT, chain=chain, id=marked_id(next(numbers)), type="call.denied", tool="reset",
                server=f"{MARK}-git", verdict="deny", reason="policy", actor=actor,
            )
        )  # fmt: skip
    bad = proxy.entry(TENANT, id=marked_id(next(numbers)), tool=f"{MARK}-bad")
    bad.body = bad.body.replace(b'"plane"', b'"Plane"')
    admin = control.entry(
        TENANT, chain="admin", id=marked_id(next(numbers)), type="admin.agent.create",
        reason=f"{MARK}-reason",
    )  # fmt: skip
    async with audit_service(database) as audit:
        async with audit.shipper(proxy) as shipper:
            await shipper.ship([*entries, bad])
        async with audit.shipper(control, peer="control") as shipper:
            await shipper.ship([admin])


async def plant_entitlements(database: Database, *, key: str = "issuer") -> None:
    """A plan without end and how it came to it, overrides, a licence of its own, and a request of
    the same name as one that tests make.
    """
    token = license_token(
        now_s=NOW_S, key=key, tenant=TENANT, plan="enterprise", jti=f"{MARK}-licence",
        sub=f"{MARK}-customer", exp=NOW_S + 10**9,
    )  # fmt: skip
    why = (f"user:{MARK}root", f"{MARK}-reason", "one", NOW_S)
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        async with connection.transaction():
            revision = await connection.fetchval(_REVISION)
            await connection.execute(_DIRECTORY, TENANT, revision)
            planted: list[tuple[str, tuple[object, ...]]] = [
                (_TENANT, (f"{MARK}-tenant", "professional", NOW_S)),
                (_PLAN, ("professional", *why)),
                (_PLAN, ("enterprise", *why)),
                (_OVERRIDE, (marked_id(0x200), "saml_sso", "enable", *why)),
                (_OVERRIDE, (marked_id(0x201), "community_library", "disable", *why)),
                (_LICENSE, (f"{MARK}-sha256", token, NOW_S)),
                (_REQUEST, ("one", f"{MARK}-asked".encode(), f"{MARK}-answer".encode(), NOW_S)),
            ]
            for statement, values in planted:
                await connection.execute(statement, TENANT, *values)
    finally:
        await connection.close()


_REVISION: Final = "UPDATE entitlements.installation SET revision = revision + 1 RETURNING revision"
_DIRECTORY: Final = "INSERT INTO entitlements.directory (id, revision) VALUES ($1, $2)"
_TENANT: Final = """
INSERT INTO entitlements.tenants (tenant_id, slug, plan, created_at, revision, plan_set_at_s,
    settled_at_s) VALUES ($1, $2, $3, to_timestamp($4), 1, $4, $4)"""
_PLAN: Final = """
INSERT INTO entitlements.plan_history (tenant_id, plan, actor, reason, request_id, created_at_s,
    revision) VALUES ($1, $2, $3, $4, $5, $6, 1)"""
_OVERRIDE: Final = """
INSERT INTO entitlements.overrides (tenant_id, id, feature, effect, starts_at_s, actor, reason,
    request_id, created_at_s, revision) VALUES ($1, $2, $3, $4, $8, $5, $6, $7, $8, 1)"""
_LICENSE: Final = """
INSERT INTO entitlements.licenses (tenant_id, token_sha256, token, activated_at_s)
    VALUES ($1, $2, $3, $4)"""
_REQUEST: Final = """
INSERT INTO entitlements.requests (tenant_id, request_id, asked, answer, created_at_s)
    VALUES ($1, $2, $3, $4, $5)"""

PLANTS: Final[Mapping[str, Plant]] = {
    "audit": plant_audit,
    "entitlements": plant_entitlements,
}


async def tables_of(connection: SingleConnection, services: tuple[str, ...]) -> dict[str, str]:
    """Each table that knows tenants, and what of its rows is compared."""
    rows = await connection.fetch(_TABLES, list(services))
    return {
        row["name"]: ", ".join(c for c in row["columns"] if c not in FOLLOWS.get(row["name"], ()))
        for row in rows
    }


async def state_of(connection: SingleConnection, tables: Mapping[str, str]) -> dict[str, str]:
    """How many rows of the second tenant each table has, and the digest of them."""
    one = """SELECT '{table}' AS name, count(*) || ' rows, ' || coalesce(md5(string_agg(
        t::text, ',' ORDER BY t::text)), '') AS state
        FROM (SELECT {columns} FROM {table} WHERE tenant_id = $1) t"""
    if not tables:
        return {}
    every = [one.format(table=table, columns=columns) for table, columns in tables.items()]
    rows = await connection.fetch(" UNION ALL ".join(every), TENANT)
    return {row["name"]: row["state"] for row in rows}


async def moved_out(database: Database) -> None:
    """For what is said of an installation's only tenant, which has more rights."""
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        services = [name for name in PLANTS if await _has(connection, name)]
        await connection.execute("SET session_replication_role = replica")
        for table in await tables_of(connection, tuple(services)):
            await connection.execute(f"DELETE FROM {table} WHERE tenant_id = $1", TENANT)
            database.may_change[table] = "the second tenant is not there"
        if "entitlements" in services:
            await connection.execute("DELETE FROM entitlements.directory WHERE id = $1", TENANT)
    finally:
        await connection.close()


async def _has(connection: SingleConnection, schema: str) -> bool:
    return await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema) is True
