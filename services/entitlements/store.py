"""Plans, overrides and licences in PostgreSQL: what is read of many tenants, and each row written.

One statement per method; transactions are their callers'. A change raises the installation's
revision first, in its own transaction, so that writers come one after the other.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.common.postgres.pool import Pool, tenant_tx
from services.entitlements.overrides import Effect, Override

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
_STATES: Final = "SELECT * FROM entitlements.states($1::uuid[], $2)"
_SETTLE: Final = "SELECT entitlements.settle($1::jsonb, $2)"
_CEILING: Final = """
UPDATE entitlements.installation
SET revision = revision + 1, base_revision = revision + 1, ceiling = $1,
    clock_mark_s = greatest(clock_mark_s, $2)
"""
_MARK: Final = "UPDATE entitlements.installation SET clock_mark_s = greatest(clock_mark_s, $1)"
_TOKENS: Final = """
SELECT token, activated_at_s FROM entitlements.installation_licenses
WHERE NOT removed ORDER BY token_sha256
"""
_LISTS: Final = "SELECT token FROM entitlements.revocation_lists ORDER BY serial DESC LIMIT 20"
_RAISE: Final = (
    "UPDATE entitlements.installation SET revision = revision + 1 RETURNING revision, base_revision"
)
_BASE: Final = "UPDATE entitlements.installation SET base_revision = $1"
_ENTER: Final = """
INSERT INTO entitlements.directory (id, revision) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING
"""
_PUT: Final = """
INSERT INTO entitlements.tenants (tenant_id, slug, plan, plan_expires_at, created_at, revision,
                                  plan_set_at_s, settled_at_s)
VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
"""
_TOUCH: Final = "UPDATE entitlements.directory SET revision = $2 WHERE id = $1"
_DELETE: Final = """
UPDATE entitlements.directory SET revision = $2, deleted_at = $3
WHERE id = $1 AND deleted_at IS NULL
"""
_SETTLED: Final = """
UPDATE entitlements.tenants SET revision = $2, settled_at_s = greatest(settled_at_s, $3),
    entitled = $4 WHERE tenant_id = $1
"""
_SET_PLAN: Final = """
UPDATE entitlements.tenants SET plan = $2, plan_expires_at = $3, plan_set_at_s = $4
WHERE tenant_id = $1
"""
_PLAN_ROW: Final = """
INSERT INTO entitlements.plan_history (tenant_id, plan, expires_at_s, actor, reason, request_id,
                                       created_at_s, revision)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""
_OVERRIDE_ROW: Final = """
INSERT INTO entitlements.overrides (tenant_id, id, feature, effect, starts_at_s, ends_at_s, actor,
                                    reason, request_id, created_at_s, revision)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
_HISTORY: Final = """
SELECT seq, id::text AS id, feature, effect, starts_at_s, ends_at_s, actor, reason, request_id,
       created_at_s
FROM entitlements.overrides WHERE tenant_id = $1 AND ($2 = 0 OR seq < $2)
ORDER BY seq DESC LIMIT $3
"""
_KEEP_TENANTS: Final = """
INSERT INTO entitlements.licenses (tenant_id, token_sha256, token, activated_at_s)
VALUES ($1, $2, $3, $4)
ON CONFLICT (tenant_id, token_sha256) DO UPDATE SET removed = false, activated_at_s = $4,
    token = excluded.token
"""
_KEEP_OURS: Final = """
INSERT INTO entitlements.installation_licenses (token_sha256, token, activated_at_s)
VALUES ($1, $2, $3)
ON CONFLICT (token_sha256) DO UPDATE SET removed = false, activated_at_s = $3,
    token = excluded.token
