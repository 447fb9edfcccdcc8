"""Every table with a `tenant_id`, seen by each service's own role: without a tenant it is empty and
takes nothing; with one it shows that tenant's rows alone.

The tables are found in the migrated schemas, so a new one is covered the day it appears. Two
tenants' rows are put into each by a superuser; what the rows say does not matter.
"""

import itertools
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.common.postgres import roles
from services.common.postgres.connection import SingleConnection
from tests.fakes import neighbour
from tests.fakes.postgres import Database
from tests.promises import promise

#: Tables with a tenant_id that are not under row-level security; each needs a reason.
EXEMPT: dict[str, str] = {}
FIRST, SECOND = uuid4(), uuid4()
LOGINS = [role for schema in roles.SCHEMAS.values() for role in schema.logins]

_TABLES = """
SELECT n.nspname AS schema, c.relname AS name, c.relrowsecurity AND c.relforcerowsecurity AS forced
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p') AND n.nspname = ANY($1::text[])
ORDER BY 1, 2
"""
_COLUMNS = """
SELECT a.attname AS name, t.typname AS type, t.typcategory = 'A' AS is_array,
       a.attgenerated <> '' OR a.attidentity = 'a' AS made_by_server
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""
_CHECKS = """
SELECT conrelid::regclass::text AS table, conname AS name FROM pg_constraint
WHERE contype = 'c' AND conislocal AND connamespace = ANY(
    SELECT oid FROM pg_namespace WHERE nspname = ANY($1::text[]))
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    name: str
    forced: bool
    insert: str
    rows: dict[UUID, list[Any]]


def _value(kind: str, number: int) -> Any:
    match kind:
        case "uuid":
            return uuid4()
        case "int2" | "int4" | "int8":
            return number
        case "bool":
            return False
        case "bytea":
            return number.to_bytes(32, "big")
        case "jsonb" | "json":
            return json.dumps({})
        case "timestamptz":
            return None  # now(), said in the statement
        case _:
            return f"value-{number}"


async def _describe(connection: SingleConnection, schema: str, name: str, forced: bool) -> Table:
    full = f"{schema}.{name}"
    columns = [
        column
        for column in await connection.fetch(_COLUMNS, full)
        if not column["made_by_server"] and column["type"] != "xid8"
    ]
    names = ", ".join(f'"{column["name"]}"' for column in columns)
    slots = ", ".join(
        f"coalesce(${index}::timestamptz, now())"
        if column["type"] == "timestamptz"
        else f"${index}"
        for index, column in enumerate(columns, start=1)
    )
    numbers = itertools.count(1)

    def row(tenant: UUID) -> list[Any]:
        return [
            tenant
            if column["name"] == "tenant_id"
            else []
            if column["is_array"]
            else _value(column["type"], next(numbers))
            for column in columns
        ]

    return Table(
        name=full,
        forced=forced,
        insert=f"INSERT INTO {full} ({names}) VALUES ({slots})",
        rows={FIRST: row(FIRST), SECOND: row(SECOND)},
    )


@pytest.fixture
async def tables(database: Database) -> list[Table]:
    """Every table, each with a row of two tenants. Checks and references go: rows are nonsense."""
    connection = await asyncpg.connect(database.admin_dsn)
    schemas = list(roles.SCHEMAS)
    for check in await connection.fetch(_CHECKS, schemas):
        await connection.execute(f'ALTER TABLE {check["table"]} DROP CONSTRAINT "{check["name"]}"')
    found = [
        await _describe(connection, row["schema"], row["name"], row["forced"])
        for row in await connection.fetch(_TABLES, schemas)
    ]
    await connection.execute("SET session_replication_role = replica")
    for table in found:
        already = await connection.fetchval(
            f"SELECT count(*) FROM {table.name} WHERE tenant_id <> $1", neighbour.TENANT
        )
        assert already in {0, 2}, f"{table.name} holds rows of its migration"
        if not already:  # a partition has its parent's rows
            for values in table.rows.values():
                await connection.execute(table.insert, *values)
    await connection.close()
    return found


