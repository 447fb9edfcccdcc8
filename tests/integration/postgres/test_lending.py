"""A database that was used before is, to whoever gets it, a new one."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg
import pytest

from services.common.postgres.connection import SingleConnection
from tests.fakes.lending import Lending, looked_at
from tests.fakes.postgres import Database
from tests.integration.control import neighbour, neighbour_rows

CONTROL: Final = ("control",)


def lent(lending: Lending) -> Database:
    return lending.lend(CONTROL, (neighbour_rows.plant,))


def done(database: Database, *statements: str) -> None:
    async def work(connection: SingleConnection) -> None:
        for statement in statements:
            await connection.execute(statement)

    looked_at(database, work)


async def everything(connection: SingleConnection) -> dict[str, Any]:
    named = await connection.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'control' ORDER BY 1"
    )
    return {
        name: await connection.fetchval(
            f"SELECT string_agg(t::text, chr(10) ORDER BY t::text) FROM control.{name} t"
        )
        for name in (row["tablename"] for row in named)
    }


def test_what_comes_back_has_the_rows_of_a_new_one_and_no_others(lending: Lending) -> None:
    database = lent(lending)
    before = looked_at(database, everything)
    done(
        database,
        "INSERT INTO control.tenants VALUES (gen_random_uuid(), 'third', 'Third', 'active', now())",
        "UPDATE control.users SET email = 'x'",
        "DELETE FROM control.kill_switch_releases",
        "INSERT INTO control.outbox (tenant_id, chain, event_id, draft)"
        f" VALUES ('{neighbour.TENANT}', 'admin', gen_random_uuid(), 'x')",
    )
    assert before != looked_at(database, everything)
    lending.take_back(database)
    again = lent(lending)
    after = looked_at(again, everything)

    assert again.name == database.name
    assert before == after
    done(
        again,
        "INSERT INTO control.outbox (tenant_id, chain, event_id, draft)"
        f" VALUES ('{neighbour.TENANT}', 'admin', gen_random_uuid(), 'x')",
    )
    first = looked_at(again, lambda c: c.fetchval("SELECT min(id) FROM control.outbox"))
    lending.take_back(again)
    assert 1 == first


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE control.agents DISABLE ROW LEVEL SECURITY",
        "GRANT DELETE ON control.policy_versions TO behavry_control",
        "ALTER TABLE control.agents ALTER COLUMN owner SET DEFAULT gen_random_uuid()",
        "ALTER FUNCTION control.find_user(text) SECURITY INVOKER",
    ],
)
def test_where_a_definition_was_changed_nobody_gets_it_again(
    lending: Lending, statement: str
) -> None:
    database = lent(lending)
    done(database, statement)
    lending.take_back(database)
    another = lent(lending)
    lending.take_back(another)

    assert another.name != database.name


def test_whoever_is_still_connected_is_not_any_more(lending: Lending) -> None:
    database = lent(lending)

    async def left_open() -> None:
        connection = await asyncpg.connect(database.admin_dsn)
        await connection.execute("BEGIN")
        await connection.execute("LOCK TABLE control.agents")
        await asyncio.to_thread(in_a_thread)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await connection.execute("COMMIT")

    def in_a_thread() -> None:
        lending.take_back(database)

    asyncio.run(left_open())
