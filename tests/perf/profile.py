"""Where each process of a stack spends its time while the bench's load runs.

Samples all of them at once from outside, under a closed loop. Of a Python process py-spy tells the
functions on top of the stack and those anywhere in it; of PostgreSQL and OPA, which are native,
`perf` (the distribution's package) tells the functions on top, where it is installed.

    python -m tests.perf.profile [--engine embedded|opa] [--seconds S] [--concurrency C] [--top N]
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.fakes.children import ROOT, child
from tests.perf import subjects
from tests.perf.bench import Client
from tests.perf.load import Order
from tests.perf.procs import family, parents

PYTHON: Final = ("proxy", "authorizer", "engine", "audit", "control")
NATIVE: Final = ("postgres", "opa")
RATE: Final = 250
SPY: Final = Path(sys.executable).with_name("py-spy")


def shares(folded: str) -> tuple[Counter[str], Counter[str], int]:
    """(self, inclusive, samples) of py-spy's raw form: one stack per line, then its count."""
    own: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    total = 0
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_short(frame) for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        inside.update(dict.fromkeys(frames, int(count)))
        total += int(count)
    return own, inside, total


def _short(frame: str) -> str:
    """`function (path/from/site-packages.py)`: line numbers would split one function into many."""
    name, _, place = frame.partition(" (")
    path = place.rstrip(")").rpartition(":")[0] or place.rstrip(")")
    for root in (f"{ROOT}/", "site-packages/", "lib/python3.11/"):
        path = path.rpartition(root)[2]
    return f"{name} ({path})" if path else name


def show(name: str, folded: str, seconds: float, top: int) -> str:
    own, inside, total = shares(folded)
    busy = 100 * total / (RATE * seconds)
    lines = [f"== {name}: {total} samples, busy {busy:.0f} % of a core"]
    lines += [f"{'self':>9}  {'incl':>7}"]
    for function, count in own.most_common(top):
        both = (100 * count / total, 100 * inside[function] / total)
        lines.append(f"{both[0]:>7.1f} %{both[1]:>7.1f} %  {function}")
    lines.append(f"{'incl':>9}")
    lines += [f"{100 * count / total:>7.1f} %  {one}" for one, count in inside.most_common(top)]
    return "\n".join(lines)


@contextmanager
def sampled(
    pids: Mapping[str, int], native: Mapping[str, list[int]], seconds: float, scratch: Path
) -> Iterator[dict[str, Path]]:
    """Runs one sampler per process beside the block; the files are there once it has ended."""
    files = {name: scratch / f"{name}.folded" for name in [*pids, *native]}
    lasts = str(max(1, round(seconds)))
    commands = [
        [
            *(str(SPY), "record", "--nonblocking", "--format", "raw", "--rate", str(RATE)),
            *("--duration", lasts, "--pid", str(pid), "--output", str(files[name])),
        ]
        for name, pid in pids.items()
    ] + [
        [
            *("perf", "record", "--event", "cpu-clock", "--freq", str(RATE)),
            *("--pid", ",".join(map(str, family)), "--output", str(files[name])),
            *("--", "sleep", lasts),
        ]
        for name, family in native.items()
    ]
    samplers = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    try:
        yield files
    finally:
        for sampler in samplers:
            sampler.wait(seconds + 30)


def python_processes(pids: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """One pid per name; the embedded engine is what the authorizer has started."""
    found = {name: pids[name][0] for name in PYTHON if pids.get(name)}
    below = family(found["authorizer"], parents())[1:]
    return found | ({"engine": below[0]} if below else {})


def native_processes(pids: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Every pid per name: PostgreSQL has one for each connection."""
    if shutil.which("perf") is None:
        return {}
    above = parents()
    return {name: family(pids[name][0], above) for name in NATIVE if pids.get(name)}


def show_native(name: str, recorded: Path, top: int) -> str:
    told = subprocess.run(
        ["perf", "report", "--stdio", "--no-children", "--sort", "symbol", "-i", str(recorded)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # After the symbol come columns about its inlined callers, empty here.
    lines = [line.partition("  -  ")[0].rstrip() for line in told.splitlines() if "%" in line]
    samples = [line for line in told.splitlines() if line.startswith("# Samples")]
    return "\n".join([f"== {name}: {' '.join(samples)[2:]}", *lines[:top]])


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.perf.profile")
    parser.add_argument("--engine", default="embedded")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--top", type=int, default=25)
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bhv-profile-") as directory,
        child("tests.fakes.mcp_echo") as (_, server),
        child("tests.perf.load") as (load, _),
        subjects.behavry(asked.engine, server["url"], Path(directory)) as (stack, trade),
    ):
        order = Order(
            targets=subjects.targets(stack.mcp_url(subjects.SLUG), trade()),
            tool=subjects.TOOL,
            prefix="p",
            seconds=asked.seconds + 2,
            c=asked.concurrency,
        )
        pids, native = python_processes(stack.up.pids), native_processes(stack.up.pids)
        with sampled(pids, native, asked.seconds, Path(directory)) as files:
            result = Client(load).run(order)
        print(f"{len(result.latencies_us)} calls, errors {result.errors}")
        for name, file in files.items():
            if file.exists() and name in native:
                print(show_native(name, file, asked.top))
            elif file.exists():
                print(show(name, file.read_text(), asked.seconds, asked.top))
            else:
                print(f"== {name}: it may not be looked into here")


if __name__ == "__main__":
    main()