async def _count(connection: SingleConnection, statement: str, *values: Any) -> int | None:
    """Rows seen or touched; None where the role may not."""
    try:
        async with connection.transaction():
            answer = await connection.execute(statement, *values)
    except asyncpg.InsufficientPrivilegeError:
        return None
    return int(answer.rsplit(" ", 1)[1])


async def test_each_table_of_a_tenant_is_under_forced_row_level_security(
    tables: list[Table],
) -> None:
    unforced = {table.name for table in tables if not table.forced}

    assert set(EXEMPT) == unforced
    assert len(tables) >= 20


@pytest.mark.parametrize("role", LOGINS)
@promise("tenancy:unset-sees-nothing")
async def test_without_a_tenant_a_role_reads_nothing_and_writes_nothing(
    database: Database, tables: list[Table], role: str
) -> None:
    connection = await asyncpg.connect(database.dsn(role))
    seen: dict[str, object] = {}
    for table in tables:
        if table.name in EXEMPT:
            continue
        got = (
            await _count(connection, f"SELECT * FROM {table.name}"),
            await _count(connection, table.insert, *table.rows[FIRST]),
            await _count(connection, f"UPDATE {table.name} SET tenant_id = tenant_id"),
            await _count(connection, f"DELETE FROM {table.name}"),
        )
        # Reading, changing, removing: no rows, or no right. Adding: never.
        if got[1] is not None or any(count not in {0, None} for count in got):
            seen[table.name] = got
    await connection.close()

    assert {} == seen


@pytest.mark.parametrize("role", LOGINS)
async def test_with_a_tenant_a_role_reads_that_tenants_rows_alone(
    database: Database, tables: list[Table], role: str
) -> None:
    connection = await asyncpg.connect(database.dsn(role))
    await connection.execute(f"SET behavry.tenant_id = '{SECOND}'")
    readable, strangers = 0, []
    for table in tables:
        try:
            rows = await connection.fetch(f"SELECT tenant_id FROM {table.name}")
        except asyncpg.InsufficientPrivilegeError:
            continue
        readable += 1
        if table.name not in EXEMPT and [SECOND] != [row["tenant_id"] for row in rows]:
            strangers.append(table.name)
    await connection.close()

    assert [] == strangers
    assert readable >= 1


@pytest.mark.parametrize("role", LOGINS)
async def test_with_a_tenant_a_role_writes_no_other_tenants_row(
    database: Database, tables: list[Table], role: str
) -> None:
    connection = await asyncpg.connect(database.dsn(role))
    await connection.execute(f"SET behavry.tenant_id = '{SECOND}'")
    stranger = uuid4()
    taken = []
    for table in tables:
        index = table.rows[FIRST].index(FIRST)
        values = [*table.rows[FIRST][:index], stranger, *table.rows[FIRST][index + 1 :]]
        if table.name not in EXEMPT and await _count(connection, table.insert, *values) is not None:
            taken.append(table.name)
    await connection.close()

    assert [] == taken


async def test_nobody_changes_or_removes_what_is_recorded(
    database: Database, tables: list[Table]
) -> None:
    allowed = []
    for role in LOGINS:
        connection = await asyncpg.connect(database.dsn(role))
        await connection.execute(f"SET behavry.tenant_id = '{SECOND}'")
        for table in ("audit.events", "audit.events_default", "audit.parts"):
            for statement in (
                f"UPDATE {table} SET tenant_id = tenant_id",
                f"DELETE FROM {table}",
                f"TRUNCATE {table}",
                f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY",
            ):
                try:
                    await connection.execute(statement)
                    allowed.append((role, statement))
                except asyncpg.InsufficientPrivilegeError:
                    continue
        await connection.close()

    assert [] == allowed
