"""Each store of tickets, and a second one on the same journal where the store can have one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from services.authorizer.tickets.local import local_ticket_store
from services.authorizer.tickets.protocol import TicketStore
from services.authorizer.tickets.shared import SharedTicketStore, shared_ticket_store
from services.common.telemetry.logging import get_log
from services.common.valkey import open_valkey
from tests.fakes.valkey import ValkeyServer


async def a_replica(
    opened: AsyncExitStack, server: ValkeyServer, *, prefix: str
) -> SharedTicketStore:
    """With a connection of its own, as another process has."""
    log = get_log("test")
    valkey = await opened.enter_async_context(open_valkey(server.url, log))
    # What is shown here is what happens, not how soon on a machine that has other things to do.
    store = shared_ticket_store(valkey, log, prefix=prefix, bound_s=5)
    return await opened.enter_async_context(store)


@pytest.fixture(params=["local", pytest.param("shared", marks=pytest.mark.needs_valkey)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TicketStore]:
    async with AsyncExitStack() as opened:
        if request.param == "local":
            local = local_ticket_store(tmp_path / "tickets", get_log("test"))
            yield await opened.enter_async_context(local)
        else:
            server = request.getfixturevalue("valkey")
            yield await a_replica(opened, server, prefix=str(uuid4()))


@pytest.fixture
async def replicas(
    valkey: ValkeyServer,
) -> AsyncIterator[tuple[SharedTicketStore, SharedTicketStore]]:
    """Two authorizers of one plane."""
    prefix = str(uuid4())
    async with AsyncExitStack() as opened:
        first = await a_replica(opened, valkey, prefix=prefix)
        yield first, await a_replica(opened, valkey, prefix=prefix)
