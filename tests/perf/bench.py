"""The bench: one interleaved run over direct, floor and Behavry with either engine.

Latency comes from one caller and from an open loop at a fixed rate; throughput from closed loops
of 8 and 32 (a closed loop shows throughput, not latency). Subjects take turns in slices of two
seconds, so that whatever else the machine does falls on all of them alike. CPU is counted until
the last record of a slice is in its chain; what processes burn when idle is measured apart and
taken off. Every run must have no error, and of Behavry two chained records per call: else exit 1.
Missed targets: exit 3. `--short` is for CI: everything, briefly, and no targets.

    python -m tests.perf.bench [--seconds S] [--concurrency 1,8,32] [--rate R]
                               [--engines embedded,opa|none] [--short] [--out FILE]
"""

import argparse
import hashlib
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.fakes.children import ROOT, child
from tests.fakes.stack import until
from tests.perf import subjects
from tests.perf.arithmetic import Run, milliseconds, net_cpu_ms, per_call, percentile
from tests.perf.load import OPEN_LOOP_CONNECTIONS, Order, Result
from tests.perf.procs import grown, usage
from tests.perf.report import missed_targets, table
from tests.perf.subjects import Subject

FLOOR: Final = Path(__file__).with_name("floor.py")
SLICE_S: Final = 2.0
IDLE_S: Final = 3.0
DRAIN_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    kind: str
    c: int
    rate: float | None = None


@dataclass(slots=True)
class Gathered:
    """All slices of one subject under one load."""

    latencies_us: list[int] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    used_ms: Counter[str] = field(default_factory=Counter)
    records: int = 0


class Client:
    """The load process, asked slice by slice."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def run(self, order: Order) -> Result:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Result)


@dataclass(slots=True)
class Bench:
    client: Client
    subjects: list[Subject]
    idle_ms_per_s: dict[str, dict[str, float]] = field(default_factory=dict)
    gathered: dict[tuple[str, Load], Gathered] = field(default_factory=dict)
    _slices: int = 0

    def warm_up(self, loads: list[Load], seconds: float) -> None:
        """Connections are opened, tokens verified, code paths walked; nothing is counted."""
        for subject in self.subjects:
            for load in {one.c: one for one in loads}.values():
                self.slice(subject, load, seconds, Gathered())

    def idle(self, seconds: float) -> None:
        before = {one.name: usage(self._pids(one)) for one in self.subjects}
        pause(seconds)
        for one in self.subjects:
            used = grown(before[one.name], usage(self._pids(one)))
            self.idle_ms_per_s[one.name] = {name: ms / seconds for name, ms in used.items()}

    def run(self, loads: list[Load], seconds: float) -> None:
        rounds = max(1, round(seconds / SLICE_S))
        for turn in range(rounds):
            for load in loads:
                shift = turn % len(self.subjects)  # nobody always comes after the same other
                for subject in self.subjects[shift:] + self.subjects[:shift]:
                    into = self.gathered.setdefault((subject.name, load), Gathered())
                    self.slice(subject, load, seconds / rounds, into)

    def slice(self, subject: Subject, load: Load, seconds: float, into: Gathered) -> None:
        self._slices += 1
        order = Order(
            targets=subject.targets(),
            tool=subjects.TOOL,
            prefix=f"s{self._slices}",
            seconds=seconds,
            c=load.c,
            rate=load.rate,
        )
        chained = subject.chained() if subject.chained else 0
        before, began = usage(self._pids(subject)), time.perf_counter()
        result = self.client.run(order)
        answered = len(result.latencies_us) + sum(result.errors.values())
        if subject.chained:
            into.records += self._drained(subject, chained, 2 * answered)
        wall = time.perf_counter() - began
        used = grown(before, usage(self._pids(subject)))
        into.used_ms.update(net_cpu_ms(used, self.idle_ms_per_s.get(subject.name, {}), wall))
        into.latencies_us += result.latencies_us
        into.errors.update(result.errors)
        into.failures += result.first_failures
        into.seconds += result.seconds

    def runs(self) -> list[Run]:
        named = {one.name: one for one in self.subjects}
        return [_run(named[name], load, had) for (name, load), had in self.gathered.items()]

    def _pids(self, subject: Subject) -> dict[str, list[int]]:
        return {"client": [self.client.pid], **subject.pids()}

    def _drained(self, subject: Subject, before: int, expected: int) -> int:
        """Waits until the records are chained, so that their cost falls into the slice's CPU."""
        assert subject.chained is not None
        counted = subject.chained
        latest = before

        def arrived() -> bool:
            nonlocal latest
            latest = counted()
            return latest - before >= expected

        try:
            until(arrived, "all records are chained", DRAIN_TIMEOUT_S, look_again_s=0.2)
        except TimeoutError:
            print(f"{subject.name}: {latest - before} of {expected} records", file=sys.stderr)
        return latest - before


