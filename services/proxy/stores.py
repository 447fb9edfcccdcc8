"""Where a proxy counts and meets the others of its plane: in its own memory, or at the Valkey that
all of them share.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.common.clock import Clock
from services.common.counter_store.protocol import CounterStore
from services.common.rendezvous.memory import MemoryRendezvous
from services.common.rendezvous.protocol import Rendezvous
from services.common.telemetry.logging import Log
from services.proxy.settings import ProxySettings


@dataclass(frozen=True, slots=True)
class Stores:
    """`counts` is None where nobody else counts."""

    rendezvous: Rendezvous
    counts: CounterStore | None = None


@asynccontextmanager
async def open_stores(settings: ProxySettings, clock: Clock, log: Log) -> AsyncIterator[Stores]:
    """Also while what they need is away: their calls say so."""
    if not settings.counter_store_url:
        yield Stores(MemoryRendezvous(clock))
        return
    # Its client loads the OpenTelemetry SDK: only who uses it shall wait for that.
    from services.common.counter_store.valkey import ValkeyCounterStore  # noqa: PLC0415  # as above
    from services.common.rendezvous.valkey import ValkeyRendezvous  # noqa: PLC0415  # as above
    from services.common.valkey import open_valkey  # noqa: PLC0415  # as above

    async with open_valkey(
        settings.counter_store_url, log, password_file=settings.counter_store_password_file
    ) as valkey:
        yield Stores(
            ValkeyRendezvous(valkey, prefix=settings.plane_id),
            ValkeyCounterStore(valkey, prefix=settings.plane_id),
        )
