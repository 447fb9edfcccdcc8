"""The bench's table, its ratios, and which targets were missed. Pure: runs in, text out."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from tests.perf.arithmetic import Run, added_ratio

DATA_PLANE: Final = ("proxy", "authorizer", "engine", "audit", "postgres")
ADDED_AT_ONE: Final = 8.0
ADDED_AT_RATE: Final = 12.0
DATA_PLANE_MS: Final = 3.0


def table(runs: Sequence[Run], idle: Mapping[str, Mapping[str, float]]) -> str:
    lines = [_columns("subject", "engine", "kind", "c", "rate", "n", "err", "records", "p50 ms")]
    lines[0] += f"{'p95 ms':>9}{'p99 ms':>9}{'calls/s':>10}{'cpu ms':>9}"
    for run in runs:
        rate = "-" if run.rate is None else f"{run.rate:g}"
        start = _columns(
            *(run.subject, run.engine or "-", run.kind, run.c, rate, run.n, run.errors),
            *(run.records, f"{run.p50_ms:.3f}"),
        )
        cpu = sum(run.cpu_ms_per_call.values())
        lines.append(
            f"{start}{run.p95_ms:>9.3f}{run.p99_ms:>9.3f}{run.calls_per_s:>10.1f}{cpu:>9.3f}"
        )
    lines += ["", "CPU ms per call, by process (idle CPU taken off):"]
    lines += [f"  {_name(run):<40}{_parts(run.cpu_ms_per_call)}" for run in runs]
    lines += ["", "idle CPU, ms per second:"]
    lines += [f"  {name:<40}{_parts(used, digits=1)}" for name, used in idle.items()]
    lines += ["", *ratios(runs)]
    return "\n".join(lines)


def ratios(runs: Sequence[Run]) -> list[str]:
    said = []
    for run in _behavry(runs):
        if run.kind == "latency":
            ratio, added, floor_adds = _added(run, runs)
            said.append(
                f"{_name(run)}: adds {added:.3f} ms p50 over direct, "
                f"{ratio:.1f} x the floor's {floor_adds:.3f} ms (target {_target(run):g} x)"
            )
        else:
            said.append(f"{_name(run)}: data plane {data_plane_ms(run):.3f} ms CPU per call")
    return said


def missed_targets(runs: Sequence[Run]) -> list[str]:
    missed = []
    for run in _behavry(runs):
        if run.kind == "latency":
            ratio, _, _ = _added(run, runs)
            if not ratio <= _target(run):
                missed.append(f"{_name(run)}: {ratio:.1f} x the floor, target {_target(run):g} x")
        elif run.c == 8 and data_plane_ms(run) > DATA_PLANE_MS:
            missed.append(f"{_name(run)}: {data_plane_ms(run):.2f} ms, target {DATA_PLANE_MS:g} ms")
    return missed


def data_plane_ms(run: Run) -> float:
    return sum(run.cpu_ms_per_call.get(name, 0.0) for name in DATA_PLANE)


def _added(run: Run, runs: Sequence[Run]) -> tuple[float, float, float]:
    """(ratio, what the subject adds, what the floor adds), under the same load."""
    same = {one.subject: one.p50_ms for one in runs if (one.c, one.rate) == (run.c, run.rate)}
    if "direct" not in same or "floor" not in same:
        return math.nan, math.nan, math.nan
    ratio = added_ratio(direct=same["direct"], floor=same["floor"], subject=run.p50_ms)
    return ratio, run.p50_ms - same["direct"], same["floor"] - same["direct"]


def _behavry(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.subject == "behavry"]


def _target(run: Run) -> float:
    return ADDED_AT_ONE if run.rate is None else ADDED_AT_RATE


def _name(run: Run) -> str:
    subject = run.subject if run.engine is None else f"{run.subject} ({run.engine})"
    return f"{subject}, {f'c={run.c}' if run.rate is None else f'{run.rate:g}/s'}"


def _parts(used: Mapping[str, float], *, digits: int = 3) -> str:
    return " ".join(f"{name}={ms:.{digits}f}" for name, ms in sorted(used.items()))


def _columns(*cells: object) -> str:
    widths = (9, 10, 12, 4, 6, 9, 6, 9, 9)
    first, *rest = zip(cells, widths, strict=True)
    head = f"{first[0]:<{first[1]}}"
    return head + "".join(f"{cell!s:>{width}}" for cell, width in rest)
