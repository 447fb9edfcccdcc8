"""The reader's SQL: lists, single decisions, heads, and rows for verification. Decides nothing; row
by row it hands out what is stored, one tenant per transaction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from services.audit.chain import Head
from services.audit.filters import Filter, Term, conditions
from services.audit.record import DECISION_TYPES, OUTCOME_TYPES, Columns
from services.audit.verify import Row, StoredPart
from services.common.postgres.connection import Connection
from services.common.postgres.pool import Pool, tenant_tx
from services.common.postgres.windows import WINDOW, Page, page_of

#: What a list shows unless it is asked for types: decisions, and refusals before a decision.
LISTED_TYPES: Final = (*DECISION_TYPES, "auth.failed", "rate.limited")
FETCH_ROWS: Final = 500
#: No UUIDv7 comes after it for the next eight thousand years.
_AFTER_ALL: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"

_EVENT: Final = (
    "tenant_id, chain, incarnation, seq, committed_at, event_id, body, previous_hash, event_hash"
)
#: Rows are looked at in the index's order, and no more of them than a window has.
_LIST = f"""
SELECT {_EVENT}, kept, place = $4 AS edge
FROM (SELECT {_EVENT}, {{kept}} AS kept, row_number() OVER (ORDER BY event_id DESC) AS place
      FROM audit.events
      WHERE tenant_id = $1 AND event_id < $2{{found}}
      ORDER BY event_id DESC LIMIT $4) looked_at
WHERE kept OR place = $4
ORDER BY event_id DESC LIMIT $3
"""  # noqa: S608  # conditions come from filters.py, every value is bound
_OUTCOMES = f"""
SELECT {_EVENT}, decision FROM audit.events
WHERE tenant_id = $1 AND decision = ANY($2::uuid[]) AND type = ANY($3::text[])
"""  # noqa: S608  # constants only
_TRACE = f"""
SELECT {_EVENT} FROM audit.events
WHERE tenant_id = $1 AND (event_id = $2 OR decision = $2) ORDER BY event_id
"""  # noqa: S608  # constants only
_DECISION_OF = """
SELECT coalesce(decision, event_id) FROM audit.events WHERE tenant_id = $1 AND event_id = $2
"""
_INPUT = """
SELECT stored FROM audit.parts WHERE tenant_id = $1 AND event_id = $2 AND kind = 'input'
"""
_HEADS = """
SELECT chain, incarnation, seq, event_hash, committed_at FROM audit.chain_heads
WHERE tenant_id = $1 ORDER BY chain
"""
_ROWS = """
SELECT chain, incarnation, seq, committed_at, event_id, body, previous_hash, event_hash, type,
       decision, agent, agent_name, session, server, tool, action, verdict, reason
FROM audit.events
WHERE tenant_id = $1 AND ($2::text IS NULL OR chain = $2)
ORDER BY chain, incarnation, seq, committed_at
"""
_PARTS = """
SELECT event_id, kind, salt, stored FROM audit.parts
WHERE tenant_id = $1 AND event_id = ANY($2::uuid[])
"""


async def list_events(
    pool: Pool,
    tenant: str,
    filter_: Filter,
    *,
    before: str | None,
    size: int,
    window: int = WINDOW,
) -> Page[asyncpg.Record]:
    """Newest first, from the first one before the id `before`."""
    if not filter_.names_types:
        filter_ = filter_.adding(Term("type", LISTED_TYPES, negated=False))
    where = conditions(filter_, 5)
    sql = _LIST.format(found=where.found, kept=where.kept)
    async with tenant_tx(pool, tenant) as connection:
        rows = await connection.fetch(
            sql, tenant, before or _AFTER_ALL, size + 1, window, *where.values
        )
    return page_of(rows, size=size, id="event_id")


async def outcomes(
    pool: Pool, tenant: str, decisions: Collection[str]
) -> dict[str, asyncpg.Record]:
    """By decision."""
    async with tenant_tx(pool, tenant) as connection:
        rows = await connection.fetch(_OUTCOMES, tenant, list(decisions), list(OUTCOME_TYPES))
    return {str(row["decision"]): row for row in rows}


async def trace(pool: Pool, tenant: str, id: str) -> tuple[list[asyncpg.Record], bytes]:
    """All records of the decision that this id names or belongs to, and the decided input."""
    async with tenant_tx(pool, tenant) as connection:
        decision = await connection.fetchval(_DECISION_OF, tenant, id)
        if decision is None:
            return [], b""
        rows = await connection.fetch(_TRACE, tenant, decision)
        decided: bytes | None = await connection.fetchval(_INPUT, tenant, decision)
    return rows, decided or b""


async def heads(connection: Connection, tenant: str) -> list[Head]:
    return [Head(*row) for row in await connection.fetch(_HEADS, tenant)]


@asynccontextmanager
async def snapshot(pool: Pool, tenant: str) -> AsyncIterator[Connection]:
    """One moment of the store: heads and rows that belong together, while writers go on."""
    async with (
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute("SELECT set_config('behavry.tenant_id', $1, true)", tenant)
        yield connection


async def rows(
    connection: Connection, tenant: str, chain: str | None
) -> AsyncIterator[list[tuple[Row, list[StoredPart]]]]:
    """Groups of rows with their parts, ordered by chain and seq."""
    cursor = await connection.cursor(_ROWS, tenant, chain)
    while group := await cursor.fetch(FETCH_ROWS):
        parts = await _parts(connection, tenant, [row["event_id"] for row in group])
        yield [(_row(row), parts.get(str(row["event_id"]), [])) for row in group]


async def _parts(
    connection: Connection, tenant: str, ids: Sequence[Any]
) -> dict[str, list[StoredPart]]:
    found: dict[str, list[StoredPart]] = {}
    for event_id, kind, salt, stored in await connection.fetch(_PARTS, tenant, ids):
        part = StoredPart(str(event_id), kind, salt, stored)
        found.setdefault(part.event_id, []).append(part)
    return found


def _row(row: asyncpg.Record) -> Row:
    chain, incarnation, seq, committed_at, event_id, body, previous_hash, event_hash, *rest = row
    derived = Columns(*("" if value is None else str(value) for value in rest))
    return Row(
        chain, incarnation, seq, committed_at, str(event_id), body, previous_hash, event_hash,
        derived,
    )  # fmt: skip
