"""The outbox of a process as app.py opens it: a directory of its own, its shipper, and the
directories that nobody owns any more.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.common.clock import Clock
from services.common.outbox.digests import Digester
from services.common.outbox.files import (
    DIR_MODE,
    LOCK,
    DirectoryLock,
    DirectoryTaken,
    DiskFiles,
    Files,
)
from services.common.outbox.outbox import (
    DEFAULT_MAX_BYTES,
    FileOutbox,
    Tuning,
    open_outbox,
)
from services.common.outbox.pressure import Budget
from services.common.outbox.recovery import SET_ASIDE
from services.common.outbox.shipper import Shipper, Transport
from services.common.outbox.stamp import Origin
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log

TICK_S: Final = 1.0
#: A sibling that starts at the same time takes its own directory first.
ADOPT_AFTER_S: Final = 5.0
ADOPT_EVERY_S: Final = 60.0
_NAME: Final = re.compile(r"w(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxOptions:
    """BEHAVRY_OUTBOX_{DIR,DURABILITY,MAX_BYTES} and who asks."""

    root: Path
    origin: Origin
    max_bytes: int = DEFAULT_MAX_BYTES
    tuning: Tuning = field(default_factory=Tuning)


@asynccontextmanager
async def running_outbox(
    options: OutboxOptions,
    transport: Transport | None,
    *,
    clock: Clock,
    counters: Counters,
    log: Log,
    digester: Digester | None = None,
    files: Files | None = None,
) -> AsyncIterator[FileOutbox]:
    """Opens this process's outbox, ships it, and adopts directories left behind. Without transport
    everything stays until another start. Raises OSError, OutboxFailed.
    """
    directory, lock = claim(options.root)
    budget = Budget(options.max_bytes)
    disk = files or DiskFiles()
    async with (
        open_outbox(
            directory,
            origin=options.origin,
            budget=budget,
            clock=clock,
            counters=counters,
            log=log,
            digester=digester,
            files=disk,
            tuning=options.tuning,
            lock=lock,
        ) as outbox,
        Supervisor(log) as tasks,
    ):
        tasks.spawn("outbox-upkeep", lambda: _forever(outbox.tick, TICK_S))
        if transport is not None:
            shipper = Shipper(outbox, transport, log=log, counters=counters)
            tasks.spawn("outbox-shipper", shipper.run)
            adopter = Adopter(options, transport, budget, clock, log, disk)
            tasks.spawn("outbox-adopter", adopter.run)
        yield outbox


def claim(root: Path) -> tuple[Path, DirectoryLock]:
    """The first directory without owner, or a new one, and its lock."""
    root.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
    number = 0
    while True:
        directory = root / f"w{number}"
        try:
            return directory, DirectoryLock(directory)
        except DirectoryTaken:
            number += 1


class Adopter:
    """Ends what other processes began: their directories are recovered as a restart of that very
    source, shipped, closed and deleted.
    """

    def __init__(  # noqa: PLR0917  # wiring, called in one place
        self,
        options: OutboxOptions,
        transport: Transport,
        budget: Budget,
        clock: Clock,
        log: Log,
        files: Files,
    ) -> None:
        self._options = options
        self._transport = transport
        self._budget = budget
        self._clock = clock
        self._log = log
        self._files = files

    async def run(self) -> None:
        await asyncio.sleep(ADOPT_AFTER_S)
        while True:
            await self.adopt_all()
            await asyncio.sleep(ADOPT_EVERY_S)

    async def adopt_all(self) -> None:
        """One directory after the other."""
        for directory in sorted(self._options.root.iterdir()):
            if _NAME.fullmatch(directory.name) is None:
                continue
            try:
                lock = DirectoryLock(directory)
            except DirectoryTaken:
                continue
            await self._adopt(directory, lock)

    async def _adopt(self, directory: Path, lock: DirectoryLock) -> None:
        self._log.info("outbox_adopted", directory=directory.name)
        counters = Counters()  # the process's own gauges speak of its own outbox
        async with open_outbox(
            directory,
            origin=self._options.origin,
            budget=self._budget,
            clock=self._clock,
            counters=counters,
            log=self._log,
            files=self._files,
            tuning=self._options.tuning,
            lock=lock,
            leave=lambda: self._delete(directory),
        ) as outbox:
            await outbox.say_closed()
            shipper = Shipper(outbox, self._transport, log=self._log, counters=counters)
            async with asyncio.TaskGroup() as tasks:
                shipping = tasks.create_task(shipper.run())
                await outbox.drained()
                shipping.cancel()

    def _delete(self, directory: Path) -> None:
        """Whoever waits for the lock finds it gone. What was set aside as damaged stays."""
        for aside in directory.glob(f"*{SET_ASIDE}"):
            kept = self._options.root / "set-aside"
            kept.mkdir(mode=DIR_MODE, exist_ok=True)
            self._files.rename(aside, kept / f"{directory.name}-{uuid.uuid4()}-{aside.name}")
        for path in sorted(directory.iterdir(), key=lambda path: path.name == LOCK):
            self._files.remove(path)
        directory.rmdir()
        self._files.sync_directory(self._options.root)


async def _forever(tick: Callable[[], None], every_s: float) -> None:
    while True:
        tick()
        await asyncio.sleep(every_s)
