"""Opens the audit service in order and closes it in reverse. Tests use this same door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc

from behavry.audit.v1 import audit_pb2_grpc
from services.audit.jobs import Jobs
from services.audit.notices import own_source
from services.audit.page_tokens import PageTokens
from services.audit.servicer import AuditReaderServicer, AuditWriterServicer
from services.audit.settings import AuditSettings
from services.audit.writer import Writer
from services.common.clock import Clock, SystemClock
from services.common.postgres.health import tell_health
from services.common.postgres.pool import Pool, open_pool
from services.common.rpc.peers import TokenPeers
from services.common.rpc.server import serve
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from services.common.telemetry.otel import exporting


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a caller may want to know of a running service."""

    address: str
    counters: Counters
    writer: Writer


@asynccontextmanager
async def running(settings: AuditSettings, *, clock: Clock | None = None) -> AsyncIterator[Running]:
    """1. pools (which do not wait for the database)  2. writer  3. doors  4. health.

    While the database is away the service stays up, tells so, and acknowledges nothing.
    """
    clock = clock or SystemClock()
    log = get_log("audit")
    counters = Counters()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(exporting(settings, "audit", counters))
        pool = await stack.enter_async_context(  # 1
            open_pool(settings.writer_db_url, min_size=0, max_size=8, application_name="audit")
        )
        readers = await stack.enter_async_context(
            open_pool(settings.reader_db_url, min_size=0, max_size=4, application_name="audit")
        )
        supervisor = await stack.enter_async_context(Supervisor(log))  # 2
        writer = Writer(
            pool=pool,
            own=own_source(settings.plane_id, clock),
            clock=clock,
            supervisor=supervisor,
            counters=counters,
            log=log,
        )
        jobs = Jobs(pool=readers, clock=clock, supervisor=supervisor, log=log)
        tokens = PageTokens.from_file(settings.digest_keys)
        supervisor.spawn("save-positions", writer.save_positions)
        _watch(counters, pool, readers)

        def register(server: grpc.aio.Server) -> None:
            audit_pb2_grpc.add_AuditWriterServiceServicer_to_server(
                AuditWriterServicer(writer=writer, supervisor=supervisor, mode=settings.mode),
                server,
            )
            audit_pb2_grpc.add_AuditReaderServiceServicer_to_server(
                AuditReaderServicer(pool=readers, jobs=jobs, tokens=tokens), server
            )

        serving = await stack.enter_async_context(  # 3
            serve(
                listen=settings.grpc_listen,
                register=register,
                authenticator=TokenPeers(settings.peers_dir),
                counters=counters,
                log=log,
            )
        )
        stack.callback(writer.close_streams)
        supervisor.spawn("ping", partial(tell_health, serving, pool))  # 4
        await serving.set_health("", serving=True)
        yield Running(address=serving.address, counters=counters, writer=writer)


def _watch(counters: Counters, *pools: Pool) -> None:
    counters.watch("postgres.statements", lambda: sum(p.counters.statements for p in pools))
    counters.watch("postgres.connections", lambda: sum(p.counters.connections for p in pools))
