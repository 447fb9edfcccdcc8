"""Each counter store, with a clock of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from uuid import uuid4

import pytest

from services.common.counter_store.memory import MemoryCounterStore
from services.common.counter_store.protocol import CounterStore
from services.common.counter_store.valkey import ValkeyCounterStore
from services.common.telemetry.logging import get_log
from services.common.valkey import open_valkey
from tests.contract.passing import Passing
from tests.fakes.clock import ManualClock
from tests.fakes.valkey import ValkeyServer


@dataclass(slots=True, kw_only=True)
class Counting(Passing):
    store: CounterStore


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.needs_valkey)])
async def counting(request: pytest.FixtureRequest) -> AsyncIterator[Counting]:
    if request.param == "memory":
        clock = ManualClock()
        yield Counting(store=MemoryCounterStore(clock), clock=clock)
        return
    async with AsyncExitStack() as opened:
        server: ValkeyServer = request.getfixturevalue("valkey")
        valkey = await opened.enter_async_context(open_valkey(server.url, get_log("test")))
        yield Counting(store=ValkeyCounterStore(valkey, prefix=str(uuid4()), bound_s=5))
