"""Where a plane counts and keeps its tickets: in this process and its files, or in the Valkey that
its authorizers share.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.authorizer.settings import AuthorizerSettings
from services.authorizer.tickets.local import local_ticket_store
from services.authorizer.tickets.protocol import TicketStore
from services.common.clock import Clock
from services.common.counter_store.memory import MemoryCounterStore
from services.common.counter_store.protocol import CounterStore
from services.common.telemetry.logging import Log


@dataclass(frozen=True, slots=True)
class Stores:
    tickets: TicketStore
    counts: CounterStore


@asynccontextmanager
async def open_stores(
    settings: AuthorizerSettings, clock: Clock, log: Log
) -> AsyncIterator[Stores]:
    """Also while what they need is away: their calls say so."""
    if not settings.counter_store_url:
        async with local_ticket_store(settings.ticket_dir, log) as tickets:
            yield Stores(tickets, MemoryCounterStore(clock))
        return
    # Its client loads the OpenTelemetry SDK: only who uses it shall wait for that.
    from services.authorizer.tickets.shared import shared_ticket_store  # noqa: PLC0415  # as above
    from services.common.counter_store.valkey import ValkeyCounterStore  # noqa: PLC0415  # as above
    from services.common.valkey import open_valkey  # noqa: PLC0415  # as above

    async with (
        open_valkey(
            settings.counter_store_url, log, password_file=settings.counter_store_password_file
        ) as valkey,
        shared_ticket_store(valkey, log, prefix=settings.plane_id) as shared,
    ):
        yield Stores(shared, ValkeyCounterStore(valkey, prefix=settings.plane_id))
