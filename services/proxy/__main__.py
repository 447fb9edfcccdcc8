"""`python -m services.proxy`: the proxy as a process, as several behind one port, or as the host of
their stdio servers.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial

from services.common.process import run
from services.proxy.settings import ProxySettings
from services.proxy.worker import OPTION, Worker


def main(arguments: Sequence[str]) -> None:
    """Only who keeps workers running gives any arguments."""
    match arguments:
        case [option, number, listener, line] if option == OPTION:
            run("proxy", ProxySettings, partial(_one_of_several, Worker.of(number, listener, line)))
        case _:
            run("proxy", ProxySettings, _chosen)


def _chosen(settings: ProxySettings) -> AbstractAsyncContextManager[object]:
    """Each loads what it needs and no more."""
    if settings.role == "stdio_host":
        from services.proxy.stdio_host import app as stdio_host  # noqa: PLC0415  # as above

        return stdio_host.running(settings)
    if settings.workers > 1:
        from services.proxy import workers  # noqa: PLC0415  # as above

        return workers.running(settings)
    from services.proxy import app  # noqa: PLC0415  # as above

    return app.running(settings)


@asynccontextmanager
async def _one_of_several(worker: Worker, settings: ProxySettings) -> AsyncIterator[object]:
    from services.proxy import app  # noqa: PLC0415  # as above

    own = replace(settings, grpc_listen=worker.grpc_listen(settings.run_dir))
    with worker.tied():
        async with app.running(own, worker=worker) as running:
            yield running


if __name__ == "__main__":
    main(sys.argv[1:])
