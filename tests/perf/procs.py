"""Other processes: starting the bench's own, and reading what each process of a stack costs.

Decides which pid counts under which name. CPU comes from /proc (user + system time, ended
children included), in steps of 10 ms, which is why it is read over whole slices only.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import orjson

ROOT: Final = Path(__file__).resolve().parents[2]
TICK_MS: Final = 1000 / os.sysconf("SC_CLK_TCK")
STOP_TIMEOUT_S: Final = 10


@contextmanager
def child(
    module: str, *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Runs `python -m module`, gives what it printed as its first line, ends it on leaving."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if not first:
            message = f"{module} ended with {process.wait(STOP_TIMEOUT_S)} before it was ready"
            raise RuntimeError(message)
        yield process, orjson.loads(first)
    finally:
        end(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def end(process: subprocess.Popen[bytes], timeout_s: float = STOP_TIMEOUT_S) -> int:
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(timeout_s)


def cpu_ms(pid: int) -> float:
    """0 for a process that is gone: whoever was its parent has the time then."""
    fields = _stat(pid)
    return sum(int(value) for value in fields[11:15]) * TICK_MS if fields else 0.0


def parents() -> dict[int, int]:
    """The parent of each process that runs now."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            found[int(entry.name)] = int(fields[1])
    return found


def family(pid: int, above: Mapping[int, int], *, without: Sequence[int] = ()) -> list[int]:
    """The process and everything below it, leaving out subtrees that count under another name."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += [kid for kid, parent in above.items() if parent == one and kid not in without]
    return found


def usage(named: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """CPU milliseconds so far, by name. The engine's child of the authorizer counts as `engine`."""
    above = parents()
    own = [pid for pids in named.values() for pid in pids]
    spent: dict[str, float] = {}
    for name, pids in named.items():
        for pid in pids:
            others = [one for one in own if one != pid]
            for member in family(pid, above, without=others):
                label = "engine" if name == "authorizer" and member != pid else name
                spent[label] = spent.get(label, 0.0) + cpu_ms(member)
    return spent


def grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: max(0.0, value - before.get(name, 0.0)) for name, value in after.items()}


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()
