"""Where a plane counts: in this process, or in the Valkey that its authorizers share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.authorizer.settings import AuthorizerSettings
from services.common.clock import Clock
from services.common.counter_store.memory import MemoryCounterStore
from services.common.counter_store.protocol import CounterStore
from services.common.counter_store.valkey import ValkeyCounterStore
from services.common.telemetry.logging import Log
from services.common.valkey import open_valkey


@asynccontextmanager
async def open_counters(
    settings: AuthorizerSettings, clock: Clock, log: Log
) -> AsyncIterator[CounterStore]:
    """Also while the shared one is away: its calls say so."""
    if not settings.counter_store_url:
        yield MemoryCounterStore(clock)
        return
    async with open_valkey(
        settings.counter_store_url, log, password_file=settings.counter_store_password_file
    ) as valkey:
        yield ValkeyCounterStore(valkey, prefix=settings.plane_id)
