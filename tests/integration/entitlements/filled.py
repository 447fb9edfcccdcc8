"""Many tenants at once, written past the service: making them one by one takes long."""

from __future__ import annotations

import asyncpg

from tests.fakes.postgres import Database
from tests.integration.entitlements.desk import DAY_S, NOW_S

_FILL = """
WITH made AS (
    INSERT INTO entitlements.directory (id, revision)
    SELECT gen_random_uuid(), 1 FROM generate_series(1, $1) RETURNING id
)
INSERT INTO entitlements.tenants (tenant_id, slug, plan, plan_expires_at, created_at, revision,
                                  plan_set_at_s, settled_at_s, entitled)
SELECT id, 'a tenant', $2, to_timestamp($3), to_timestamp($4), 1, $4, $4,
       ARRAY['behavioral_baselines', 'community_library', 'custom_dlp_patterns']
FROM made
"""


async def as_admin(database: Database, statement: str, *values: object) -> None:
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        await connection.execute(statement, *values)
    finally:
        await connection.close()


async def fill(
    database: Database, count: int, *, plan: str = "trial", ends_s: int = NOW_S + 5 * DAY_S
) -> None:
    """That many tenants on a plan, who have had what a trial gives."""
    await as_admin(database, _FILL, count, plan, float(ends_s), NOW_S)
