"""What each service's `__main__` does: settings, logs, uvloop, run until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar

import uvloop

from services.common.service_settings import ServiceSettings
from services.common.settings import effective, load_or_exit
from services.common.telemetry.logging import configure, get_log

S = TypeVar("S", bound=ServiceSettings)
#: Calls leave no cycles behind: looking for some every 700 objects is a tenth of the work.
GC_THRESHOLDS: Final = (20_000, 20, 50)


def run(
    name: str, settings_class: type[S], running: Callable[[S], AbstractAsyncContextManager[Any]]
) -> None:
    """Ends with status 2 on a bad setting; otherwise when a signal asks for it."""
    settings = load_or_exit(settings_class)
    configure(settings.log_level)
    log = get_log(name)
    log.info("starting", settings=effective(settings))

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with running(settings):
            # What lives as long as the process is not looked at again by the collector.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            log.info("serving")
            await stop.wait()
            log.info("stopping")

    uvloop.run(main())
