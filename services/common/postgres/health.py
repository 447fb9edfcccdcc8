"""Tells whether a service's database answers, as `dep.postgres` of its health. Restarting it is the
supervisor's, and what a service does without its database the service's own.
"""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg

from services.common.postgres.pool import Pool
from services.common.rpc.server import Serving

PING_S: Final = 1.0


async def tell_health(serving: Serving, pool: Pool) -> None:
    """Asks every second, for ever."""
    while True:
        try:
            async with asyncio.timeout(2 * PING_S):
                await pool.ping()
            alive = True
        except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError):
            alive = False
        await serving.set_health("dep.postgres", serving=alive)
        await asyncio.sleep(PING_S)
