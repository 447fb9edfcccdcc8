"""What the relay's bench says: one line per subject and load, the relay over the SDK's proxy, and
which targets were missed. Pure: runs in, text out.

A run's `engine` names its era here; of the whole data plane, the engine that decides.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from tests.perf.arithmetic import Run
from tests.perf.report import data_plane_ms

#: Of mcp.md, M-PERF.
SHARE_OF_SDK: Final = 0.25
RELAY_MS: Final = 1.0
TIMES_DIRECT: Final = 3.0
OVER_DIRECT_MS: Final = 3.0
TIMES_BASELINE: Final = 1.3
JUDGED: Final = "modern"
#: The process whose CPU is compared.
PROCESS: Final = {"sdk": "sdk_proxy", "relay": "proxy", "behavry": "proxy"}


def table(runs: Sequence[Run]) -> list[str]:
    head = f"{'subject':10}{'era, engine':12}{'c':>3}{'n':>8}{'p50 ms':>9}{'p95 ms':>9}"
    lines = [head + f"{'calls/s':>9}{'relay CPU':>11}{'of SDK':>8}{'data plane':>12}"]
    for run in runs:
        sdk = _other("sdk", run, runs)
        cells = f"{run.subject:10}{run.engine or '-':12}{run.c:>3}{run.n:>8}{run.p50_ms:>9.3f}"
        cells += f"{run.p95_ms:>9.3f}{run.calls_per_s:>9.1f}"
        if run.subject in PROCESS:
            share = relay_ms(run) / relay_ms(sdk) if sdk and relay_ms(sdk) else 0.0
            cells += f"{relay_ms(run):>8.3f} ms{share:>8.2f}"
        if run.subject == "behavry":
            cells += f"{data_plane_ms(run):>9.3f} ms"
        lines.append(cells)
    return lines


def missed(runs: Sequence[Run], baseline: Sequence[Run] = ()) -> list[str]:
    """CPU where there is work to do at once, latency where each call is alone; in the era in which
    the SDK's own halves speak with one another. The other one is shown.
    """
    before = {_key(run): run for run in baseline}
    found = []
    for run in (one for one in runs if (one.subject, one.engine) == ("relay", JUDGED)):
        where = f"{run.engine}, c={run.c}"
        sdk, direct = _other("sdk", run, runs), _other("direct", run, runs)
        if run.kind == "throughput":
            if sdk is None or relay_ms(run) > SHARE_OF_SDK * relay_ms(sdk):
                allowed = SHARE_OF_SDK * relay_ms(sdk) if sdk else 0.0
                found.append(f"{where}: {relay_ms(run):.3f} ms CPU, 1/4 of the SDK: {allowed:.3f}")
            if relay_ms(run) > RELAY_MS:
                found.append(f"{where}: {relay_ms(run):.3f} ms CPU, target {RELAY_MS:g}")
        else:
            limit = p50_limit_ms(direct) if direct else 0.0
            if run.p50_ms > limit:
                found.append(f"{where}: p50 {run.p50_ms:.3f} ms, target {limit:.3f}")
        earlier = before.get(_key(run))
        if earlier and run.p95_ms > TIMES_BASELINE * earlier.p95_ms:
            found.append(f"{where}: p95 {run.p95_ms:.3f} ms, was {earlier.p95_ms:.3f}")
    return found


def relay_ms(run: Run) -> float:
    return run.cpu_ms_per_call.get(PROCESS[run.subject], 0.0)


def p50_limit_ms(direct: Run) -> float:
    return max(TIMES_DIRECT * direct.p50_ms, direct.p50_ms + OVER_DIRECT_MS)


def medians(latencies_us: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """In milliseconds, by what was called."""
    return {name: sorted(all_)[len(all_) // 2] / 1000 for name, all_ in latencies_us.items()}


def spread(medians_ms: Mapping[str, float]) -> float:
    """How much more the slowest takes than the quickest: 0.2 is a fifth."""
    return max(medians_ms.values()) / min(medians_ms.values()) - 1


def _other(subject: str, run: Run, runs: Sequence[Run]) -> Run | None:
    """The same load on another subject; the whole data plane is asked in the modern era."""
    era = "modern" if run.subject == "behavry" else run.engine
    same = (one for one in runs if (one.subject, one.engine, one.c) == (subject, era, run.c))
    return next(same, None)


def _key(run: Run) -> tuple[str, str | None, int]:
    return run.subject, run.engine, run.c
