"""What each process of a stack costs.

Decides which pid counts under which name. CPU comes from /proc (user + system time, ended
children included), in steps of 10 ms, which is why it is read over whole slices only.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

TICK_MS: Final = 1000 / os.sysconf("SC_CLK_TCK")


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
