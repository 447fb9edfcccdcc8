"""Process groups of children that a killed proxy left behind (mcp.md 10.1) end at the next start.

A child itself dies with its parent; what it started does not. Beside each child's home, where it
writes nothing, is noted which group it leads and when its leader began. A group is ended only where
it is certainly the one that was noted: its leader is the same process, or a member still lives in
that home. Linux alone can tell; elsewhere nothing is ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NOTE: Final = ".group"
_PROC: Final = Path("/proc")
#: Fields of /proc/PID/stat after the name, which may hold anything (proc(5)).
_GROUP: Final = 2
_BEGAN: Final = 19


def note(home: Path, pid: int) -> None:
    """The child that now lives in this home leads its own group."""
    stat = _stat(pid)
    if stat is not None:
        home.with_suffix(NOTE).write_text(f"{pid} {stat[_BEGAN]}\n", "ascii")


def end_all(homes: Path) -> int:
    """How many processes were killed. Call it before any child is started."""
    ended = 0
    for file in homes.glob(f"*{NOTE}"):
        with contextlib.suppress(OSError, ValueError):
            pid, began = file.read_text("ascii").split()
            for member in list(_members(int(pid), began, file.with_suffix(""))):
                os.kill(member, signal.SIGKILL)
                ended += 1
        file.unlink(missing_ok=True)
    return ended


def _members(group: int, began: str, home: Path) -> Iterator[int]:
    leader = _stat(group)
    if leader is not None and leader[_BEGAN] != began:
        return  # another process has the number now
    for entry in _PROC.glob("[0-9]*"):
        stat = _stat(int(entry.name))
        if stat is None or stat[_GROUP] != str(group):
            continue
        if leader is not None or _lives_in(entry, home):
            yield int(entry.name)


def _lives_in(entry: Path, home: Path) -> bool:
    try:
        return os.fsencode(f"HOME={home}") in (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
