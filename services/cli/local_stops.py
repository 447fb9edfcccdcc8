"""The stops of this machine alone: the file `kill` in the state directory, which the authorizer
looks at five times a second, with or without control.

Decides how the file is changed: as a whole, durably, one writer at a time. A file that cannot be
understood stops everything, and goes on doing so until that is taken back by name.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

from services.cli.output import CommandFailed, Exit, say
from services.cli.state import State, write_text
from services.common.clock import SystemClock, rfc3339

Scope = Literal["agent", "class", "server", "tenant", "fleet"]
VERSION = 1
_FLEET: dict[str, Any] = {"scope": "fleet", "tenant": "", "subject": "", "reason": "", "at": ""}


def stops(state: State) -> list[dict[str, Any]]:
    """What the file says now."""
    try:
        content = state.kill_file.read_bytes()
    except FileNotFoundError:
        return []
    except OSError:
        return [_FLEET]
    try:
        document = json.loads(content)
        found = [dict(stop) for stop in document["stops"]]
        understood = document["version"] == VERSION and all(
            stop.get("scope") in get_args(Scope) for stop in found
        )
    except (ValueError, TypeError, KeyError):
        return [_FLEET]
    return found if understood else [_FLEET]


def switch(state: State, *, scope: Scope, subject: str, reason: str, off: bool) -> None:
    """Put a stop into the file, or take it out. The authorizer follows within a second."""
    if scope == "fleet":
        subject = ""
    elif not subject:
        raise CommandFailed(f"name the {scope} with --subject", status=Exit.USAGE)
    name = f"{scope} {subject}".strip()
    with _alone(state):
        found = stops(state)
        others = [stop for stop in found if _name(stop) != name]
        if off:
            if len(others) == len(found):
                raise CommandFailed(f"{name} is not stopped on this machine")
            _keep(state, others)
        else:
            at = rfc3339(SystemClock().now_ns())
            stop = {"scope": scope, "tenant": "", "subject": subject, "reason": reason, "at": at}
            _keep(state, [*others, stop])
    if off:
        left = f"; still stopped: {', '.join(map(_name, others))}" if others else ""
        say(f"{name} is not stopped by this machine any more{left}")
    else:
        say(f"{name} is stopped on this machine; the same with --off takes it back")


def _name(stop: dict[str, Any]) -> str:
    return f"{stop['scope']} {stop.get('subject') or stop.get('tenant') or ''}".strip()


def _keep(state: State, wanted: list[dict[str, Any]]) -> None:
    """No stop left: no file, which is what the authorizer reads as nothing."""
    if wanted:
        document = {"version": VERSION, "stops": wanted}
        write_text(state.kill_file, json.dumps(document, indent=2) + "\n")
    else:
        state.kill_file.unlink(missing_ok=True)
    descriptor = os.open(state.root, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _alone(state: State) -> Iterator[None]:
    """Two commands at once must not lose each other's stop."""
    descriptor = os.open(state.root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
