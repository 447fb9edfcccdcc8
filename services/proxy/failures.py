"""Failed authentication: how often, from where, what of it is recorded (mcp.md 1.3, audit.md 1.1).

Up to 10 per address, reason and minute are recorded each, the rest as one with a count. 20 per
address and minute, and the address has to wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.common.clock import Clock
from services.common.ids import TenantId

RECORDED: Final = 10
ALLOWED: Final = 20
WINDOW_NS: Final = 60 * 1_000_000_000
MAX_KEYS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    address: str
    reason: str
    tenant: TenantId | None
    agent: str
    server: str


class Failures:
    """`record` is called with each failure, or with several as one and their count."""

    def __init__(self, clock: Clock, record: Callable[[Failure, int], None]) -> None:
        self._clock = clock
        self._record = record
        self._addresses: dict[str, list[int]] = {}
        self._counts: dict[tuple[str, str, str], tuple[int, int, Failure]] = {}

    def blocked(self, address: str) -> bool:
        """Whether the address failed 20 times within a minute."""
        times = self._addresses.get(address)
        if times is None:
            return False
        now_ns = self._clock.monotonic_ns()
        return len(times) >= ALLOWED and now_ns - times[-ALLOWED] < WINDOW_NS

    def add(self, failure: Failure) -> None:
        now_ns = self._clock.monotonic_ns()
        if len(self._addresses) >= MAX_KEYS or len(self._counts) >= MAX_KEYS:
            self.sweep(everything=True)
        times = self._addresses.setdefault(failure.address, [])
        times.append(now_ns)
        del times[:-ALLOWED]
        key = (failure.address, failure.reason, failure.tenant or "")
        since_ns, count, first = self._counts.get(key, (now_ns, 0, failure))
        if now_ns - since_ns >= WINDOW_NS:
            self._tell_rest(first, count)
            since_ns, count, first = now_ns, 0, failure
        self._counts[key] = (since_ns, count + 1, first)
        if count < RECORDED:
            self._record(failure, 1)

    def sweep(self, *, everything: bool = False) -> None:
        """Records what was merged and forgets what is old."""
        now_ns = self._clock.monotonic_ns()
        for key, (since_ns, count, first) in list(self._counts.items()):
            if everything or now_ns - since_ns >= WINDOW_NS:
                del self._counts[key]
                self._tell_rest(first, count)
        for address, times in list(self._addresses.items()):
            if everything or now_ns - times[-1] >= WINDOW_NS:
                del self._addresses[address]

    def _tell_rest(self, first: Failure, count: int) -> None:
        if count > RECORDED:
            self._record(first, count - RECORDED)
