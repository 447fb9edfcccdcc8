"""What each role of the audit schema may see and do, with rows of two tenants present."""

from __future__ import annotations

from uuid import uuid4

import asyncpg
import pytest

from services.audit.store import WITHOUT_TENANT
from tests.fakes.audit import Source, as_role, audit_service
from tests.fakes.postgres import Database
from tests.promises import promise

pytestmark = pytest.mark.needs_postgres

ROLES = ("behavry_audit_writer", "behavry_audit_reader")
TABLES = ("events", "parts", "chain_heads", "source_marks", "rejected_records")
#: Of those, what the writer may not even read.
WRITE_ONLY = {("behavry_audit_writer", "rejected_records")}


@pytest.fixture
async def tenants(audit_database: Database) -> tuple[str, str]:
    """Both have rows in every table."""
    one, two, source = str(uuid4()), str(uuid4()), Source()
    entries = []
    for tenant in (one, two):
        entries.append(source.entry(tenant, parts=[("arguments", b"{}")]))
        bad = source.entry(tenant)
        bad.body = b"{"
        entries.append(bad)
    async with audit_service(audit_database) as audit, audit.shipper(source) as shipper:
        await shipper.ship(entries)
    return one, two


async def test_every_table_has_a_tenant_under_forced_security_or_is_listed(
    audit_database: Database,
) -> None:
    connection = await asyncpg.connect(audit_database.admin_dsn)
    try:
        tables = await connection.fetch(
            """
            SELECT c.relname AS name, c.relrowsecurity AND c.relforcerowsecurity AS forced,
                   EXISTS (SELECT FROM pg_attribute a
                           WHERE a.attrelid = c.oid AND a.attname = 'tenant_id') AS has_tenant,
                   EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid
                           AND a.attname = 'tenant_id' AND NOT a.attnotnull) AS nullable
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = 'audit' AND c.relkind IN ('r', 'p')
            """
        )
    finally:
        await connection.close()

    assert {t["name"] for t in tables if not t["has_tenant"]} == WITHOUT_TENANT
    assert {t["name"] for t in tables if t["has_tenant"]} == {*TABLES, "events_default"}
    assert all(t["forced"] for t in tables if t["has_tenant"])
    assert not any(t["nullable"] for t in tables)


@promise("audit:tenants-apart")
@pytest.mark.parametrize("role", ROLES)
async def test_a_role_sees_its_tenants_rows_and_none_without_a_tenant(
    audit_database: Database, tenants: tuple[str, str], role: str
) -> None:
    readable = [table for table in TABLES if (role, table) not in WRITE_ONLY]
    seen = {}
    for tenant in (tenants[0], None, str(uuid4())):
        async with as_role(audit_database, role, tenant) as connection:
            for table in readable:
                rows = await connection.fetch(f"SELECT DISTINCT tenant_id FROM audit.{table}")
                seen[tenant, table] = [str(row["tenant_id"]) for row in rows]

    assert {(tenants[0], table): [tenants[0]] for table in readable} == {
        key: ids for key, ids in seen.items() if ids
    }


async def test_the_writer_does_not_even_read_what_was_rejected(
    audit_database: Database, tenants: tuple[str, str]
) -> None:
    for role, table in WRITE_ONLY:
        await _refused(audit_database, role, tenants[0], f"SELECT * FROM audit.{table}")


_INSERTS = {
    "events": """INSERT INTO audit.events (tenant_id, chain, incarnation, seq, committed_at,
        position, event_id, body, previous_hash, event_hash, type)
        VALUES ($1, 'tenant', 1, 99, 1, 1, gen_random_uuid(), '{}', sha256(''), sha256(''), 't')""",
    "parts": """INSERT INTO audit.parts VALUES
        ($1, gen_random_uuid(), 'input', sha256(''), '', 'input')""",
    "chain_heads": "INSERT INTO audit.chain_heads VALUES ($1, 'admin', 1, 1, sha256(''), 1)",
    "source_marks": """INSERT INTO audit.source_marks VALUES
        ($1, gen_random_uuid(), gen_random_uuid(), 1)""",
    "rejected_records": """INSERT INTO audit.rejected_records VALUES
        ($1, gen_random_uuid(), gen_random_uuid(), 1, sha256(''), 'proxy', 'profile', '', 1)""",
}


async def test_the_writer_writes_for_the_tenant_that_is_set_and_for_no_other(
    audit_database: Database, tenants: tuple[str, str]
) -> None:
    writer = "behavry_audit_writer"
    for statement in _INSERTS.values():
        for tenant in (None, tenants[1]):
            await _refused(audit_database, writer, tenant, statement, tenants[0])
        async with as_role(audit_database, writer, tenants[0]) as connection:
            done = await connection.execute(statement, tenants[0])
        assert "INSERT 0 1" == done


_FORBIDDEN = (
    "UPDATE audit.events SET tool = 'x'",
    "UPDATE audit.events_default SET tool = 'x'",
    "DELETE FROM audit.events",
    "DELETE FROM audit.events_default",
    "TRUNCATE audit.events",
    "UPDATE audit.parts SET stored = ''",
    "DELETE FROM audit.parts",
    "DELETE FROM audit.chain_heads",
    "DELETE FROM audit.source_marks",
    "UPDATE audit.rejected_records SET reason = 'x'",
    "DELETE FROM audit.rejected_records",
    "UPDATE audit.sources SET peer = 'x'",
    "ALTER TABLE audit.events NO FORCE ROW LEVEL SECURITY",
    "DROP TABLE audit.events",
    "CREATE TABLE audit.mine (id int)",
    "SET ROLE behavry_audit_owner",
)


@promise("audit:nobody-rewrites")
@pytest.mark.parametrize("role", ROLES)
async def test_nobody_changes_or_removes_what_is_recorded(
    audit_database: Database, tenants: tuple[str, str], role: str
) -> None:
    for statement in _FORBIDDEN:
        await _refused(audit_database, role, tenants[0], statement)


async def test_the_reader_writes_nothing(
    audit_database: Database, tenants: tuple[str, str]
) -> None:
    reader = "behavry_audit_reader"
    for statement in _INSERTS.values():
        await _refused(audit_database, reader, tenants[0], statement, tenants[0])
    for table in (*TABLES, "sources", "source_positions"):
        await _refused(audit_database, reader, tenants[0], f"DELETE FROM audit.{table}")


async def _refused(
    database: Database, role: str, tenant: str | None, statement: str, *arguments: str
) -> None:
    """Fails unless the role lacks the right; an empty success would hide a grant."""
    async with as_role(database, role, tenant) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement, *arguments)


async def test_the_second_verifier_sees_its_callers_tenant_only(
    audit_database: Database, tenants: tuple[str, str]
) -> None:
    admin = await asyncpg.connect(audit_database.admin_dsn)
    await admin.execute(
        "DELETE FROM audit.events_default WHERE tenant_id = $1 AND chain = 'tenant' AND seq = 1",
        tenants[1],
    )
    await admin.close()
    found = {}
    for tenant in (*tenants, None):
        async with as_role(audit_database, "behavry_audit_reader", tenant) as connection:
            found[tenant] = len(await connection.fetch("SELECT * FROM audit.verify_links()"))

    assert {tenants[0]: 0, tenants[1]: 1, None: 0} == found
