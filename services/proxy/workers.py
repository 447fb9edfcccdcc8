"""Several proxies on one port: the process that keeps them running, each of them a process.

Decides when a worker is started again (one that ends is, after 0.2 to 5 s, while the others go on),
when the whole is ready (one that serves is enough) and how it ends (all at once, each with the time
that requests get). All take connections from one listener, whoever is free; what waits there when
one is killed, another takes. What a worker does is app.py's, as if it were alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from services.common import durable_file
from services.common.rpc.peers import TokenPeers
from services.common.rpc.server import Serving, serve
from services.common.settings import environment
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log, describe, get_log
from services.proxy.settings import ProxySettings
from services.proxy.transports.listener import bind
from services.proxy.worker import OPTION, READY

#: Who they are, for whoever started us.
PIDS: Final = "proxy-workers.json"
FIRST_DELAY_S: Final = 0.2
LONGEST_DELAY_S: Final = 5.0
#: Whoever ran so long is started again at once.
STEADY_S: Final = 60.0
#: Requests get 10 s to end; who supervises us gives us 15.
GRACE_S: Final = 13.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Where the workers listen, and who they are."""

    http: str
    serving: Serving
    pids: Callable[[], list[int]]


@asynccontextmanager
async def running(settings: ProxySettings) -> AsyncIterator[Running]:
    """SERVING while a worker serves."""
    log = get_log("proxy")
    # One for all, and nobody else's: a port that several may bind, a tool server of our user might.
    listener, bound = bind(settings.http_listen)
    with contextlib.closing(listener):
        async with (
            serve(
                listen=settings.grpc_listen,
                register=lambda _: None,
                authenticator=TokenPeers(settings.peers_dir),
                counters=Counters(),  # each worker tells its own
                log=log,
            ) as serving,
            _kept_running(settings, listener, serving, log) as workers,
        ):
            yield Running(
                http=f"http://{bound}",
                serving=serving,
                pids=lambda: [one.pid for one in workers if one.pid is not None],
            )


@asynccontextmanager
async def _kept_running(
    settings: ProxySettings, listener: socket.socket, serving: Serving, log: Log
) -> AsyncIterator[Sequence[_Worker]]:
    news = asyncio.Event()
    numbers = range(1, settings.workers + 1)
    workers = [_Worker(number, listener, news.set, log) for number in numbers]
    with _told_to(settings.run_dir / PIDS, log) as tell:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one.run()) for one in workers]
            telling = group.create_task(_tell(workers, news, serving, tell))
            try:
                yield workers
            finally:
                listener.close()  # with the workers' own, nobody is kept waiting for an answer
                for one in workers:
                    one.stop()
                await asyncio.wait(tasks)
                telling.cancel()


async def _tell(
    workers: Sequence[_Worker],
    news: asyncio.Event,
    serving: Serving,
    tell: Callable[[Sequence[_Worker]], None],
) -> None:
    """Who runs and whether that is enough, as often as it changes."""
    while True:
        news.clear()
        tell(workers)
        await serving.set_health("", serving=any(one.ready for one in workers))
        await news.wait()


@contextmanager
def _told_to(path: Path, log: Log) -> Iterator[Callable[[Sequence[_Worker]], None]]:
    def tell(workers: Sequence[_Worker]) -> None:
        known = {
            "supervisor": os.getpid(),
            "workers": [one.pid for one in workers if one.pid is not None],
            "ready": [one.pid for one in workers if one.ready],
        }
        try:
            durable_file.replace(path, orjson.dumps(known))
        except OSError as failure:  # a full disk ends no worker
            log.warning("workers_not_told", error=describe(failure))

    try:
        yield tell
    finally:
        path.unlink(missing_ok=True)


class _Worker:
    """One of them, started again and again until `stop`."""

    def __init__(
        self, number: int, listener: socket.socket, changed: Callable[[], None], log: Log
    ) -> None:
        self._number = number
        self._listener = listener
        self._changed = changed
        self._log = log
        self._stopping = asyncio.Event()
        self.pid: int | None = None
        self.ready = False

    def stop(self) -> None:
        """It is asked to end, and not started again."""
        self._stopping.set()
        if self.pid is not None:
            _signal(self.pid, signal.SIGTERM)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        delay_s = FIRST_DELAY_S
        while not self._stopping.is_set():
            began = loop.time()
            try:
                status: int | str = await self._run_once()
            except OSError as failure:  # no room for another process
                status = describe(failure)
            if self._stopping.is_set():
                return
            self._log.error("worker_ended", worker=self._number, status=status)
            if loop.time() - began > STEADY_S:
                delay_s = FIRST_DELAY_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)

    async def _run_once(self) -> int:
        ours, theirs = socket.socketpair()
        passed = [self._listener.fileno(), theirs.fileno()]
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *_same_program(), OPTION, str(self._number), *map(str, passed),
                stdin=asyncio.subprocess.DEVNULL,
                env=environment(),
                pass_fds=passed,
            )  # fmt: skip
        self.pid = process.pid
        if self._stopping.is_set():  # it was asked while there was nobody yet
            _signal(process.pid, signal.SIGTERM)
        self._changed()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._hear(reader))
                ending = group.create_task(self._insist(process))
                status = await process.wait()
                ending.cancel()
        finally:
            writer.close()
            self.pid, self.ready = None, False
            self._changed()
        return status

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while said := await reader.read(1):
                self.ready = said == READY
                self._changed()

    async def _insist(self, process: asyncio.subprocess.Process) -> None:
        await self._stopping.wait()
        await asyncio.sleep(GRACE_S)
        self._log.error("worker_does_not_end", worker=self._number)
        _signal(process.pid, signal.SIGKILL)


def _same_program() -> list[str]:
    """As we were started, so that whoever lists processes sees whose they are."""
    marks = [name if said is True else f"{name}={said}" for name, said in _marks().items()]
    options = [part for mark in marks for part in ("-X", mark)]
    return [sys.executable, *options, "-m", "services.proxy"]


def _marks() -> dict[str, str | bool]:
    return sys._xoptions  # noqa: SLF001  # documented, for all its name


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
