"""Runs commands of `behavry` in a process that cannot leave the machine: whatever would is refused
where the interpreter tells of it. Reads a list of command lines as JSON from stdin, and prints what
each left: `{"status", "out", "err", "network"}`.

`network` counts what the command did with addresses at all; loopback alone is let through.
"""

import contextlib
import io
import json
import sys
from typing import Any

from services.cli import __main__ as command

LOOPBACK = frozenset({"127.0.0.1", "::1"})
WATCHED = frozenset({
    "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.gethostbyaddr", "socket.getnameinfo", "socket.sendto", "socket.sendmsg",
})  # fmt: skip
seen: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in WATCHED:
        return
    seen.append(event)
    named = arguments[0] if event.startswith("socket.get") else arguments[1]
    host = named[0] if isinstance(named, tuple) else named
    if host not in LOOPBACK:
        raise PermissionError(f"{event} leaves the machine")


def run(line: list[str]) -> dict[str, Any]:
    out, err, status = io.StringIO(), io.StringIO(), 0
    seen.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command.main(line)
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
    return {"status": status, "out": out.getvalue(), "err": err.getvalue(), "network": len(seen)}


def main() -> None:
    lines = json.load(sys.stdin)
    sys.addaudithook(watch)
    told = [run(line) for line in lines]
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
