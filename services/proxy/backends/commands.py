"""`stdio.toml`: the command lines of tool servers on this machine (mcp.md 10.1).

The only place where one can stand: a bundle, a request, an administrator far away can name an entry
and nothing more. Decides what environment a child gets.
"""

from __future__ import annotations

import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

INHERITED: Final = frozenset({"PATH", "LANG", "TZ"})
OURS: Final = "BEHAVRY_"
MAX_UID: Final = 2**32 - 2


class CommandsInvalid(ValueError):
    """The file cannot be used. Names file, entry and rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    command: str
    args: tuple[str, ...] = ()
    cwd: str | None = None
    #: Values, or `secret://name`.
    env: Mapping[str, str] = field(default_factory=dict)
    #: A wrapper that the command line is appended to.
    sandbox: tuple[str, ...] = ()
    #: The user that it runs as; None: the proxy's own.
    uid: int | None = None


class Commands:
    """Read again when the file changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._commands: dict[str, Command] = {}

    def get(self, name: str) -> Command | None:
        """None: not available here. Raises CommandsInvalid."""
        try:
            now = self._path.stat()
        except OSError:
            return None
        if stat.S_IMODE(now.st_mode) & 0o077:
            raise CommandsInvalid(f"{self._path}: others may read or write it")
        if self._seen != (now.st_mtime_ns, now.st_size):
            self._commands = parse(self._path.read_bytes(), str(self._path))
            self._seen = (now.st_mtime_ns, now.st_size)
        return self._commands.get(name)


def parse(content: bytes, where: str) -> dict[str, Command]:
    try:
        tree = tomllib.loads(content.decode())
    except (ValueError, tomllib.TOMLDecodeError) as bad:
        raise CommandsInvalid(f"{where}: not TOML") from bad
    return {name: _command(entry, f"{where}: [{name}]") for name, entry in tree.items()}


def environment(
    command: Command, inherited: Mapping[str, str], *, home: Path, secrets: Mapping[str, str]
) -> dict[str, str]:
    """What a child sees: little of ours, nothing of Behavry's, its own home and temporary files."""
    kept = {
        name: value
        for name, value in inherited.items()
        if name in INHERITED or name.startswith("LC_")
    }
    private = {"HOME": str(home), "TMPDIR": str(home / "tmp")}
    return kept | private | {name: secrets.get(name, value) for name, value in command.env.items()}


def _command(entry: Any, where: str) -> Command:
    if type(entry) is not dict or type(entry.get("command")) is not str or not entry["command"]:
        raise CommandsInvalid(f"{where} needs a command")
    unknown = set(entry) - {"command", "args", "cwd", "env", "sandbox", "uid"}
    if unknown:
        raise CommandsInvalid(f"{where} has unknown keys: {', '.join(sorted(unknown))}")
    env = entry.get("env", {})
    cwd, uid = entry.get("cwd"), entry.get("uid")
    if type(env) is not dict or not all(type(value) is str for value in env.values()):
        raise CommandsInvalid(f"{where}: env is a table of strings")
    if any(name.startswith(OURS) for name in env):
        raise CommandsInvalid(f"{where}: names of {OURS}* are not a child's")
    if cwd is not None and type(cwd) is not str:
        raise CommandsInvalid(f"{where}: cwd is a path")
    if uid is not None and not (type(uid) is int and 0 < uid <= MAX_UID):
        raise CommandsInvalid(f"{where}: uid is the number of a user that is not root")
    return Command(
        command=entry["command"],
        args=_strings(entry.get("args", []), f"{where}: args"),
        cwd=cwd,
        env=env,
        sandbox=_strings(entry.get("sandbox", []), f"{where}: sandbox"),
        uid=uid,
    )


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if type(value) is not list or not all(type(one) is str for one in value):
        raise CommandsInvalid(f"{where} is a list of strings")
    return tuple(value)
