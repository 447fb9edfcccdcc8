"""The sums of the bench: percentiles, rates, CPU per call, ratios over the floor. Pure.

Decides what each printed figure means; measuring is load.py's and procs.py's work.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One line of bench.json: one subject under one load, all its slices together."""

    subject: str
    engine: str | None
    kind: str
    c: int
    rate: float | None
    seconds: float
    n: int
    errors: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    calls_per_s: float
    cpu_ms_per_call: dict[str, float]
    records: int


def percentile(ordered: Sequence[int], share: float) -> int:
    """Nearest rank: the smallest value with at least `share` of all values at or below it."""
    if not ordered:
        return 0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def milliseconds(microseconds: float) -> float:
    return round(microseconds / 1000, 3)


def late_by(scheduled: float, finished: float) -> int:
    """Microseconds from when the call was due, not from when a free connection let it go out:
    what a slow answer made others wait is part of the measure (coordinated omission).
    """
    return max(0, round((finished - scheduled) * 1e6))


def net_cpu_ms(
    used: Mapping[str, float], idle_ms_per_s: Mapping[str, float], wall_s: float
) -> dict[str, float]:
    """What the calls cost: CPU used over the window less what the process burns when idle."""
    idle_ms = {name: rate * wall_s for name, rate in idle_ms_per_s.items()}
    return {name: max(0.0, value - idle_ms.get(name, 0.0)) for name, value in used.items()}


def per_call(used: Mapping[str, float], calls: int) -> dict[str, float]:
    return {name: round(value / calls, 4) if calls else 0.0 for name, value in used.items()}


def added_ratio(*, direct: float, floor: float, subject: float) -> float:
    """Added p50 of the subject over direct, in units of what the floor adds."""
    floor_adds = floor - direct
    return math.inf if floor_adds <= 0 else (subject - direct) / floor_adds
