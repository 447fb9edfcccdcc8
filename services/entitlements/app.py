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
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from services.common.telemetry.otel import exporting
from services.entitlements import installation_file
from services.entitlements.beliefs import Beliefs
from services.entitlements.license_keys import Keys, load_keys
from services.entitlements.publishing import Board
from services.entitlements.servicer import EntitlementsAdmin, EntitlementsReader
from services.entitlements.settings import EntitlementsSettings
from services.entitlements.sources import Sources
from services.entitlements.store.tables import Store
from services.entitlements.writer import Writer


@asynccontextmanager
async def running(
    settings: EntitlementsSettings, *, clock: Clock | None = None, keys: Keys | None = None
) -> AsyncIterator[Serving]:
    """Yields the bound server once it is SERVING. `keys` in the place of those built in are for
    tests: no setting brings one.
    """
    clock = clock or SystemClock()
    counters = Counters()
    log = get_log("entitlements")
    development = settings.env == "development"
    async with (
        exporting(settings, "entitlements", counters),
        open_pool(settings.db_url, application_name="behavry-entitlements") as pool,
        Supervisor(log) as supervisor,
    ):
        counters.watch("postgres.statements", lambda: pool.counters.statements)
        counters.watch("postgres.connections", lambda: pool.counters.connections)
        store = Store(pool)
        beliefs = Beliefs(
            clock=clock,
            log=log,
            keys=keys or load_keys(development=development),
            sources=Sources(
                license=settings.license,
                license_file=settings.license_file,
                revocations_file=settings.revocations_file,
            ),
            development=development,
        )
        board = Board(store=store, clock=clock, beliefs=beliefs)
        await board.look()
        installation_file.write(settings.installation_file, beliefs.fingerprint)
        supervisor.spawn("looking", board.run)
        writer = Writer(store, beliefs, tenants=board.count)

        def register(server: grpc.aio.Server) -> None:
            entitlements_pb2_grpc.add_EntitlementsReaderServiceServicer_to_server(
                EntitlementsReader(board=board, store=store), server
            )
            entitlements_pb2_grpc.add_EntitlementsAdminServiceServicer_to_server(
                EntitlementsAdmin(board=board, writer=writer), server
            )

        async with serve(
            listen=settings.grpc_listen,
            register=register,
            authenticator=TokenPeers(settings.peers_dir),
            counters=counters,
            log=log,
        ) as serving:
            await serving.set_health("", serving=True)
            yield serving