"""
_DROP_TENANTS: Final = """
UPDATE entitlements.licenses SET removed = true WHERE tenant_id = $1 AND token_sha256 = ANY ($2)
"""
_DROP_OURS: Final = """
UPDATE entitlements.installation_licenses SET removed = true WHERE token_sha256 = ANY ($1)
"""
_KEEP_LIST: Final = """
INSERT INTO entitlements.revocation_lists (serial, token, stored_at_s) VALUES ($1, $2, $3)
ON CONFLICT (serial) DO UPDATE SET token = excluded.token, stored_at_s = $3
"""
_ANSWERED: Final = """
SELECT asked, answer FROM entitlements.requests
WHERE tenant_id = $1 AND request_id = $2 AND created_at_s > $3
"""
_FORGET: Final = "DELETE FROM entitlements.requests WHERE tenant_id = $1 AND created_at_s <= $2"
_ANSWER: Final = """
INSERT INTO entitlements.requests (tenant_id, request_id, asked, answer, created_at_s)
VALUES ($1, $2, $3, $4, $5)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    epoch: str
    revision: int
    base_revision: int
    clock_mark_s: int
    ceiling: str
    #: On which server it was seen last, and on which it runs.
    server: str
    runs_on: str
    installation_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A raw licence, and when it was activated."""

    text: str
    activated_at_s: int

    def __repr__(self) -> str:
        return f"Token(activated_at_s={self.activated_at_s})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is stored of a tenant; nothing of its tokens is believed yet."""

    tenant: TenantId
    deleted: bool
    revision: int
    plan: str
    plan_expires_at_s: int | None
    plan_set_at_s: int
    settled_at_s: int
    entitled: frozenset[str]
    overrides: tuple[Override, ...]
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settling:
    """A tenant whose changes by time have come, or that has gained features."""

    tenant: TenantId
    due_s: int
    entitled: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Who caused a row, and when it became part of which revision."""

    actor: str
    reason: str
    request_id: str
    now_s: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PastOverride:
    id: str
    row: Override
    actor: str
    reason: str
    request_id: str
    created_at_s: int


class Store:
    """Reads over all tenants, each in a transaction of its own."""

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

    async def settle(self, changes: Sequence[Settling], at_s: int) -> None:
        said = [
            {"id": one.tenant, "due": one.due_s, "entitled": sorted(one.entitled)}
            for one in changes
        ]
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_SETTLE, json.dumps(said), at_s)

    async def new_ceiling(self, ceiling: str, now_s: int) -> None:
        async with self._pool.acquire() as connection:
            await connection.execute(_CEILING, ceiling, now_s)

    async def mark(self, now_s: int) -> None:
        async with self._pool.acquire() as connection:
            await connection.execute(_MARK, now_s)

    async def tokens(self) -> tuple[Token, ...]:
        """The installation's activated licences."""
        async with self._pool.acquire() as connection:
            return await _tokens(connection)

    async def revocation_lists(self) -> list[str]:
        """The newest first."""
        async with self._pool.acquire() as connection:
            return await _lists(connection)

    async def history(self, tenant: TenantId, *, before: int, size: int) -> list[PastOverride]:
        """The newest first, older than `before` (0: from the newest on)."""
        async with tenant_tx(self._pool, tenant) as connection:
            rows = await connection.fetch(_HISTORY, tenant, before, size)
        return [
            PastOverride(
                id=row["id"],
                row=_override([row[name] for name in _OVERRIDE_COLUMNS]),
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
                yield await _begun(connection)
        else:
            async with tenant_tx(self._pool, tenant) as connection:
                yield await _begun(connection)


async def _begun(connection: Connection) -> Changing:
    row = await connection.fetchrow(_RAISE)
    if row is None:
        raise BehavryError("DEPENDENCY_UNAVAILABLE", "the installation row is missing")
    return Changing(connection, revision=row["revision"], base_revision=row["base_revision"])


@dataclass(frozen=True, slots=True)
class Changing:
    """What may be written in a transaction that has raised the revision."""

    connection: Connection
    revision: int
    base_revision: int

    async def state(self, tenant: TenantId, now_s: int) -> Row | None:
        rows = await read_states(self.connection, [tenant], now_s)
        return rows[0] if rows else None

    async def enter(
        self, tenant: TenantId, *, slug: str, plan: str, expires_at_s: int, now_s: int
    ) -> bool:
        """Whether the tenant is new."""
        entered = await self.connection.execute(_ENTER, tenant, self.revision)
        if not entered.endswith(" 1"):
            return False
        ends, begun = _stamp(expires_at_s), _stamp(now_s)
        await self.connection.execute(_PUT, tenant, slug, plan, ends, begun, self.revision, now_s)
        return True

    async def delete(self, tenant: TenantId, now_s: int) -> None:
        await self.connection.execute(_DELETE, tenant, self.revision, _stamp(now_s))

    async def settled(self, tenant: TenantId, now_s: int, entitled: frozenset[str]) -> None:
        """The tenant is part of this revision, and has had these features."""
        await self.connection.execute(_SETTLED, tenant, self.revision, now_s, sorted(entitled))
        await self.connection.execute(_TOUCH, tenant, self.revision)

    async def set_plan(
        self,
        tenant: TenantId,
        plan: str,
        expires_at_s: int | None,
        counts_from_s: int,
        written: Written,
    ) -> None:
        ends = None if expires_at_s is None else _stamp(expires_at_s)
        await self.connection.execute(_SET_PLAN, tenant, plan, ends, counts_from_s)
        await self.connection.execute(
            _PLAN_ROW,
            tenant,
            plan,
            expires_at_s,
            written.actor,
            written.reason,
            written.request_id,
            written.now_s,
            written.revision,
        )

    async def add_override(
        self, tenant: TenantId, id: str, row: Override, written: Written
    ) -> None:
        await self.connection.execute(
            _OVERRIDE_ROW,
            tenant,
            id,
            row.feature,
            row.effect.value,
            row.starts_at_s,
            row.ends_at_s,
            written.actor,
            written.reason,
            written.request_id,
            written.now_s,
            written.revision,
        )

    async def keep_license(
        self, tenant: TenantId | None, token: str, token_sha256: str, counts_from_s: int
    ) -> None:
        if tenant is None:
            await self.connection.execute(_KEEP_OURS, token_sha256, token, counts_from_s)
        else:
            values = (tenant, token_sha256, token, counts_from_s)
            await self.connection.execute(_KEEP_TENANTS, *values)

    async def drop_licenses(self, tenant: TenantId | None, token_sha256s: Sequence[str]) -> None:
        if tenant is None:
            await self.connection.execute(_DROP_OURS, list(token_sha256s))
        else:
            await self.connection.execute(_DROP_TENANTS, tenant, list(token_sha256s))

    async def keep_revocations(self, serial: int, token: str, now_s: int) -> None:
        await self.connection.execute(_KEEP_LIST, serial, token, now_s)

    async def tokens(self) -> tuple[Token, ...]:
        """The installation's activated licences."""
        return await _tokens(self.connection)

    async def revocation_lists(self) -> list[str]:
        """The newest first."""
        return await _lists(self.connection)

    async def raise_base(self) -> None:
        """What changed concerns every tenant."""
        await self.connection.execute(_BASE, self.revision)

    async def answered(
        self, tenant: TenantId, request_id: str, since_s: int
    ) -> tuple[bytes, bytes] | None:
        """(what was asked, the answer), if the request came after `since_s`."""
        row = await self.connection.fetchrow(_ANSWERED, tenant, request_id, since_s)
        return (row["asked"], row["answer"]) if row else None

    async def forget_answers(self, tenant: TenantId, until_s: int) -> None:
        await self.connection.execute(_FORGET, tenant, until_s)

    async def answer(
        self, tenant: TenantId, request_id: str, *, asked: bytes, answer: bytes, now_s: int
    ) -> None:
        await self.connection.execute(_ANSWER, tenant, request_id, asked, answer, now_s)


async def _tokens(connection: Connection) -> tuple[Token, ...]:
    rows = await connection.fetch(_TOKENS)
    return tuple(Token(text=row["token"], activated_at_s=row["activated_at_s"]) for row in rows)


async def _lists(connection: Connection) -> list[str]:
    return [row["token"] for row in await connection.fetch(_LISTS)]


_OVERRIDE_COLUMNS: Final = ("seq", "feature", "effect", "starts_at_s", "ends_at_s")


async def read_states(connection: Connection, tenants: Sequence[TenantId], at_s: int) -> list[Row]:
    return [_row(record) for record in await connection.fetch(_STATES, list(tenants), at_s)]


def _row(record: Any) -> Row:
    expires = record["plan_expires_at"]
    tokens = json.loads(record["licenses"] or "[]")
    return Row(
        tenant=TenantId(str(record["id"])),
        deleted=record["deleted"],
        revision=record["revision"],
        plan=record["plan"],
        plan_expires_at_s=int(expires.timestamp()) if expires else None,
        plan_set_at_s=record["plan_set_at_s"],
        settled_at_s=record["settled_at_s"],
        entitled=frozenset(record["entitled"]),
        overrides=tuple(_override(values) for values in json.loads(record["overrides"] or "[]")),
        tokens=tuple(Token(text=text, activated_at_s=at_s) for text, at_s in tokens),
    )


def _override(values: Sequence[Any]) -> Override:
    seq, feature, effect, starts_at_s, ends_at_s = values
    return Override(
        seq=seq,
        feature=feature,
        effect=Effect(effect),
        starts_at_s=starts_at_s,
        ends_at_s=ends_at_s,
    )


def _stamp(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
