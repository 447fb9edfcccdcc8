"""The second tenant of neighbour.py in a running installation: rows in every table with tenants,
put there past the services, once; and at the end they are as they were.

Control's are those of its own tests, and servers of the demo's slugs beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import asyncpg

from services.cli import database
from services.cli.state import open_state, recall
from services.common.postgres import roles
from services.common.postgres.connection import SingleConnection
from tests.fakes import planted
from tests.fakes.neighbour import MARK, TENANT, marked_id
from tests.fakes.postgres import Database
from tests.integration.control import neighbour_rows

T = TypeVar("T")
#: As the demo has them; the second tenant's lead nowhere.
SERVERS: Final = {"time": "get_current_time", "git": "git_status"}
#: What the services write of every tenant by themselves.
BY_ITSELF: Final = {
    "control.license_terms": "control keeps what entitlements tells, as soon as it hears of it",
    "control.notification_deliveries": "those of long ago are forgotten",
}
_SERVER: Final = """
INSERT INTO control.servers SELECT (jsonb_populate_record(s, jsonb_build_object(
    'id', $2::uuid, 'slug', $3::text, 'domain', $3::text,
    'urls', jsonb_build_array($4::text)))).*
FROM control.servers s WHERE tenant_id = $1 ORDER BY id LIMIT 1"""
_TOOL: Final = """
INSERT INTO control.tools SELECT (jsonb_populate_record(t, jsonb_build_object(
    'server_id', $2::uuid, 'name', $3::text))).*
FROM control.tools t WHERE tenant_id = $1 ORDER BY server_id, name LIMIT 1"""
#: Of each state directory: every table with tenants, and what the rows were at first.
_AT_FIRST: dict[Path, tuple[dict[str, str], dict[str, str]]] = {}


def move_in(state_dir: Path, *, named: str | None = None) -> None:
    """`named`: the database that was named to `up`. In a state that it is in already: nothing."""
    if state_dir not in _AT_FIRST:
        _AT_FIRST[state_dir] = asyncio.run(_move_in(database_of(state_dir, named)))


def left_alone(state_dir: Path, *, named: str | None = None) -> None:
    """Raises AssertionError where a row changed, came or went."""
    tables, at_first = _AT_FIRST[state_dir]

    async def look(connection: SingleConnection) -> dict[str, str]:
        return await planted.state_of(connection, tables)

    now = asyncio.run(_as_admin(database_of(state_dir, named), look))
    changed = [table for table in tables if at_first[table] != now[table]]
    assert not changed, f"rows of the second tenant changed in {changed}"


def acts(state_dir: Path, *tables: str) -> None:
    """From now on rows of these may come and change: the second tenant itself does something."""
    for table in tables:
        for kept in _AT_FIRST[state_dir]:
            kept.pop(table, None)


def database_of(state_dir: Path, named: str | None = None) -> Database:
    state = open_state(state_dir)
    remembered = recall(state)
    dsn = database.address(
        state.root,
        run_dir=Path(remembered.run_dir or state.root / "run"),
        passfiles=state.passfiles,
        named=named,
    )
    assert dsn is not None
    return Database(admin_dsn=dsn, passfiles=state.passfiles)


async def _move_in(there: Database) -> tuple[dict[str, str], dict[str, str]]:
    await neighbour_rows.plant(there)
    await planted.plant_audit(there)

    async def plant(connection: SingleConnection) -> tuple[dict[str, str], dict[str, str]]:
        async with connection.transaction():
            for number, (slug, tool) in enumerate(SERVERS.items(), start=0x300):
                where = f"http://127.0.0.1:9/{MARK}"
                await connection.execute(_SERVER, TENANT, marked_id(number), slug, where)
                await connection.execute(_TOOL, TENANT, marked_id(number), tool)
        await planted.plant_entitlements(there, key="dev")
        tables = await planted.tables_of(connection, tuple(roles.SCHEMAS))
        for table in BY_ITSELF:
            del tables[table]
        return tables, await planted.state_of(connection, tables)

    return await _as_admin(there, plant)


async def _as_admin(there: Database, work: Callable[[SingleConnection], Awaitable[T]]) -> T:
    connection = await asyncpg.connect(there.admin_dsn, timeout=10)
    try:
        return await work(connection)
    finally:
        await connection.close()
