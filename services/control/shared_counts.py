"""Where the processes of control count together, if they share a store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.outbox.digests import Digester
from services.common.telemetry.logging import Log
from services.control.limits import Shared
from services.control.settings import ControlSettings


@asynccontextmanager
async def opened(settings: ControlSettings, log: Log) -> AsyncIterator[Shared | None]:
    """Also while the store is away: its calls say so."""
    if not settings.counter_store_url:
        yield None
        return
    # Its client loads the OpenTelemetry SDK: only who uses it shall wait for that.
    from services.common.counter_store.valkey import ValkeyCounterStore  # noqa: PLC0415  # as above
    from services.common.valkey import open_valkey  # noqa: PLC0415  # as above

    async with open_valkey(
        settings.counter_store_url, log, password_file=settings.counter_store_password_file
    ) as valkey:
        counts = ValkeyCounterStore(valkey, prefix=f"{settings.plane_id}:control")
        yield Shared(counts, Digester.load(settings.digest_keys))
