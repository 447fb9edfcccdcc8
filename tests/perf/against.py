"""The bench of this tree and of another commit, in turns, and the medians side by side.

A figure of one run means little on a machine that does other things; pairs that take turns, and the
median of what each pair says, mean more. The other commit is cloned and set up in a directory of
its own, so that nothing of this tree runs in it.

    python -m tests.perf.against COMMIT [--pairs 5] [--seconds 4] [--concurrency 1,8]
                                 [--engines embedded]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.fakes.children import ROOT

#: What a change may cost: so much of the figure before, or so many milliseconds if that is more.
SHARE: Final = 0.10
ROOM_MS: Final = 0.1
DATA_PLANE: Final = ("proxy", "authorizer", "engine", "audit", "postgres")

Figures = dict[tuple[str, str], float]


def other_tree(commit: str, into: Path) -> Path:
    tree = into / "tree"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
    subprocess.run(["git", "checkout", "--quiet", commit], cwd=tree, check=True)
    subprocess.run(["make", "--silent", "setup"], cwd=tree, check=True, stdout=sys.stderr)
    tools = ROOT / ".tools"
    if tools.exists():
        (tree / ".tools").symlink_to(tools)
    return tree


def bench(tree: Path, options: argparse.Namespace, out: Path) -> Figures:
    """Figures of one run: (load, what) -> milliseconds."""
    command = [
        str(tree / ".venv" / "bin" / "python"), "-m", "tests.perf.bench",
        "--seconds", str(options.seconds), "--concurrency", options.concurrency,
        "--engines", options.engines, "--out", str(out),
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if ended.returncode not in {0, 3}:  # 3: a target was missed, the figures stand
        sys.stderr.write(ended.stdout + ended.stderr)
        raise SystemExit(1)
    return dict(_figures(msgspec.json.decode(out.read_bytes())["runs"]))


def _figures(runs: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], float]]:
    for run in runs:
        if run["subject"] != "behavry":
            continue
        load = f"{run['engine']} c={run['c']}" + (f" {run['rate']:g}/s" if run["rate"] else "")
        cpu = run["cpu_ms_per_call"]
        yield (load, "cpu"), sum(cpu.get(name, 0.0) for name in DATA_PLANE)
        if run["kind"] == "latency":
            yield (load, "p50"), run["p50_ms"]


def report(before: list[Figures], after: list[Figures]) -> list[str]:
    """The table's lines; those that went beyond the room begin with `MISSED`."""
    lines = []
    for load, what in before[0]:
        old = statistics.median(run[load, what] for run in before)
        pairs = zip(before, after, strict=True)
        change = statistics.median(late[load, what] - early[load, what] for early, late in pairs)
        missed = change > max(SHARE * old, ROOM_MS)
        lines.append(
            f"{'MISSED' if missed else 'ok':6} {load:22} {what:4} before {old:7.3f} ms"
            f"  change {change:+7.3f} ms ({change / old:+.1%})"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.perf.against")
    parser.add_argument("commit")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--concurrency", default="1,8")
    parser.add_argument("--engines", default="embedded")
    options = parser.parse_args()
    before: list[Figures] = []
    after: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="bhv-against-") as scratch:
        other = other_tree(options.commit, Path(scratch))
        for pair in range(options.pairs):
            turns = [(other, before), (ROOT, after)]
            for tree, into in turns if pair % 2 == 0 else reversed(turns):
                into.append(bench(tree, options, Path(scratch) / "bench.json"))
            print(f"pair {pair + 1} of {options.pairs}", file=sys.stderr)
    lines = report(before, after)
    print("\n".join(lines))
    return 3 if any(line.startswith("MISSED") for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
