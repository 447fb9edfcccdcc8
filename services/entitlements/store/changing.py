"""What may be written in one transaction that has raised the installation's revision.

One statement per method, or two that belong together; the transaction is its caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.entitlements.overrides import Override
from services.entitlements.rows import Row, Token, Written
from services.entitlements.store.states import read_lists, read_states, read_tokens

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


async def begun(connection: Connection) -> Changing:
    """Raises the revision: from here on no other writer does, until the transaction ends."""
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
        return await read_tokens(self.connection)

    async def revocation_lists(self) -> list[str]:
        """The newest first."""
        return await read_lists(self.connection)

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


def _stamp(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
