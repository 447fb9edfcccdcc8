"""Every table with a `tenant_id`, whichever service owns it, is closed to whoever names no tenant.

The tables are found in the catalogue, so that a new one is in this test the day it is made. Rows of
two tenants are put in by the superuser, past checks and references: only isolation is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.common.postgres.pool import open_pool, tenant_tx
from services.common.postgres.roles import SCHEMAS
from tests.fakes.postgres import Database
from tests.promises import promise

FIRST, SECOND = UUID(int=1), UUID(int=2)
#: Tables with a tenant_id that are not isolated, and why. None.
EXEMPT: Final[dict[str, str]] = {}

_TABLES: Final = """
SELECT c.oid::regclass::text AS name, n.nspname AS schema,
       c.relrowsecurity AND c.relforcerowsecurity AS forced
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname = ANY($1::text[])
ORDER BY 1
"""
_CONSTRAINTS: Final = """
SELECT conrelid::regclass::text AS name, quote_ident(conname) AS constraint
FROM pg_constraint WHERE contype IN ('c', 'f') AND conparentid = 0
  AND connamespace = ANY(SELECT oid FROM pg_namespace WHERE nspname = ANY($1::text[]))
ORDER BY contype DESC
"""
_COLUMNS: Final = """
SELECT quote_ident(attname) AS name, format_type(atttypid, atttypmod) AS type
FROM pg_attribute
WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped
  AND attgenerated = '' AND attidentity <> 'a'
ORDER BY attnum
"""
_VALUES: Final = {
    "text": "md5(random()::text)",
    "uuid": "gen_random_uuid()",
    "bytea": "decode(md5(random()::text), 'hex')",
    "timestamp with time zone": "now()",
    "boolean": "false",
    "jsonb": "'{}'::jsonb",
    "text[]": "'{}'::text[]",
    "xid8": "pg_current_xact_id()",
}


def value_of(column: str, kind: str, tenant: UUID) -> str:
    if column == "tenant_id":
        return f"'{tenant}'::uuid"
    return _VALUES.get(kind, f"(random() * 1000000)::{kind}")


async def insertion(connection: Any, table: str, tenant: UUID) -> str:
    columns = await connection.fetch(_COLUMNS, table)
    names = ", ".join(column["name"] for column in columns)
    values = ", ".join(value_of(column["name"], column["type"], tenant) for column in columns)
    return f"INSERT INTO {table} ({names}) VALUES ({values})"


@pytest.fixture
async def tables(database: Database) -> AsyncIterator[dict[str, Any]]:
    """Table name -> (schema, an insert for the first tenant); each holds a row of two tenants."""
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        schemas = list(SCHEMAS)
        for row in await connection.fetch(_CONSTRAINTS, schemas):
            await connection.execute(
                f"ALTER TABLE {row['name']} DROP CONSTRAINT IF EXISTS {row['constraint']} CASCADE"
            )
        await connection.execute("SET session_replication_role = replica")
        found = await connection.fetch(_TABLES, schemas)
        inserts = {}
        for row in found:
            for tenant in (FIRST, SECOND):
                await connection.execute(await insertion(connection, row["name"], tenant))
            inserts[row["name"]] = (
                row["schema"],
                row["forced"],
                await insertion(connection, row["name"], FIRST),
            )
        yield inserts
    finally:
        await connection.close()


@promise("tenancy:unset-sees-nothing")
async def test_every_tenant_table_has_forced_row_security(tables: dict[str, Any]) -> None:
    assert len(tables) >= 20
    open_tables = {name for name, (_, forced, _) in tables.items() if not forced}

    assert set(EXEMPT) == open_tables


async def test_a_service_sees_and_writes_nothing_until_it_names_a_tenant(
    tables: dict[str, Any], database: Database
) -> None:
    """By each service's own roles; a table that a role may not touch at all counts as closed."""
    wrong = []
    for schema, roles in SCHEMAS.items():
        for role in roles.logins:
            async with open_pool(database.dsn(role), max_size=2) as pool:
                for table, (owner, _, insert) in tables.items():
                    if owner == schema and table not in EXEMPT:
                        wrong += [(role, table, what) async for what in leaks(pool, table, insert)]

    assert [] == wrong


async def leaks(pool: Any, table: str, insert: str) -> AsyncIterator[str]:
    """What a role without tenant, or with the first one, gets that it should not."""
    count = f"SELECT count(*) FROM {table}"
    refused = (asyncpg.InsufficientPrivilegeError,)
    async with pool.acquire() as connection:
        try:
            if await connection.fetchval(count) != 0:
                yield "reads without tenant"
        except refused:
            pass
        try:
            await connection.execute(insert)
        except refused:
            pass
        else:
            yield "writes without tenant"
    async with tenant_tx(pool, str(uuid4())) as connection:
        try:
            async with connection.transaction():
                await connection.execute(insert)
        except refused:
            pass
        else:
            yield "writes another tenant's row"
    async with tenant_tx(pool, str(FIRST)) as connection:
        try:
            if await connection.fetchval(count) != 1:
                yield "sees other than its own row"
        except refused:
            pass


def test_the_audit_writer_cannot_change_or_remove_what_is_recorded(database: Database) -> None:
    async def attempts() -> list[str]:
        done = []
        async with open_pool(database.dsn("behavry_audit_writer")) as pool:
            for table in ("events", "parts"):
                for statement in (
                    f"UPDATE audit.{table} SET tenant_id = tenant_id",
                    f"DELETE FROM audit.{table}",
                    f"TRUNCATE audit.{table}",
                ):
                    async with tenant_tx(pool, str(FIRST)) as connection:
                        try:
                            async with connection.transaction():
                                await connection.execute(statement)
                        except asyncpg.InsufficientPrivilegeError:
                            continue
                    done.append(statement)
        return done

    assert [] == asyncio.run(attempts())