def _run(subject: Subject, load: Load, had: Gathered) -> Run:
    ordered = sorted(had.latencies_us)
    calls = len(ordered)
    return Run(
        subject=subject.name.partition(" ")[0],
        engine=subject.engine,
        kind=load.kind,
        c=load.c,
        rate=load.rate,
        seconds=round(had.seconds, 2),
        n=calls,
        errors=had.errors.total(),
        p50_ms=milliseconds(percentile(ordered, 0.50)),
        p95_ms=milliseconds(percentile(ordered, 0.95)),
        p99_ms=milliseconds(percentile(ordered, 0.99)),
        calls_per_s=round(calls / had.seconds, 1) if had.seconds else 0.0,
        cpu_ms_per_call=per_call(had.used_ms, calls),
        records=had.records,
    )


def broken(bench: Bench) -> list[str]:
    """What makes a run worthless, whatever its figures."""
    found, chained = [], {one.name for one in bench.subjects if one.chained}
    for (name, load), had in bench.gathered.items():
        where = f"{name}, {load.kind} c={load.c} rate={load.rate}"
        if had.errors.total():
            found.append(f"{where}: errors {dict(had.errors)} {had.failures[:1]}")
        if not had.latencies_us:
            found.append(f"{where}: no call came through")
        if name in chained and had.records != 2 * len(had.latencies_us):
            found.append(f"{where}: {had.records} records of {len(had.latencies_us)} calls")
    return found


def check_floor() -> None:
    """A floor that moves makes every ratio over it meaningless."""
    check_frozen(FLOOR)


def check_frozen(file: Path) -> None:
    """Its digest is the one beside it."""
    frozen = file.with_suffix(".sha256")
    if hashlib.sha256(file.read_bytes()).hexdigest() != frozen.read_text().split()[0]:
        message = f"{file.name} is not the frozen one ({frozen.name})"
        raise SystemExit(message)


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


@contextmanager
def all_subjects(engines: list[str]) -> Iterator[Bench]:
    with ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="bhv-bench-")))
        server, ready = opened.enter_context(child("tests.fakes.mcp_echo"))
        client, _ = opened.enter_context(child("tests.perf.load"))
        url, server_pid = ready["url"], server.pid
        keys, trade = subjects.self_made()
        stacks = []
        for engine in engines:
            stack, trade_there = opened.enter_context(subjects.behavry(engine, url, scratch))
            stacks.append((engine, stack, subjects.Tokens(trade_there)))
        if stacks:
            keys, trade = stacks[0][1].jwks(), stacks[0][2]
        tokens = subjects.Tokens(trade)
        floor_url, floor_pid = opened.enter_context(subjects.floor(url, keys, scratch))
        yield Bench(
            client=Client(client),
            subjects=[
                Subject(
                    name="direct",
                    engine=None,
                    targets=lambda: subjects.targets(url, tokens()),
                    pids=lambda: {"tool_server": [server_pid]},
                ),
                Subject(
                    name="floor",
                    engine=None,
                    targets=lambda: subjects.targets(floor_url, tokens()),
                    pids=lambda: {"tool_server": [server_pid], "floor": [floor_pid]},
                ),
                *(subjects.governed(*parts, server_pid) for parts in stacks),
            ],
        )


def machine(bench: Bench) -> dict[str, Any]:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpus": len(models),
        "model": models[0] if models else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "idle_cpu_ms_per_s": {
            name: {process: round(ms, 2) for process, ms in used.items()}
            for name, used in bench.idle_ms_per_s.items()
        },
    }


def revision() -> str:
    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
        return answer.stdout.decode().strip()

    return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.perf.bench")
    parser.add_argument("--seconds", type=float, default=10.0, help="per subject and load")
    parser.add_argument("--concurrency", default="1,8,32")
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--engines", default="embedded,opa")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "bench.json")
    return parser.parse_args()


def loads_of(concurrency: str, rate: float) -> list[Load]:
    levels = [int(one) for one in concurrency.split(",")]
    return [
        *(Load(kind="latency", c=1) for _ in range(levels.count(1))),
        Load(kind="latency", c=OPEN_LOOP_CONNECTIONS, rate=rate),
        *(Load(kind="throughput", c=c) for c in levels if c > 1),
    ]


def main() -> int:
    asked = options()
    check_floor()
    loads = loads_of(asked.concurrency, asked.rate)
    engines = [] if asked.engines == "none" else asked.engines.split(",")
    seconds, idle_s = (1.0, 1.0) if asked.short else (asked.seconds, IDLE_S)
    with all_subjects(engines) as bench:
        bench.warm_up(loads, min(1.0, seconds / 4))
        bench.idle(idle_s)
        bench.run(loads, seconds)
        runs, about = bench.runs(), machine(bench)
    asked.out.write_bytes(
        msgspec.json.format(
            msgspec.json.encode({"machine": about, "revision": revision(), "runs": runs}), indent=1
        )
    )
    print(table(runs, about["idle_cpu_ms_per_s"]))
    worthless = broken(bench)
    for line in worthless:
        print(f"BROKEN {line}", file=sys.stderr)
    missed = [] if asked.short else missed_targets(runs)
    for line in missed:
        print(f"MISSED {line}", file=sys.stderr)
    return 1 if worthless else 3 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
