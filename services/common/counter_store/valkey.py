"""Counts that the processes of a plane share through a Valkey or Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.common.counter_store.bucket import UNITS, fill_ms
from services.common.counter_store.protocol import MAX_RETRY_MS, Bucket, CounterStoreLost, Taken
from services.common.valkey import Valkey, ValkeyLost

BOUND_S: Final = 0.05

#: The sums of bucket.py by the server's clock: one clock for all who count. KEYS are the buckets,
#: ARGV per_minute, burst, cost, milliseconds to fill, of each. Answers {longest wait, its index}.
#: A bucket is kept as `units:microseconds`; %.0f because a double prints itself as 1.7e+15.
_TAKE: Final = f"""
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local left, longest, lacking = {{}}, 0, 0
for i, key in ipairs(KEYS) do
  local per_minute, burst = tonumber(ARGV[4 * i - 3]), tonumber(ARGV[4 * i - 2])
  local cost = tonumber(ARGV[4 * i - 1]) * {UNITS}
  local units = burst * {UNITS}
  local kept = redis.call('GET', key)
  if kept then
    local held, at = string.match(kept, '^(%d+):(%d+)$')
    if held then
      local elapsed = math.max(0, now - tonumber(at))
      units = math.min(units, tonumber(held) + elapsed * per_minute)
    end
  end
  local wait = 0
  if units < cost then
    wait = {MAX_RETRY_MS}
    if cost <= burst * {UNITS} and per_minute >= 1 then
      wait = math.min(wait, math.ceil((cost - units) / (per_minute * 1000)))
    end
  end
  if wait > longest then
    longest, lacking = wait, i
  end
  left[i] = units - cost
end
if longest == 0 then
  for i, key in ipairs(KEYS) do
    redis.call('SET', key, string.format('%.0f:%.0f', left[i], now), 'PX', ARGV[4 * i])
  end
end
return {{longest, lacking}}
"""


class ValkeyCounterStore:
    """`prefix` keeps planes apart that share a server."""

    def __init__(self, valkey: Valkey, *, prefix: str, bound_s: float = BOUND_S) -> None:
        self._valkey = valkey
        self._bound_s = bound_s
        #: In braces: a cluster keeps all keys of a plane on one node, as the script needs them.
        self._prefix = f"{{{prefix}}}:count:"
        self._take = valkey.script(_TAKE)

    async def take(self, buckets: Sequence[Bucket]) -> Taken:
        if not buckets:
            return Taken(allowed=True, retry_after_ms=0)
        args: list[int] = []
        for bucket in buckets:
            args += [bucket.per_minute, bucket.burst, bucket.cost, max(1, fill_ms(bucket))]
        keys = [self._prefix + bucket.key for bucket in buckets]
        try:
            wait, lacking = await self._valkey.run(self._take, keys, args, bound_s=self._bound_s)
        except ValkeyLost as lost:
            raise CounterStoreLost(str(lost)) from None
        if wait:
            return Taken(False, wait, buckets[lacking - 1].key)
        return Taken(allowed=True, retry_after_ms=0)

    async def remember(self, key: str, ttl_s: int) -> bool:
        name, ttl_ms = self._key_of(key), ttl_s * 1_000
        try:
            before = await self._valkey.call(
                lambda server: server.set(name, "1", px=ttl_ms, get=True), bound_s=self._bound_s
            )
        except ValkeyLost as lost:
            raise CounterStoreLost(str(lost)) from None
        return before is None

    async def known(self, key: str) -> bool:
        name = self._key_of(key)
        try:
            return bool(
                await self._valkey.call(lambda server: server.exists(name), bound_s=self._bound_s)
            )
        except ValkeyLost as lost:
            raise CounterStoreLost(str(lost)) from None

    def _key_of(self, key: str) -> str:
        return f"{self._prefix}known:{key}"
