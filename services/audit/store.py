"""The writer's SQL: one statement per method, columns listed, parameters bound. Decides nothing;
plan.py says what is written, writer.py when, and what a failure means.

A transaction names its tenant and takes the tenant's advisory lock in its first statement. What it
then reads comes in later statements: one that had to wait for the lock keeps the snapshot from
before its wait.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from uuid import UUID

import asyncpg

from services.audit.chain import Head
from services.audit.plan import Item, MarkKey, Plan, Row
from services.audit.record import SEPARATOR
from services.common.postgres.connection import Connection
from services.common.postgres.pool import Pool

#: Tables without a tenant_id, which row-level security therefore does not cover.
WITHOUT_TENANT: Final = frozenset({"sources", "source_positions", "behavry_migrations"})

#: No write transaction takes longer.
WITHIN_S: Final = 5.0

# One round trip. The tenant and the lock are ours to write: a UUID and a number.
_BEGIN = """
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT set_config('behavry.tenant_id', '{tenant}', true),
       set_config('synchronous_commit', 'on', true),
       set_config('statement_timeout', '5s', true),
       set_config('idle_in_transaction_session_timeout', '5s', true),
       pg_advisory_xact_lock({lock})
"""

_LOAD = """
SELECT chain, incarnation, seq, event_hash, committed_at, NULL::uuid AS source, NULL::uuid AS boot
FROM audit.chain_heads
WHERE tenant_id = $1 AND chain = ANY($2::text[])
UNION ALL
SELECT NULL, NULL, m.n, NULL, NULL, m.source, m.boot
FROM unnest($3::uuid[], $4::uuid[]) AS k (source, boot)
JOIN audit.source_marks m ON m.tenant_id = $1 AND m.source = k.source AND m.boot = k.boot
"""

_FIND = """
SELECT event_id, body FROM audit.events WHERE tenant_id = $1 AND event_id = ANY($2::uuid[])
"""

_REJECT = """
INSERT INTO audit.rejected_records
    (tenant_id, source, boot, n, body_sha256, peer, reason, body, rejected_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT DO NOTHING
"""

_APPEND = """
SELECT audit.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
                    $19, $20, $21, $22, $23, $24, $25)
"""
_FENCED = "BV001"

_OPEN_CHAINS = """
INSERT INTO audit.chain_heads (tenant_id, chain, incarnation, seq, event_hash, committed_at)
SELECT $1, u.chain, u.incarnation, u.seq, u.event_hash, u.committed_at
FROM unnest($2::text[], $3::integer[], $4::bigint[], $5::bytea[], $6::bigint[])
    AS u (chain, incarnation, seq, event_hash, committed_at)
ON CONFLICT DO NOTHING
"""

_FIRST_MARKS = """
INSERT INTO audit.source_marks (tenant_id, source, boot, n)
SELECT $1, u.source, u.boot, u.n FROM unnest($2::uuid[], $3::uuid[], $4::bigint[])
    AS u (source, boot, n)
