"""A fresh database per test in which a second tenant (neighbour.py) has rows in every table with
tenants. When the test ends, each of them is as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import asyncpg
import pytest

from services.common.postgres import roles
from tests.fakes import planted
from tests.fakes.postgres import Database, Server

#: What the second tenant's rows are at first, by services: every database is a copy.
_AT_FIRST: dict[tuple[str, ...], tuple[Mapping[str, str], dict[str, str]]] = {}


@pytest.fixture
def database(postgres: Server) -> Iterator[Database]:
    """With every service's schema."""
    yield from beside(postgres, *roles.SCHEMAS)


@pytest.fixture
def audit_database(postgres: Server) -> Iterator[Database]:
    yield from beside(postgres, "audit")


@pytest.fixture
def entitlements_database(postgres: Server) -> Iterator[Database]:
    yield from beside(postgres, "entitlements")


def beside(postgres: Server, *services: str) -> Iterator[Database]:
    """A database with a second tenant in it, which must be left alone."""
    plants = [planted.PLANTS[service] for service in services if service in planted.PLANTS]
    made = postgres.create_database(services, plants)
    try:
        if services not in _AT_FIRST:
            _AT_FIRST[services] = asyncio.run(_first_look(made, services))
        yield made
        tables, at_first = _AT_FIRST[services]
        left = {table: said for table, said in tables.items() if table not in made.may_change}
        now = asyncio.run(_state_of(made, left))
        assert {table: at_first[table] for table in left} == now
    finally:
        postgres.drop_database(made)


async def _first_look(
    made: Database, services: tuple[str, ...]
) -> tuple[Mapping[str, str], dict[str, str]]:
    connection = await asyncpg.connect(made.admin_dsn)
    try:
        tables = await planted.tables_of(connection, services)
        return tables, await planted.state_of(connection, tables)
    finally:
        await connection.close()


async def _state_of(made: Database, tables: Mapping[str, str]) -> dict[str, str]:
    connection = await asyncpg.connect(made.admin_dsn)
    try:
        return await planted.state_of(connection, tables)
    finally:
        await connection.close()
