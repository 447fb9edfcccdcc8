"""The arithmetic of a token bucket, in whole numbers: a token is 60,000,000 units, so that a bucket
of n per minute fills by n units a microsecond and nothing is ever rounded.

valkey.py's script does the same sums (its numbers are doubles, exact below 2**53).
"""

from __future__ import annotations

from typing import Final

from services.common.counter_store.protocol import MAX_RETRY_MS, Bucket

UNITS: Final = 60_000_000


def level(bucket: Bucket, held: int | None, elapsed_us: int) -> int:
    """What it holds now. `held` is what was left `elapsed_us` ago, None for a bucket never seen."""
    full = bucket.burst * UNITS
    if held is None:
        return full
    return min(full, held + max(0, elapsed_us) * bucket.per_minute)


def wait_ms(bucket: Bucket, holds: int) -> int:
    """Until it can give what it costs; 0 now."""
    lacking = bucket.cost * UNITS - holds
    if lacking <= 0:
        return 0
    if bucket.cost > bucket.burst or bucket.per_minute < 1:
        return MAX_RETRY_MS  # never
    return min(MAX_RETRY_MS, -(-lacking // (bucket.per_minute * 1_000)))


def fill_ms(bucket: Bucket) -> int:
    """After so long an untouched bucket is full, and like one never seen; at most a day."""
    return min(86_400_000, -(-bucket.burst * UNITS // (max(1, bucket.per_minute) * 1_000)))