ON CONFLICT DO NOTHING
"""

_SOURCE = """
SELECT s.peer, p.pos FROM audit.sources s JOIN audit.source_positions p USING (source)
WHERE s.source = $1
"""
_ADD_SOURCE = """
INSERT INTO audit.sources (source, peer, opened_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
"""
_ADD_POSITION = """
INSERT INTO audit.source_positions (source, boot, pos) VALUES ($1, $2, 0) ON CONFLICT DO NOTHING
"""
_MOVE_POSITION = """
UPDATE audit.source_positions SET pos = $4, boot = $2 WHERE source = $1 AND pos = $3
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Heads and marks as the database holds them; what is missing has no record yet."""

    heads: dict[str, Head]
    marks: dict[MarkKey, int]


class CommitRefused(Exception):
    """COMMIT answered with something else: nothing of the transaction was kept."""


class Fenced(Exception):
    """A head or mark was not where it had been read: somebody wrote without the lock."""


@asynccontextmanager
async def transaction(pool: Pool, tenant: str) -> AsyncIterator[Connection]:
    """One tenant's write transaction under its lock. Left by an exception, nothing is kept."""
    async with pool.acquire() as connection:
        try:
            await connection.execute(_BEGIN.format(tenant=UUID(tenant), lock=lock_of(tenant)))
            yield connection
            if await connection.execute("COMMIT") != "COMMIT":
                raise CommitRefused
        finally:
            if not connection.is_closed() and connection.is_in_transaction():
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await connection.execute("ROLLBACK")


@lru_cache(maxsize=4_096)
def lock_of(tenant: str) -> int:
    digest = hashlib.sha256(b"behavry/audit/" + UUID(tenant).bytes).digest()
    return int.from_bytes(digest[:8], signed=True)


async def load(
    connection: Connection, tenant: str, chains: Collection[str], marks: Collection[MarkKey]
) -> Ends:
    rows = await connection.fetch(
        _LOAD, tenant, list(chains), [source for source, _ in marks], [boot for _, boot in marks]
    )
    ends = Ends(heads={}, marks={})
    for chain, incarnation, seq, event_hash, committed_at, source, boot in rows:
        if chain is None:
            ends.marks[str(source), str(boot)] = seq
        else:
            ends.heads[chain] = Head(chain, incarnation, seq, event_hash, committed_at)
    return ends


async def find(connection: Connection, tenant: str, ids: Collection[str]) -> dict[str, bytes]:
    """Bodies of those of the ids that are stored."""
    rows = await connection.fetch(_FIND, tenant, list(ids))
    return {str(row["event_id"]): row["body"] for row in rows}


async def reject(connection: Connection, tenant: str, item: Item, *, now_us: int) -> bool:
    """Keeps a record that cannot be taken; False if it was kept before."""
    done = await connection.execute(
        _REJECT,
        tenant,
        item.source,
        item.boot,
        item.n,
        hashlib.sha256(item.body).digest(),
        item.peer,
        item.rejection,
        item.body,
        now_us,
    )
    return done == "INSERT 0 1"


async def write(connection: Connection, tenant: str, plan: Plan) -> None:
    """The whole plan. Raises Fenced unless every head and mark was where the plan found it."""
    new_heads = [new for old, new in plan.heads if not old.seq]
    if new_heads:
        await _open_chains(connection, tenant, new_heads)
    new_marks = [(key, n) for key, old, n in plan.marks if not old]
    if new_marks:
        await _first_marks(connection, tenant, new_marks)
    await append(connection, tenant, plan)


async def append(connection: Connection, tenant: str, plan: Plan) -> None:
    """A plan whose chains and marks exist already; outside a transaction it is one, with the
    tenant's lock. Raises Fenced like `write`.
    """
    try:
        await connection.execute(
            _APPEND,
            tenant,
            lock_of(tenant),
            *_head_arrays([(old, new) for old, new in plan.heads if old.seq]),
            *_mark_arrays([(key, old, n) for key, old, n in plan.marks if old]),
            *_event_arrays(plan.rows),
            *_part_arrays(plan.rows),
            timeout=WITHIN_S,
        )
    except asyncpg.PostgresError as failure:
        if failure.sqlstate == _FENCED:
            raise Fenced from failure
        raise


async def _open_chains(connection: Connection, tenant: str, heads: Sequence[Head]) -> None:
    chain, incarnation, seq, event_hash, committed_at = _transposed(heads, 5)
    done = await connection.execute(
        _OPEN_CHAINS, tenant, chain, incarnation, seq, event_hash, committed_at
    )
    if done != f"INSERT 0 {len(heads)}":
        raise Fenced


async def _first_marks(
    connection: Connection, tenant: str, marks: Sequence[tuple[MarkKey, int]]
) -> None:
    done = await connection.execute(
        _FIRST_MARKS,
        tenant,
        [key[0] for key, _ in marks],
        [key[1] for key, _ in marks],
        [n for _, n in marks],
    )
    if done != f"INSERT 0 {len(marks)}":
        raise Fenced


async def source(connection: Connection, source_id: str) -> tuple[str, int] | None:
    """(the peer that owns it, where to resend from)"""
    row = await connection.fetchrow(_SOURCE, source_id)
    return None if row is None else (row["peer"], row["pos"])


async def add_source(
    connection: Connection, source_id: str, boot: str, peer: str, *, now_us: int
) -> None:
    async with connection.transaction():
        await connection.execute(_ADD_SOURCE, source_id, peer, now_us)
        await connection.execute(_ADD_POSITION, source_id, boot)


async def move_position(
    connection: Connection, source_id: str, boot: str, *, old: int, new: int
) -> bool:
    """False if it was not at `old`."""
    done = await connection.execute(_MOVE_POSITION, source_id, boot, old, new)
    return done == "UPDATE 1"


def _event_arrays(rows: Sequence[Row]) -> list[list[object]]:
    """Few arrays: the driver looks at each element of each."""
    return [
        [link.chain for _, link in rows],
        [link.incarnation for _, link in rows],
        [link.seq for _, link in rows],
        [link.committed_at_us for _, link in rows],
        [item.event_id for item, _ in rows],
        [item.body for item, _ in rows],
        [link.previous_hash + link.event_hash for _, link in rows],
        [SEPARATOR.join(item.columns) for item, _ in rows],
    ]


def _part_arrays(rows: Sequence[Row]) -> list[list[object]]:
    return _transposed([(item.event_id, *part) for item, _ in rows for part in item.parts], 5)


def _head_arrays(moved: Sequence[tuple[Head, Head]]) -> list[list[object]]:
    return _transposed(
        [
            (new.chain, old.seq, old.event_hash, new.seq, new.event_hash, new.committed_at_us)
            for old, new in moved
        ],
        6,
    )


def _mark_arrays(moved: Sequence[tuple[MarkKey, int, int]]) -> list[list[object]]:
    return _transposed([(source, boot, old, n) for (source, boot), old, n in moved], 4)


def _transposed(rows: Sequence[Sequence[object]], width: int) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[]] * width
