"""A fresh database per test in which a second tenant (neighbour.py) has rows in every table with
tenants. When the test ends, each of them is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.common.postgres import roles
from services.common.postgres.connection import SingleConnection
from tests.fakes import planted
from tests.fakes.lending import Lending, looked_at
from tests.fakes.postgres import Database, Server


@pytest.fixture(scope="session")
def lending(postgres: Server) -> Lending:
    return Lending(server=postgres)


@pytest.fixture
def database(lending: Lending) -> Iterator[Database]:
    """With every service's schema."""
    yield from beside(lending, *roles.SCHEMAS)


@pytest.fixture
def audit_database(lending: Lending) -> Iterator[Database]:
    yield from beside(lending, "audit")


@pytest.fixture
def entitlements_database(lending: Lending) -> Iterator[Database]:
    yield from beside(lending, "entitlements")


def beside(lending: Lending, *services: str) -> Iterator[Database]:
    """A database with a second tenant in it, which must be left alone."""
    plants = tuple(planted.PLANTS[service] for service in services if service in planted.PLANTS)
    made = lending.lend(services, plants)
    try:
        tables, at_first = lending.once(made, _first_look)
        yield made
        left = {table: said for table, said in tables.items() if table not in made.may_change}
        now = looked_at(made, lambda connection: planted.state_of(connection, left))
        changed = [table for table in left if at_first[table] != now[table]]
        assert not changed, f"rows of the second tenant changed in {changed}"
    finally:
        made.may_change.clear()
        lending.take_back(made)


async def _first_look(connection: SingleConnection) -> tuple[dict[str, str], dict[str, str]]:
    """The tables, and what the second tenant's rows in them are."""
    tables = await planted.tables_of(connection, tuple(roles.SCHEMAS))
    return tables, await planted.state_of(connection, tables)
