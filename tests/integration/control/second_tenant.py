"""A second tenant that has of everything what the first one has: each row copied, with ids of its
own and names that nobody else uses. Tests look for both in what the first tenant is told.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

from services.common.postgres.connection import SingleConnection

MARK: Final = "zz7c1e-"
#: Columns whose text is somebody's own words; the others are kinds, states and the like.
_WORDS: Final = frozenset({
    "name", "label", "username", "email", "slug", "server", "tool", "reason", "resource", "subject",
    "agent_name", "url", "error",
})  # fmt: skip
_TABLES: Final = """
SELECT c.relname AS name FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'control'
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
WHERE c.relkind = 'r' ORDER BY 1"""
_COLUMNS: Final = """
SELECT a.attname AS name, t.typname AS type FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped
  AND a.attidentity = '' AND a.attgenerated = '' ORDER BY a.attnum"""
#: The outbox is audit's way out, the keys of requests are worth nothing elsewhere.
_LEFT_OUT: Final = frozenset({"outbox", "idempotency"})


@dataclass(kw_only=True)
class Neighbour:
    """The second tenant. `ids`: of the rows of each table; `texts`: what must not be seen."""

    tenant: UUID
    tables: list[str]
    ids: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _map: dict[UUID, UUID] = field(default_factory=dict)

    @property
    def unseen(self) -> set[str]:
        return {MARK, str(self.tenant)} | {one for ids in self.ids.values() for one in ids}

    def own(self, id: UUID) -> UUID:
        return self._map.setdefault(id, uuid4())


async def moved_in(connection: SingleConnection, first: str) -> Neighbour:
    """References and triggers rest meanwhile; checks do not."""
    names = [row["name"] for row in await connection.fetch(_TABLES)]
    tables = [name for name in names if name not in _LEFT_OUT]
    there = Neighbour(tenant=uuid4(), tables=tables)
    there._map[UUID(first)] = there.tenant
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(
        "INSERT INTO control.tenants (id, slug, name, status, created_at)"
        " VALUES ($1, $2, $2, 'active', now())",
        there.tenant, f"{MARK}tenant",
    )  # fmt: skip
    for table in tables:
        await _copy(connection, there, table, first)
    await connection.execute("SET session_replication_role = DEFAULT")
    return there


async def _copy(connection: SingleConnection, there: Neighbour, table: str, first: str) -> None:
    columns = await connection.fetch(_COLUMNS, f"control.{table}")
    names = ", ".join(f'"{column["name"]}"' for column in columns)
    slots = ", ".join(f"${at}" for at in range(1, len(columns) + 1))
    rows = await connection.fetch(
        f"SELECT {names} FROM control.{table} WHERE tenant_id = $1",  # the catalogue's
        first,
    )
    for row in rows:
        values = [_value(there, table, c["name"], c["type"], row[c["name"]]) for c in columns]
        made = dict(zip([c["name"] for c in columns], values, strict=True))
        if "id" in made:
            there.ids[table].append(str(made["id"]))
        await connection.execute(
            f"INSERT INTO control.{table} ({names}) VALUES ({slots})",  # as above
            *values,
        )


def _value(there: Neighbour, table: str, column: str, kind: str, value: Any) -> Any:
    match kind:
        case "uuid" if value is not None:
            return there.own(value)
        case "bytea" if value is not None and column.endswith("sha256"):
            return os.urandom(32)
        case "text" if (table, column) == ("api_keys", "id"):
            return os.urandom(8).hex()
        case "text" if column in _WORDS and value:
            return MARK + value
        case _:
            return value


async def state_of(connection: SingleConnection, there: Neighbour) -> dict[str, list[str]]:
    """Every row of the second tenant, as text."""
    return {
        table: [
            row["row"]
            for row in await connection.fetch(
                f"SELECT t::text AS row FROM control.{table} t"  # the catalogue's
                " WHERE tenant_id = $1 ORDER BY 1",
                there.tenant,
            )
        ]
        for table in there.tables
    }
