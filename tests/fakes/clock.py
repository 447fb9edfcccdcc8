"""A clock that tests move."""

from __future__ import annotations

from dataclasses import dataclass

START_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z


@dataclass(slots=True)
class ManualClock:
    wall_ns: int = START_NS
    steady_ns: int = 1_000_000_000

    def now_ns(self) -> int:
        return self.wall_ns

    def monotonic_ns(self) -> int:
        return self.steady_ns

    def advance(self, seconds: float) -> None:
        """Both clocks go on, as in life."""
        self.wall_ns += int(seconds * 1e9)
        self.steady_ns += int(seconds * 1e9)

    def set_wall(self, wall_ns: int) -> None:
        """Only the wall clock jumps, as when somebody sets it."""
        self.wall_ns = wall_ns
