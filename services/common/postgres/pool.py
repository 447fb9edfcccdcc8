"""Connections of a running service: a pool from an address without a password, and the transaction
that names a tenant.

Every table with a `tenant_id` is under forced row-level security, which reads the setting made
here. It is local to its transaction, so a connection that goes back to the pool carries nobody's
tenant. Connections and statements are counted in plain integers; whoever scrapes reads them.
"""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from services.common.postgres.connection import (
    Connection,
    CountedConnection,
    Counters,
    SingleConnection,
)

if TYPE_CHECKING:
    from asyncpg.pool import Pool as _AsyncpgPool

TENANT_SETTING = "behavry.tenant_id"
_SET_TENANT = f"SELECT set_config('{TENANT_SETTING}', $1, true)"


class PasswordInUrl(ValueError):
    """A database address carries a password; it would be seen in argv, environments and logs."""

    def __init__(self) -> None:
        super().__init__(
            "a database URL must not hold a password: name a passfile (?passfile=/path)"
        )


def check_url(url: str) -> str:
    """Answer the URL when it is a PostgreSQL address without a password."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("a database URL begins with postgresql://")
    if parts.password is not None or "password" in dict(parse_qsl(parts.query)):
        raise PasswordInUrl
    return url


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """An open pool and its counters."""

    connections: "_AsyncpgPool[asyncpg.Record]"
    counters: Counters

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """A connection outside any transaction and tenant."""
        async with self.connections.acquire() as connection:
            yield connection

    async def ping(self) -> None:
        """Raise when the database does not answer."""
        async with self.connections.acquire(timeout=2) as connection:
            await connection.execute("SELECT 1", timeout=2)


@asynccontextmanager
async def open_pool(
    dsn: str,
    *,
    min_size: int = 1,
    max_size: int = 10,
    command_timeout_s: float = 10.0,
    application_name: str = "behavry",
) -> AsyncIterator[Pool]:
    """Open a pool and close it again, letting running statements end first (at most 5 s)."""
    check_url(dsn)
    counters = Counters()
    connection_class = type("PoolConnection", (CountedConnection,), {"counters": counters})

    async def count(_: SingleConnection) -> None:
        counters.connections += 1

    pool = asyncpg.create_pool(
        dsn,
        min_size=min_size,
        max_size=max_size,
        command_timeout=command_timeout_s,
        timeout=10,
        max_inactive_connection_lifetime=300,
        connection_class=connection_class,
        init=count,
        reset=_leave_as_is,
        server_settings={"application_name": application_name},
    )
    async with pool:
        yield Pool(connections=pool, counters=counters)


async def _leave_as_is(_: SingleConnection) -> None:
    """Open transactions are rolled back before this. Our settings and locks are transaction-local,
    so asyncpg's usual RESET, a round trip per use, has nothing to undo; a session-level SET or
    lock in a pool is a bug of its author.
    """


@asynccontextmanager
async def tenant_tx(pool: Pool, tenant: str) -> AsyncIterator[Connection]:
    """One transaction that sees and writes one tenant's rows. `tenant` is a UUID in text, else
    ValueError.
    """
    known = str(uuid.UUID(tenant))
    async with pool.connections.acquire() as connection, connection.transaction():
        await connection.execute(_SET_TENANT, known)
        yield connection
