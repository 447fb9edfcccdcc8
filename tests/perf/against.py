"""The bench before this tree and before another commit, in turns, and what changed between them.

A machine that does other things is faster now and slower then. So both installations are up at the
same time, the same load takes turns before them in slices of two seconds, and what counts is the
median over pairs. The other commit is cloned and set up in a directory of its own, so that nothing
of this tree runs in it but held.py. Without an error, and with two records of each call: else 1.
A figure that grew beyond the room: 3.

    python -m tests.perf.against COMMIT [--pairs 5] [--seconds 4] [--concurrency 1,8] [--rate 100]
                                 [--engines embedded]
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.fakes.children import ROOT, child
from tests.perf.arithmetic import Run
from tests.perf.bench import Bench, Client, broken, loads_of
from tests.perf.load import Target
from tests.perf.report import data_plane_ms
from tests.perf.subjects import Subject

#: What a change may cost: so much of the figure before, or so many milliseconds if that is more.
SHARE: Final = 0.10
ROOM_MS: Final = 0.1
IDLE_S: Final = 3.0
HELD: Final = "tests.perf.held"
BEFORE: Final = "before"
AFTER: Final = "after"

Figures = dict[tuple[str, str], float]


def other_tree(commit: str, into: Path) -> Path:
    tree = into / "tree"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
    subprocess.run(["git", "checkout", "--quiet", commit], cwd=tree, check=True)
    subprocess.run(["make", "--silent", "setup"], cwd=tree, check=True, stdout=sys.stderr)
    tools, module = ROOT / ".tools", Path(*HELD.split(".")).with_suffix(".py")
    if tools.exists():
        (tree / ".tools").symlink_to(tools)
    shutil.copy(ROOT / module, tree / module)
    return tree


@contextmanager
def both(other: Path, engine: str) -> Iterator[Bench]:
    """A bench before an installation of each tree; they share a tool server."""
    with (
        child("tests.fakes.mcp_echo") as (server, ready),
        child("tests.perf.load") as (client, _),
        child(HELD, engine, ready["url"], tree=other) as (before, _),
        child(HELD, engine, ready["url"]) as (after, _),
    ):
        trees = ((BEFORE, before), (AFTER, after))
        yield Bench(
            client=Client(client),
            subjects=[_subject(name, engine, process, server.pid) for name, process in trees],
        )


def _subject(name: str, engine: str, process: subprocess.Popen[bytes], server_pid: int) -> Subject:
    def asks(what: str, kind: Any) -> Callable[[], Any]:
        def ask() -> Any:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(what.encode() + b"\n")
            process.stdin.flush()
            return msgspec.json.decode(process.stdout.readline(), type=kind)

        return ask

    pids = asks("pids", dict[str, list[int]])
    return Subject(
        name=name,
        engine=engine,
        targets=asks("targets", list[Target]),
        pids=lambda: {**pids(), "tool_server": [server_pid]},
        chained=asks("chained", int),
    )


def figures(runs: list[Run], subject: str) -> Figures:
    """Of one subject: (load, what) -> milliseconds."""
    found: Figures = {}
    for run in runs:
        if run.subject == subject:
            load = f"{run.engine} c={run.c}" + (f" {run.rate:g}/s" if run.rate else "")
            found[load, "cpu"] = data_plane_ms(run)
            if run.kind == "latency":
                found[load, "p50"] = run.p50_ms
    return found


def report(before: list[Figures], after: list[Figures]) -> list[str]:
    """The table's lines; those that went beyond the room begin with `MISSED`."""
    lines = []
    for load, what in before[0]:
        old = statistics.median(run[load, what] for run in before)
        changes = [late[load, what] - early[load, what]
                   for early, late in zip(before, after, strict=True)]  # fmt: skip
        change = statistics.median(changes)
        missed = change > max(SHARE * old, ROOM_MS)
        lines.append(
            f"{'MISSED' if missed else 'ok':6} {load:22} {what:4} before {old:7.3f} ms"
            f"  change {change:+7.3f} ms ({change / old:+.1%};"
            f" pairs {min(changes):+.3f} to {max(changes):+.3f})"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.perf.against")
    parser.add_argument("commit")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--concurrency", default="1,8")
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--engines", default="embedded")
    options = parser.parse_args()
    loads = loads_of(options.concurrency, options.rate)
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bhv-against-") as scratch:
        other = other_tree(options.commit, Path(scratch))
        for engine in options.engines.split(","):
            before: list[Figures] = []
            after: list[Figures] = []
            with both(other, engine) as bench:
                bench.warm_up(loads, 1.0)
                bench.idle(IDLE_S)
                for pair in range(options.pairs):
                    bench.gathered.clear()
                    bench.run(loads, options.seconds)
                    runs, worthless = bench.runs(), broken(bench)
                    if worthless:
                        print("\n".join(f"BROKEN {line}" for line in worthless), file=sys.stderr)
                        return 1
                    before.append(figures(runs, BEFORE))
                    after.append(figures(runs, AFTER))
                    print(f"{engine}: pair {pair + 1} of {options.pairs}", file=sys.stderr)
            lines += report(before, after)
    print("\n".join(lines))
    return 3 if any(line.startswith("MISSED") for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
