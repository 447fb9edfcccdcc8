"""What a tool server was asked for once, kept for as long as it may be (mcp.md 6).

Decides when it is asked again: after the time that the server gave, at most 5 minutes, and so
seldom that asking takes a twentieth of the time at most; at once where the server says that
something changed. Where the server knows agents apart by a credential, each has its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from weakref import WeakValueDictionary

from services.common.clock import Clock
from services.common.ids import ServerSlug, TenantId
from services.proxy.calls import Visit
from services.proxy.pages import FRESH_NS
from services.proxy.snapshot import Server

MAX_KEPT: Final = 1_000
#: A server that gives its list no time to live is asked again after this, not at every call.
SHORTEST_NS: Final = 1_000_000_000
#: What takes long to fetch lives this many times as long.
PER_FETCH: Final = 20

#: Tenant, server, and the agent where the server knows it by a credential of its own.
Place = tuple[TenantId, ServerSlug, str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Kept(Generic[T]):
    value: T
    server: Server
    began_ns: int
    at_ns: int
    life_ns: int


class Kept(Generic[T]):
    """`ttl_ns` says how long a value may live by its server's word."""

    def __init__(self, clock: Clock, ttl_ns: Callable[[T], int]) -> None:
        self._clock = clock
        self._ttl_ns = ttl_ns
        self._kept: dict[Place, _Kept[T]] = {}
        self._fetching: WeakValueDictionary[Place, asyncio.Lock] = WeakValueDictionary()

    def fresh(self, visit: Visit, age_ns: int = FRESH_NS) -> T | None:
        kept = self._kept.get(place(visit))
        # A server whose entry changed is another server.
        if kept is None or (kept.server is not visit.server and kept.server != visit.server):
            return None
        young = self._clock.monotonic_ns() - kept.at_ns < min(kept.life_ns, age_ns)
        return kept.value if young else None

    async def renewed(
        self,
        visit: Visit,
        fetch: Callable[[], Awaitable[T]],
        age_ns: int = FRESH_NS,
        *,
        since_ns: int | None = None,
    ) -> tuple[T, bool]:
        """What is kept, or what is fetched now, and whether it was. Single flight: who waited for
        another's fetch takes its result, if it began after `since_ns`.
        """
        here = place(visit)
        lock = self._fetching.get(here)
        if lock is None:
            lock = self._fetching[here] = asyncio.Lock()
        async with lock:
            known = self.fresh(visit, age_ns)
            if known is not None and (since_ns is None or self._kept[here].began_ns >= since_ns):
                return known, False
            began_ns = self._clock.monotonic_ns()
            value = await fetch()
            at_ns = self._clock.monotonic_ns()
            while len(self._kept) >= MAX_KEPT and here not in self._kept:
                del self._kept[next(iter(self._kept))]  # the oldest; it is fetched again
            life_ns = _life_ns(self._ttl_ns(value), took_ns=at_ns - began_ns)
            self._kept[here] = _Kept(value, visit.server, began_ns, at_ns, life_ns)
            return value, True

    def last(self, visit: Visit) -> T | None:
        """However old."""
        kept = self._kept.get(place(visit))
        return None if kept is None else kept.value

    def forget(self, visit: Visit) -> None:
        self._kept.pop(place(visit), None)

    def clear(self) -> None:
        self._kept.clear()


def place(visit: Visit) -> Place:
    own = visit.server.credential.per_agent
    return visit.caller.tenant, visit.slug, visit.caller.agent if own else ""


def _life_ns(ttl_ns: int, *, took_ns: int) -> int:
    return min(max(ttl_ns, SHORTEST_NS, took_ns * PER_FETCH), FRESH_NS)
