"""Counts of one process: what a plane with one authorizer needs, and what is left when the shared
store is lost. Never raises CounterStoreLost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.common.clock import Clock
from services.common.counter_store.bucket import UNITS, fill_ms, level, wait_ms
from services.common.counter_store.protocol import Bucket, Taken

#: Beyond this many entries, what is full again or has expired is dropped.
_SWEEP_AT: Final = 10_000


@dataclass(slots=True)
class _Held:
    units: int
    at_us: int
    full_at_us: int


class MemoryCounterStore:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[str, _Held] = {}
        self._known_until_us: dict[str, int] = {}
        self._sweep_buckets_at = self._sweep_keys_at = _SWEEP_AT

    async def take(self, buckets: Sequence[Bucket]) -> Taken:
        now_us = self._now_us()
        levels = [self._level(bucket, now_us) for bucket in buckets]
        waits = [wait_ms(bucket, holds) for bucket, holds in zip(buckets, levels, strict=True)]
        longest = max(waits, default=0)
        if longest:
            return Taken(
                allowed=False, retry_after_ms=longest, lacking=buckets[waits.index(longest)].key
            )
        for bucket, holds in zip(buckets, levels, strict=True):
            full_at_us = now_us + fill_ms(bucket) * 1_000
            self._buckets[bucket.key] = _Held(holds - bucket.cost * UNITS, now_us, full_at_us)
        if len(self._buckets) > self._sweep_buckets_at:
            self._buckets = {k: h for k, h in self._buckets.items() if h.full_at_us > now_us}
            self._sweep_buckets_at = max(_SWEEP_AT, 2 * len(self._buckets))
        return Taken(allowed=True, retry_after_ms=0)

    async def remember(self, key: str, ttl_s: int) -> bool:
        now_us = self._now_us()
        new = self._known_until_us.get(key, 0) <= now_us
        self._known_until_us[key] = now_us + ttl_s * 1_000_000
        if len(self._known_until_us) > self._sweep_keys_at:
            self._known_until_us = {k: u for k, u in self._known_until_us.items() if u > now_us}
            self._sweep_keys_at = max(_SWEEP_AT, 2 * len(self._known_until_us))
        return new

    async def known(self, key: str) -> bool:
        return self._known_until_us.get(key, 0) > self._now_us()

    def _level(self, bucket: Bucket, now_us: int) -> int:
        held = self._buckets.get(bucket.key)
        if held is None:
            return level(bucket, None, 0)
        return level(bucket, held.units, now_us - held.at_us)

    def _now_us(self) -> int:
        return self._clock.monotonic_ns() // 1_000
