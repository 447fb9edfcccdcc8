"""Each rendezvous: two processes' ends of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from uuid import uuid4

import pytest

from services.common.rendezvous.memory import MemoryRendezvous
from services.common.rendezvous.protocol import Rendezvous
from services.common.rendezvous.valkey import ValkeyRendezvous
from services.common.telemetry.logging import get_log
from services.common.valkey import open_valkey
from tests.contract.passing import Passing
from tests.fakes.clock import ManualClock
from tests.fakes.valkey import ValkeyServer


@dataclass(slots=True, kw_only=True)
class Meeting(Passing):
    here: Rendezvous
    there: Rendezvous


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.needs_valkey)])
async def meeting(request: pytest.FixtureRequest) -> AsyncIterator[Meeting]:
    if request.param == "memory":
        clock = ManualClock()
        one = MemoryRendezvous(clock)
        yield Meeting(here=one, there=one, clock=clock)
        return
    server: ValkeyServer = request.getfixturevalue("valkey")
    prefix, log = str(uuid4()), get_log("test")
    async with AsyncExitStack() as opened:
        here, there = [
            ValkeyRendezvous(
                await opened.enter_async_context(open_valkey(server.url, log)),
                prefix=prefix,
                bound_s=5,
            )
            for _ in range(2)
        ]
        yield Meeting(here=here, there=there)
