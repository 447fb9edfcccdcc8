"""What is read over all tenants, and what a look writes: server, epoch, ceiling, time.

One statement per method, each in a transaction of its own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.common.postgres.pool import Pool, tenant_tx
from services.entitlements.rows import Installation, PastOverride, Row, Settling, Token
from services.entitlements.store.changing import Changing, begun
from services.entitlements.store.states import override, read_lists, read_states, read_tokens

# `runs_on`: a restored copy has another system identifier, another timeline or another oid.
_INSTALLATION: Final = """
SELECT i.epoch::text AS epoch, i.revision, i.base_revision, i.clock_mark_s, i.ceiling, i.server,
       i.installation_id::text AS installation_id,
       s.system_identifier || ':' || c.timeline_id || ':' || d.oid AS runs_on
FROM entitlements.installation i, pg_control_system() s, pg_control_checkpoint() c, pg_database d
WHERE d.datname = current_database()
"""
_NEW_EPOCH: Final = """
UPDATE entitlements.installation
SET epoch = gen_random_uuid(), server = $1, revision = revision + 1
WHERE epoch = $2::uuid
"""
_SERVER_SEEN: Final = "UPDATE entitlements.installation SET server = $1 WHERE server = ''"
_TENANTS: Final = "SELECT id FROM entitlements.directory WHERE deleted_at IS NULL ORDER BY id"
_CHANGED: Final = "SELECT id, revision FROM entitlements.directory WHERE revision > $1"
_SETTLE: Final = "SELECT raised, others FROM entitlements.settle_known($1::jsonb, $2)"
_CEILING: Final = """
UPDATE entitlements.installation
SET revision = revision + 1, base_revision = revision + 1, ceiling = $1,
    clock_mark_s = greatest(clock_mark_s, $2)
"""
_MARK: Final = "UPDATE entitlements.installation SET clock_mark_s = greatest(clock_mark_s, $1)"
_HISTORY: Final = """
SELECT seq, id::text AS id, feature, effect, starts_at_s, ends_at_s, actor, reason, request_id,
       created_at_s
FROM entitlements.overrides WHERE tenant_id = $1 AND ($2 = 0 OR seq < $2)
ORDER BY seq DESC LIMIT $3
"""
_OVERRIDE_COLUMNS: Final = ("seq", "feature", "effect", "starts_at_s", "ends_at_s")


class Store:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def installation(self) -> Installation:
        async with self._pool.acquire() as connection:
            row = await connection.fetchrow(_INSTALLATION)
        if row is None:
            raise BehavryError("DEPENDENCY_UNAVAILABLE", "the installation row is missing")
        return Installation(**dict(row))

    async def see_server(self, server: str) -> None:
        async with self._pool.acquire() as connection:
            await connection.execute(_SERVER_SEEN, server)

    async def new_epoch(self, server: str, instead_of: str) -> None:
        async with self._pool.acquire() as connection:
            await connection.execute(_NEW_EPOCH, server, instead_of)

    async def tenants(self) -> list[TenantId]:
        async with self._pool.acquire() as connection:
            return [TenantId(str(row["id"])) for row in await connection.fetch(_TENANTS)]

    async def changed_since(self, revision: int) -> list[tuple[TenantId, int]]:
        """Each with its newest revision; deleted ones included."""
        async with self._pool.acquire() as connection:
            rows = await connection.fetch(_CHANGED, revision)
        return [(TenantId(str(row["id"])), row["revision"]) for row in rows]

    async def states(self, tenants: Sequence[TenantId], at_s: int) -> list[Row]:
        async with self._pool.acquire() as connection, connection.transaction():
            return await read_states(connection, tenants, at_s)

    async def settle(self, changes: Sequence[Settling], at_s: int) -> tuple[int, set[TenantId]]:
        """The revision that they are told by, and those of them that were not as they were known:
        they are to be read again.
        """
        said = [
            {
                "id": one.tenant,
                "known": one.known,
                "due": one.due_s,
                "entitled": sorted(one.entitled),
            }
            for one in changes
        ]
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(_SETTLE, json.dumps(said), at_s)
        if row is None:
            raise BehavryError("DEPENDENCY_UNAVAILABLE", "the installation row is missing")
        return row["raised"], {TenantId(str(other)) for other in row["others"]}

    async def new_ceiling(self, ceiling: str, now_s: int) -> None:
        async with self._pool.acquire() as connection:
            await connection.execute(_CEILING, ceiling, now_s)

    async def mark(self, now_s: int) -> None:
        async with self._pool.acquire() as connection:
            await connection.execute(_MARK, now_s)

    async def tokens(self) -> tuple[Token, ...]:
        """The installation's activated licences."""
        async with self._pool.acquire() as connection:
            return await read_tokens(connection)

    async def revocation_lists(self) -> list[str]:
        """The newest first."""
        async with self._pool.acquire() as connection:
            return await read_lists(connection)

    async def history(self, tenant: TenantId, *, before: int, size: int) -> list[PastOverride]:
        """The newest first, older than `before` (0: from the newest on)."""
        async with tenant_tx(self._pool, tenant) as connection:
            rows = await connection.fetch(_HISTORY, tenant, before, size)
        return [
            PastOverride(
                id=row["id"],
                row=override([row[name] for name in _OVERRIDE_COLUMNS]),
                actor=row["actor"],
                reason=row["reason"],
                request_id=row["request_id"],
                created_at_s=row["created_at_s"],
            )
            for row in rows
        ]

    @asynccontextmanager
    async def changing(self, tenant: TenantId | None) -> AsyncIterator[Changing]:
        """A transaction in which one writer, and no other, raises the revision."""
        if tenant is None:
            async with self._pool.acquire() as connection, connection.transaction():
                yield await begun(connection)
        else:
            async with tenant_tx(self._pool, tenant) as connection:
                yield await begun(connection)
