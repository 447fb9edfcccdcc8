"""The pool on a real server: whose rows a transaction sees, what is counted, what is refused."""

from uuid import uuid4

import asyncpg
import pytest

from services.common.postgres.pool import PasswordInUrl, Pool, open_pool, tenant_tx
from tests.fakes.postgres import Database

TABLE = """
CREATE TABLE control.pool_probe (tenant_id uuid NOT NULL, value text NOT NULL);
ALTER TABLE control.pool_probe ENABLE ROW LEVEL SECURITY;
ALTER TABLE control.pool_probe FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON control.pool_probe
  USING (tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid)
  WITH CHECK (tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid);
"""


@pytest.fixture
async def probe(control_database: Database) -> str:
    """The address of a role that a table with two tenants' rows is open to."""
    connection = await asyncpg.connect(control_database.admin_dsn)
    await connection.execute("SET ROLE behavry_control_owner")
    await connection.execute(TABLE)
    await connection.close()
    return control_database.dsn("behavry_control")


async def test_a_transaction_sees_its_own_tenant_and_no_other(probe: str) -> None:
    first, second = str(uuid4()), str(uuid4())
    async with open_pool(probe, max_size=1) as pool:
        for tenant in (first, second):
            async with tenant_tx(pool, tenant) as connection:
                await connection.execute(
                    "INSERT INTO control.pool_probe VALUES ($1, $2)", tenant, tenant
                )
        async with tenant_tx(pool, second) as connection:
            seen = await connection.fetch("SELECT value FROM control.pool_probe")

    assert [second] == [row["value"] for row in seen]


async def test_without_a_tenant_nothing_is_seen_or_written(probe: str) -> None:
    tenant = str(uuid4())
    async with open_pool(probe, max_size=1) as pool:
        async with tenant_tx(pool, tenant) as connection:
            await connection.execute("INSERT INTO control.pool_probe VALUES ($1, 'x')", tenant)
        # The same connection, back from its tenant.
        async with pool.acquire() as connection:
            seen = await connection.fetchval("SELECT count(*) FROM control.pool_probe")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("INSERT INTO control.pool_probe VALUES ($1, 'y')", tenant)

    assert 0 == seen


async def test_another_tenants_row_cannot_be_written(probe: str) -> None:
    async with open_pool(probe) as pool:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with tenant_tx(pool, str(uuid4())) as connection:
                await connection.execute(
                    "INSERT INTO control.pool_probe VALUES ($1, 'x')", str(uuid4())
                )


async def test_a_failed_transaction_leaves_nothing_behind(probe: str) -> None:
    tenant = str(uuid4())
    async with open_pool(probe, max_size=1) as pool:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await _insert_and_fail(pool, tenant)
        async with tenant_tx(pool, tenant) as connection:
            seen = await connection.fetchval("SELECT count(*) FROM control.pool_probe")

    assert 0 == seen


async def _insert_and_fail(pool: Pool, tenant: str) -> None:
    async with tenant_tx(pool, tenant) as connection:
        await connection.execute("INSERT INTO control.pool_probe VALUES ($1, 'x')", tenant)
        await connection.execute("SELECT 1 / 0")


async def test_a_tenant_that_is_no_uuid_is_refused_before_the_server_hears_of_it(
    probe: str,
) -> None:
    async with open_pool(probe) as pool:
        before = pool.counters.statements
        with pytest.raises(ValueError, match="badly formed"):
            async with tenant_tx(pool, "default'; --"):
                pass

        assert before == pool.counters.statements


async def test_statements_and_connections_are_counted(probe: str) -> None:
    async with open_pool(probe, max_size=1) as pool:
        async with tenant_tx(pool, str(uuid4())) as connection:
            await connection.fetch("SELECT value FROM control.pool_probe")

        # BEGIN, the tenant, the query, COMMIT; going back to the pool costs nothing.
        assert (4, 1) == (pool.counters.statements, pool.counters.connections)


async def test_an_address_with_a_password_is_refused() -> None:
    for url in ("postgresql://u:secret@/db", "postgresql://u@/db?host=/tmp&password=secret"):
        with pytest.raises(PasswordInUrl) as refused:
            async with open_pool(url):
                pass

        assert "secret" not in str(refused.value)
