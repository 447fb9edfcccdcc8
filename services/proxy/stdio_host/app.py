"""Opens the host's parts in order and closes them in reverse."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.common.clock import SystemClock
from services.common.rpc.peers import TokenPeers
from services.common.rpc.server import Serving, serve
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log, get_log
from services.common.telemetry.otel import exporting
from services.proxy.backends.children import own_children
from services.proxy.backends.stdio import StdioBackend
from services.proxy.settings import ProxySettings
from services.proxy.stdio_host.door import Door
from services.proxy.transports.listener import listening

SWEEP_S: Final = 10.0
LOOK_AGAIN_S: Final = 0.2
LOCK: Final = "host.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A host that takes workers' requests."""

    socket: Path
    serving: Serving
    counters: Counters


@asynccontextmanager
async def running(settings: ProxySettings) -> AsyncIterator[Running]:
    """SERVING once workers can reach it. It waits for a host of the same children to end."""
    counters, log = Counters(), get_log("stdio-host")
    path = Path(settings.stdio_socket)
    async with (
        exporting(settings, "stdio-host", counters),
        serve(
            listen=settings.grpc_listen,
            register=lambda _: None,  # health and diagnostics are all that others may ask
            authenticator=TokenPeers(settings.peers_dir),
            counters=counters,
            log=log,
        ) as serving,
        _alone(settings.stdio_homes, log),
        Supervisor(log) as supervisor,
    ):
        stdio = own_children(settings, SystemClock(), counters, supervisor.once)
        supervisor.spawn("sweep", lambda: _sweep(stdio))
        door = Door(stdio, log)
        try:
            with _bound(path) as listener:
                async with listening(door, listener), _letting_go(door):
                    await serving.set_health("", serving=True)
                    yield Running(socket=path, serving=serving, counters=counters)
        finally:
            await stdio.shut()


@asynccontextmanager
async def _alone(homes: Path, log: Log) -> AsyncIterator[None]:
    """Children have one host: it ends what another one left, so that must be gone."""
    descriptor = _opened(homes)
    try:
        told = False
        while not _locked(descriptor):  # another process's end sends no event
            if not told:
                log.warning("another_stdio_host_runs")
                told = True
            await asyncio.sleep(LOOK_AGAIN_S)
        yield
    finally:
        os.close(descriptor)


def _opened(homes: Path) -> int:
    homes.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(homes / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """For nobody but our own user. A socket that a killed host left is taken over."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(1024)
        yield listener
    finally:
        path.unlink(missing_ok=True)


@asynccontextmanager
async def _letting_go(door: Door) -> AsyncIterator[None]:
    """What has no end of its own ends before the listener waits for answers."""
    try:
        yield
    finally:
        door.close()


async def _sweep(stdio: StdioBackend) -> None:
    """Idle children end."""
    while True:
        await asyncio.sleep(SWEEP_S)
        await stdio.sweep()
