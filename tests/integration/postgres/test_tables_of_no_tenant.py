"""Tables without a `tenant_id` have no row-level security: each is named here, and says why."""

from __future__ import annotations

from typing import Final

import asyncpg

from services.common.postgres import roles
from tests.fakes.postgres import Database

_MIGRATED: Final = "what was migrated; closed to the service's role"
OF_NO_TENANT: Final = {
    "audit.behavry_migrations": _MIGRATED,
    "audit.source_positions": "from where a source sends again: a place in its outbox",
    "audit.sources": "the outboxes that records come from",
    "control.behavry_migrations": _MIGRATED,
    "control.bundles": "one bundle is of all tenants, and leaves for planes alone",
    "control.device_requests": "whoever asks belongs to nobody before somebody lets them in",
    "control.outbox_source": "control's own outbox: where it stands",
    "control.tenants": "names the tenants and nothing of theirs",
    "entitlements.behavry_migrations": _MIGRATED,
    "entitlements.directory": "which tenants there are, and at which revision",
    "entitlements.installation": "the installation's own revision and clock",
    "entitlements.installation_licenses": "the installation's own licences",
    "entitlements.revocation_lists": "an issuer's, for everybody",
}
_TABLES: Final = """
SELECT n.nspname || '.' || c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname = ANY($1::text[]) AND NOT EXISTS (
    SELECT FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped)
"""


async def test_each_table_without_a_tenant_is_named_and_says_why(database: Database) -> None:
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        found = await connection.fetch(_TABLES, list(roles.SCHEMAS))
    finally:
        await connection.close()

    assert set(OF_NO_TENANT) == {row[0] for row in found}
