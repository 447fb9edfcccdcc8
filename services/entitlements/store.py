"""The tenants' plans in PostgreSQL. One statement per method; a change raises the revision in its
own transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.common.postgres.pool import Pool, tenant_tx
from services.entitlements.effective import TenantPlan

_TENANTS: Final = "SELECT id FROM entitlements.directory ORDER BY id"
_INSTALLATION: Final = "SELECT epoch::text AS epoch, revision FROM entitlements.installation"
_PLAN: Final = (
    "SELECT plan, plan_expires_at, revision FROM entitlements.tenants WHERE tenant_id = $1"
)
_ENTER: Final = "INSERT INTO entitlements.directory (id) VALUES ($1) ON CONFLICT (id) DO NOTHING"
_RAISE: Final = "UPDATE entitlements.installation SET revision = revision + 1 RETURNING revision"
_PUT: Final = """
INSERT INTO entitlements.tenants (tenant_id, slug, plan, plan_expires_at, created_at, revision)
VALUES ($1, $2, $3, $4, $5, $6)
"""


@dataclass(frozen=True, slots=True)
class Installation:
    epoch: str
    revision: int


class Store:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def installation(self) -> Installation:
        async with self._pool.acquire() as connection:
            row = await connection.fetchrow(_INSTALLATION)
        if row is None:
            raise BehavryError("DEPENDENCY_UNAVAILABLE", "the installation row is missing")
        return Installation(row["epoch"], row["revision"])

    async def tenants(self) -> list[TenantId]:
        async with self._pool.acquire() as connection:
            return [TenantId(str(row["id"])) for row in await connection.fetch(_TENANTS)]

    async def plan(self, tenant: TenantId) -> TenantPlan:
        """Raises TENANT_UNKNOWN."""
        async with tenant_tx(self._pool, tenant) as connection:
            row = await connection.fetchrow(_PLAN, tenant)
        if row is None:
            raise BehavryError("TENANT_UNKNOWN", "no such tenant")
        expires = row["plan_expires_at"]
        return TenantPlan(
            plan=row["plan"],
            expires_at_s=int(expires.timestamp()) if expires else None,
            revision=row["revision"],
        )

    async def put(
        self, tenant: TenantId, *, slug: str, plan: str, expires_at_s: int | None, now_s: int
    ) -> bool:
        """Whether the tenant is new; a known one stays as it is."""
        expires = None if expires_at_s is None else datetime.fromtimestamp(expires_at_s, UTC)
        async with tenant_tx(self._pool, tenant) as connection:
            if not (await connection.execute(_ENTER, tenant)).endswith(" 1"):
                return False
            revision = await connection.fetchval(_RAISE)
            created = datetime.fromtimestamp(now_s, UTC)
            await connection.execute(_PUT, tenant, slug, plan, expires, created, revision)
            return True
