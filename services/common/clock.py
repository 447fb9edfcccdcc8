"""The only reader of clocks. Everything else is handed a Clock, so that tests can move time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now_ns(self) -> int:
        """Wall-clock nanoseconds since 1970 UTC."""

    def monotonic_ns(self) -> int:
        """Nanoseconds on a clock that never goes back and counts suspend where the system can."""


class SystemClock:
    __slots__ = ()

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def rfc3339(now_ns: int) -> str:
    """`2026-01-31T12:00:00.123456Z` (RFC 3339, microseconds, UTC)."""
    stamp = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)
    return f"{stamp:%Y-%m-%dT%H:%M:%S}.{now_ns % 1_000_000_000 // 1_000:06d}Z"


def micros(now_ns: int) -> int:
    """Integer microseconds, the unit of times in records."""
    return now_ns // 1_000
