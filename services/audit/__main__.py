"""`python -m services.audit`."""

from __future__ import annotations

import asyncio
import signal

from services.audit.app import running
from services.audit.settings import AuditSettings
from services.common.settings import effective, load_or_exit
from services.common.telemetry.logging import configure, get_log


async def main(settings: AuditSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log = get_log("audit")
    log.info("starting", settings=effective(settings))
    async with running(settings) as service:
        log.info("ready", address=service.address)
        await stop.wait()
    log.info("stopped")


if __name__ == "__main__":
    loaded = load_or_exit(AuditSettings)
    configure(loaded.log_level)
    asyncio.run(main(loaded))
