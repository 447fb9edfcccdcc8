"""What the suites of replicas' stores share: time that passes for one of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tests.fakes.clock import ManualClock


@dataclass(slots=True, kw_only=True)
class Passing:
    #: None: a server, which has a clock of its own.
    clock: ManualClock | None = None

    async def pass_ms(self, milliseconds: int) -> None:
        """With a server a test waits, and asks for little."""
        if self.clock is None:
            done = asyncio.Event()
            asyncio.get_running_loop().call_later(milliseconds / 1_000, done.set)
            await done.wait()
        else:
            self.clock.advance(milliseconds / 1_000)
