"""Serves gRPC on a unix socket or an address, with the guard, health and diagnostics in front."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from behavry.common.v1 import diagnostics_pb2, diagnostics_pb2_grpc
from services.common.rpc.interceptors import Guard
from services.common.rpc.peers import Authenticator
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log

MAX_MESSAGE_BYTES: Final = 40 * 1024 * 1024
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)
DRAIN_S: Final = 5.0

#: Adds servicers to a server: `lambda server: add_XServicer_to_server(servicer, server)`.
Register = Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server: where it listens, and the states that its health service tells."""

    address: str
    _health: Any

    async def set_health(self, name: str, *, serving: bool) -> None:
        """`name` is "" for the whole process, or `dep.postgres` and the like."""
        states = health_pb2.HealthCheckResponse
        await self._health.set(name, states.SERVING if serving else states.NOT_SERVING)


class Diagnostics(diagnostics_pb2_grpc.DiagnosticsServiceServicer):
    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    async def ReadCounters(  # the contract's name
        self, request: diagnostics_pb2.ReadCountersRequest, context: Any
    ) -> diagnostics_pb2.ReadCountersResponse:
        return diagnostics_pb2.ReadCountersResponse(
            counters={str(name): value for name, value in self._counters.read().items()}
        )


@asynccontextmanager
async def serve(
    *, listen: str, register: Register, authenticator: Authenticator, counters: Counters, log: Log
) -> AsyncIterator[Serving]:
    """Listens on `unix:/path` or `host:port` (port 0: a free one). Not SERVING until told so."""
    server = grpc.aio.server(interceptors=[Guard(authenticator, counters, log)], options=OPTIONS)
    register(server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    diagnostics_pb2_grpc.add_DiagnosticsServiceServicer_to_server(Diagnostics(counters), server)
    address = _bind(server, listen)
    serving = Serving(address, health_servicer)
    await serving.set_health("", serving=False)
    await server.start()
    try:
        yield serving
    finally:
        await health_servicer.enter_graceful_shutdown()
        await server.stop(DRAIN_S)


def _bind(server: grpc.aio.Server, listen: str) -> str:
    if listen.startswith("unix:"):
        path = Path(listen.removeprefix("unix:"))
        # A socket left by a killed process would refuse the bind.
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()
    port = server.add_insecure_port(listen)
    return listen if listen.startswith("unix:") else f"{listen.rsplit(':', 1)[0]}:{port}"
