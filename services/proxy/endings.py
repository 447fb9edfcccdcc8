"""Which legacy sessions ended before their time (mcp.md 9: as if they never were).

Decides what is known of that here, and what all proxies of a plane know. While the shared store is
lost, each goes on by what it has seen or was told itself, as with rates (core.md 11): a session
lets nobody do anything that its agent's token does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from services.common.clock import Clock
from services.common.counter_store.protocol import CounterStore, CounterStoreLost
from services.common.ids import AgentId, TenantId
from services.common.telemetry.logging import Log

LIFE_S: Final = 12 * 3600
#: Of one agent, one by one. Where there are more, the older half is known by its age: whatever
#: began before and is not in use is over.
MOST: Final = 1_000
#: That the shared store has not heard of; the oldest are not told any more.
MOST_UNTOLD: Final = 10_000
#: A store that answered so lately was slow, and is not called lost.
SLOW_NS: Final = 1_000_000_000
_NS: Final = 1_000_000_000

Owner = tuple[TenantId, AgentId]


@dataclass(slots=True)
class _Ended:
    """Of one agent: when each session began, and before what all are over."""

    began_s: dict[str, int] = field(default_factory=dict)
    floor_s: int = -1


class Endings:
    """One per process. `shared` is None where no other process asks."""

    def __init__(self, clock: Clock, log: Log, shared: CounterStore | None = None) -> None:
        self._clock = clock
        self._log = log
        self._shared = shared
        self._of: dict[Owner, _Ended] = {}
        #: What the shared store has not heard yet, with the time until which it matters.
        self._untold: dict[str, int] = {}
        self._there = True
        self._alerted = False
        self._answered_ns = clock.monotonic_ns()

    def __len__(self) -> int:
        return sum(len(ended.began_s) for ended in self._of.values())

    def note(self, owner: Owner, session_id: str, opened_s: int) -> None:
        """It ended, here or elsewhere."""
        ended = self._of.setdefault(owner, _Ended())
        ended.began_s[session_id] = opened_s
        if len(ended.began_s) > MOST:
            ended.floor_s = sorted(ended.began_s.values())[MOST // 2]
            ended.began_s = {
                one: began for one, began in ended.began_s.items() if began > ended.floor_s
            }

    async def tell(self, session_id: str, opened_s: int) -> None:
        """So that every proxy knows it."""
        if self._shared is None:
            return
        until_s = opened_s + LIFE_S
        self._untold[session_id] = until_s
        if len(self._untold) > MOST_UNTOLD:
            del self._untold[next(iter(self._untold))]
        left_s = until_s - self._now_s()
        if left_s <= 0 or await self._remember(f"session:{session_id}", left_s):
            self._untold.pop(session_id, None)

    async def over(
        self, owner: Owner, session_id: str, opened_s: int, *, in_use: Callable[[], bool]
    ) -> bool:
        """1. what is known here  2. the shared store  3. without one, its age."""
        ended = self._of.get(owner)
        if ended is not None and session_id in ended.began_s:  # 1
            return True
        if self._shared is not None:  # 2
            known = await self._known(f"session:{session_id}")
            if known is not None:
                return known
        return ended is not None and opened_s <= ended.floor_s and not in_use()  # 3

    async def used_elsewhere(self, session_id: str) -> bool | None:
        """Whether another process has served it lately; None where that cannot be told."""
        if self._shared is None:
            return False
        return await self._known(f"used:{session_id}")

    async def used(self, session_id: str, for_s: int) -> bool:
        """So that no other process takes it for idle. Whether they know."""
        return await self._remember(f"used:{session_id}", for_s)

    async def sweep(self) -> None:
        """Forgets what is over, and tells what could not be told."""
        oldest_s = self._now_s() - LIFE_S
        for owner, ended in list(self._of.items()):
            ended.began_s = {one: at for one, at in ended.began_s.items() if at >= oldest_s}
            if not ended.began_s and ended.floor_s < oldest_s:
                del self._of[owner]
        for session_id, until_s in list(self._untold.items()):
            await self.tell(session_id, until_s - LIFE_S)
            if not self._there:
                return

    async def _remember(self, key: str, ttl_s: int) -> bool:
        """Whether that could be done."""
        if self._shared is None:
            return True
        try:
            await self._shared.remember(key, ttl_s)
        except CounterStoreLost:
            self._lost()
            return False
        self._answered()
        return True

    async def _known(self, key: str) -> bool | None:
        """None: nobody can tell."""
        if self._shared is None:
            return None
        try:
            known = await self._shared.known(key)
        except CounterStoreLost:
            self._lost()
            return None
        self._answered()
        return known

    def _lost(self) -> None:
        self._there = False
        if not self._alerted and self._clock.monotonic_ns() - self._answered_ns >= SLOW_NS:
            self._alerted = True
            self._log.error("counter_store_lost", alert="high")

    def _answered(self) -> None:
        self._there = True
        self._answered_ns = self._clock.monotonic_ns()
        if self._alerted:
            self._alerted = False
            self._log.warning("counter_store_back")

    def _now_s(self) -> int:
        return self._clock.now_ns() // _NS
