"""Opens the service's parts in order and closes them in reverse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from behavry.entitlements.v1 import entitlements_pb2_grpc
from services.common.clock import Clock, SystemClock
from services.common.postgres.pool import open_pool
from services.common.rpc.peers import TokenPeers
from services.common.rpc.server import Serving, serve
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from services.common.telemetry.otel import exporting
from services.entitlements.servicer import EntitlementsAdmin, EntitlementsReader
from services.entitlements.settings import EntitlementsSettings
from services.entitlements.store import Store


@asynccontextmanager
async def running(
    settings: EntitlementsSettings, *, clock: Clock | None = None
) -> AsyncIterator[Serving]:
    """Yields the bound server once it is SERVING."""
    clock = clock or SystemClock()
    counters = Counters()
    async with (
        exporting(settings, "entitlements", counters),
        open_pool(settings.db_url, application_name="behavry-entitlements") as pool,
    ):
        counters.watch("postgres.statements", lambda: pool.counters.statements)
        counters.watch("postgres.connections", lambda: pool.counters.connections)
        store = Store(pool)

        def register(server: grpc.aio.Server) -> None:
            entitlements_pb2_grpc.add_EntitlementsReaderServiceServicer_to_server(
                EntitlementsReader(store=store, clock=clock), server
            )
            entitlements_pb2_grpc.add_EntitlementsAdminServiceServicer_to_server(
                EntitlementsAdmin(store=store, clock=clock), server
            )

        async with serve(
            listen=settings.grpc_listen,
            register=register,
            authenticator=TokenPeers(settings.peers_dir),
            counters=counters,
            log=get_log("entitlements"),
        ) as serving:
            await serving.set_health("", serving=True)
            yield serving
