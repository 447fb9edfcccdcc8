"""Databases that are used again: emptying one takes a tenth of the time in which one is copied.

One that comes back gets the rows of a new one and loses all others; where something else than rows
was changed in it, it is not lent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import asyncpg

from services.common.postgres.connection import SingleConnection
from tests.fakes.postgres import Database, Plant, Server

_Told = TypeVar("_Told")
#: What a database is of: the schemas of services, and what is planted in them.
Contents = tuple[tuple[str, ...], tuple[Plant, ...]]

_TABLES: Final = """
SELECT n.nspname AS schema, c.relname AS table
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname = ANY ($1) AND c.relname <> 'behavry_migrations'
ORDER BY 1, 2"""
_COLUMNS: Final = """
SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"""
_SEQUENCES: Final = """
SELECT format('%I.%I', schemaname, sequencename) AS name, start_value, last_value
FROM pg_sequences WHERE schemaname = ANY ($1)"""
#: Another one after every statement that defines something, and after none that writes rows.
_DEFINITIONS: Final = """
SELECT md5(string_agg(x, ',' ORDER BY x)) FROM (
    SELECT 'c' || oid || '.' || xmin FROM pg_class
        WHERE relnamespace >= 16384 OR relnamespace = 'public'::regnamespace
    UNION ALL SELECT 'a' || a.attrelid || '.' || a.attnum || '.' || a.xmin
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relnamespace >= 16384
    UNION ALL SELECT 'f' || oid || '.' || xmin FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 't' || oid || '.' || xmin FROM pg_trigger
    UNION ALL SELECT 'p' || oid || '.' || xmin FROM pg_policy
    UNION ALL SELECT 'k' || oid || '.' || xmin FROM pg_constraint WHERE oid >= 16384
    UNION ALL SELECT 'n' || oid || '.' || xmin FROM pg_namespace
    UNION ALL SELECT 'e' || oid || '.' || xmin FROM pg_extension
    UNION ALL SELECT 's' || setrole || '.' || setconfig::text FROM pg_db_role_setting s
        JOIN pg_database d ON d.oid = s.setdatabase AND d.datname = current_database()
    UNION ALL SELECT 'd' || coalesce(datacl::text, '') || datconnlimit || datallowconn
        FROM pg_database WHERE datname = current_database()
) AS defined (x)"""
_ALONE: Final = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


@dataclass(frozen=True, kw_only=True)
class _New:
    """What a new one is: its definitions as a hash, its rows as SQL that leaves no others."""

    definitions: str
    rows: str


@dataclass(kw_only=True)
class Lending:
    """Of one server, for as long as that runs."""

    server: Server
    _new: dict[Contents, _New] = field(default_factory=dict)
    _idle: dict[Contents, list[Database]] = field(default_factory=dict)
    _lent: dict[str, Contents] = field(default_factory=dict)
    _found: dict[Any, Any] = field(default_factory=dict)

    def lend(self, services: tuple[str, ...], plants: tuple[Plant, ...] = ()) -> Database:
        """Give it back by `take_back`."""
        contents = (services, plants)
        idle = self._idle.setdefault(contents, [])
        if idle:
            database = idle.pop()
        else:
            database = self.server.create_database(services, plants)
            if contents not in self._new:
                self._new[contents] = looked_at(database, lambda c: _seen(c, services))
        self._lent[database.name] = contents
        return database

    def take_back(self, database: Database) -> None:
        """Ends what is still connected to it."""
        contents = self._lent.pop(database.name)
        new = self._new[contents]

        async def emptied(connection: SingleConnection) -> bool:
            await connection.execute(_ALONE)
            if await connection.fetchval(_DEFINITIONS) != new.definitions:
                return False
            await connection.execute(new.rows)
            return True

        if looked_at(database, emptied):
            self._idle[contents].append(database)
        else:
            self.server.drop_database(database)

    def once(
        self, database: Database, work: Callable[[SingleConnection], Awaitable[_Told]]
    ) -> _Told:
        """What is found in a new one, kept for all that hold the same."""
        key = (self._lent[database.name], work)
        if key not in self._found:
            self._found[key] = looked_at(database, work)
        found: _Told = self._found[key]
        return found


def looked_at(database: Database, work: Callable[[SingleConnection], Awaitable[_Told]]) -> _Told:
    """What is found by the superuser; for fixtures outside any loop."""

    async def run() -> _Told:
        connection = await asyncpg.connect(database.admin_dsn)
        try:
            return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


async def _seen(connection: SingleConnection, schemas: tuple[str, ...]) -> _New:
    """References, triggers and row-level security rest while rows are put back."""
    gone, there = [], []
    for row in await connection.fetch(_TABLES, list(schemas)):
        table = f'"{row["schema"]}"."{row["table"]}"'
        gone.append(f"DELETE FROM {table}")
        columns = await connection.fetchval(_COLUMNS, table)
        rows = await connection.fetchval(
            f"SELECT quote_literal(json_agg(t)::text) FROM {table} t"  # the catalogue's
        )
        if rows:
            there.append(
                f"INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE"
                f" SELECT {columns} FROM json_populate_recordset(NULL::{table}, {rows})"
            )
    for one in await connection.fetch(_SEQUENCES, list(schemas)):
        used = one["last_value"] is not None
        at = one["last_value"] if used else one["start_value"]
        there.append(f"SELECT setval('{one['name']}', {at}, {str(used).lower()})")
    resting = "SET session_replication_role = replica"
    definitions = await connection.fetchval(_DEFINITIONS)
    return _New(definitions=definitions, rows=";\n".join([resting, *gone, *there]))
