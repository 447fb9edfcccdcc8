"""Step 5: how often an agent, a tenant and a tool may be asked for (core.md 6).

Decides which buckets a call takes from: all of them at once, or none and a refusal that says when
to come back. The counts are the counter store's, which says at once when it is lost; then each
replica gives its share of the limits on its own, call by call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from services.authorizer.plane_state import Limits
from services.common.clock import Clock
from services.common.counter_store.memory import MemoryCounterStore
from services.common.counter_store.protocol import Bucket, CounterStore, CounterStoreLost
from services.common.telemetry.logging import Log

#: A store that answered so lately was slow, and is not called lost.
SLOW_NS: Final = 1_000_000_000
#: A third of a minute's worth at once, where a limit names no burst; the agents' default ratio.
BURST_SHARE: Final = 3
_KEPT: Final = 10_000

#: `shared`: the counts are the whole plane's. `local`: the store is lost, they are this process's.
CountersState = Literal["shared", "local"]


@dataclass(frozen=True, slots=True)
class Rated:
    """`retry_after_ms` is 0 where the call may go on."""

    retry_after_ms: int
    counters: CountersState


_PASSED: Final = Rated(0, "shared")
_PASSED_LOCALLY: Final = Rated(0, "local")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """Whose buckets a call takes from. `session` is named where it is held to a rate of its own."""

    tenant: str
    limits: Limits
    agent: str
    agent_milli: int = 1000
    session: str = ""
    session_milli: int = 1000
    server: str
    tool: str


class Rates:
    """`store` may be this process's memory: then there is nothing to lose."""

    def __init__(self, *, store: CounterStore, clock: Clock, log: Log, replicas: int = 1) -> None:
        self._store = store
        self._clock = clock
        self._log = log
        self._replicas = replicas
        self._local = MemoryCounterStore(clock)
        self._answered_ns = 0
        self._alerted = False
        self._last: Rated = _PASSED
        #: Tenant and agent -> the limits and factor that their two buckets were made of, and those.
        self._usual: dict[tuple[str, str], tuple[Limits, int, tuple[Bucket, Bucket]]] = {}

    @property
    def passed(self) -> Rated:
        """For a call that has paid already and is only judged again."""
        return self._last

    async def take(self, spending: Spending) -> Rated:
        """Does not wait where the store is in memory."""
        buckets: Sequence[Bucket] = self._agent_and_tenant(spending)
        if spending.limits.tools or spending.session:
            buckets = (*buckets, *_special(spending))
        try:
            taken = await self._store.take(buckets)
        except CounterStoreLost:
            self._lost()
            taken = await self._local.take([_share(bucket, self._replicas) for bucket in buckets])
            passed: Rated = _PASSED_LOCALLY
        else:
            self._answered()
            passed = _PASSED
        self._last = passed
        return Rated(taken.retry_after_ms, passed.counters) if taken.retry_after_ms else passed

    def _agent_and_tenant(self, spending: Spending) -> tuple[Bucket, Bucket]:
        key = (spending.tenant, spending.agent)
        known = self._usual.get(key)
        limits, milli = spending.limits, spending.agent_milli
        if known is not None and known[0] is limits and known[1] == milli:
            return known[2]
        per_tenant = limits.tenant_per_minute
        buckets = (
            _bucket(f"rate:{spending.tenant}:agent:{spending.agent}", limits, milli),
            Bucket(
                key=f"rate:{spending.tenant}:all",
                per_minute=per_tenant,
                burst=max(1, per_tenant // BURST_SHARE),
            ),
        )
        if len(self._usual) >= _KEPT:
            self._usual.clear()
        self._usual[key] = (limits, milli, buckets)
        return buckets

    def _lost(self) -> None:
        if not self._alerted and self._clock.monotonic_ns() - self._answered_ns >= SLOW_NS:
            self._alerted = True
            self._log.error("counter_store_lost", alert="high", replicas=self._replicas)

    def _answered(self) -> None:
        self._answered_ns = self._clock.monotonic_ns()
        if self._alerted:
            self._alerted = False
            self._log.warning("counter_store_back")


def _special(spending: Spending) -> list[Bucket]:
    """Buckets that few calls have: a limited tool's, a restricted session's."""
    found: list[Bucket] = []
    per_minute = spending.limits.tools.get(spending.server, {}).get(spending.tool)
    if per_minute is not None:
        key = f"rate:{spending.tenant}:tool:{spending.server}/{spending.tool}"
        burst = max(1, per_minute // BURST_SHARE)
        found.append(Bucket(key=key, per_minute=per_minute, burst=burst))
    if spending.session:
        key = f"rate:{spending.tenant}:session:{spending.session}"
        found.append(_bucket(key, spending.limits, spending.session_milli))
    return found


def _bucket(key: str, limits: Limits, milli: int) -> Bucket:
    """An agent's limit, or what is left of it."""
    return Bucket(
        key=key,
        per_minute=max(1, limits.agent_per_minute * milli // 1000),
        burst=max(1, limits.agent_burst * milli // 1000),
    )


def _share(bucket: Bucket, replicas: int) -> Bucket:
    return replace(
        bucket,
        per_minute=max(1, bucket.per_minute // replicas),
        burst=max(1, bucket.burst // replicas),
    )
