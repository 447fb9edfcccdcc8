"""Checks of this machine's files alone: permissions, disk, clock, outbox, local stops."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from services.cli import local_stops as stop_file
from services.cli.doctor.checks import Check, Installation, fail, ok, warn
from services.cli.state import State

MIB: Final = 1 << 20
DISK_WARN_BYTES: Final = 1024 * MIB
DISK_FAIL_BYTES: Final = 256 * MIB
OUTBOX_WARN: Final = 0.80  # core.md 11: alert
OUTBOX_FAIL: Final = 0.95  # core.md 11: every call is refused
OUTBOX_MAX_BYTES: Final = 1 << 30
#: A wall clock further behind what was seen before is not believed by the authorizer either.
CLOCK_SUSPECT_S: Final = 300


def permissions(installation: Installation) -> Iterator[Check]:
    """Whatever is in the state directory is ours alone; its secrets are closed one by one too."""
    wrong = open_files(installation.state)
    if not wrong:
        yield ok("state.permissions", f"{installation.state.root} is closed to others")
        return
    shown = ", ".join(str(path) for path in wrong[:5]) + (" ..." if len(wrong) > 5 else "")
    yield fail(
        "state.permissions", f"open to others: {shown}", "behavry doctor --fix (chmod go= on them)"
    )


def open_files(state: State) -> list[Path]:
    """Secrets, and the directory itself, that somebody else may read."""
    secret = [state.admin_password, state.admin_api_key, state.session, state.kill_file]
    for directory in (state.keys, state.peers, state.passfiles, state.agents, state.secrets):
        secret += [directory, *sorted(directory.rglob("*"))]
    return [path for path in (state.root, *secret) if _is_open(path)]


def close(path: Path) -> None:
    """Take from others what they may."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o077)


def _is_open(path: Path) -> bool:
    try:
        facts = path.stat(follow_symlinks=False)
    except OSError:
        return False
    return bool(facts.st_mode & 0o077) and not stat.S_ISLNK(facts.st_mode)


def disk(installation: Installation) -> Iterator[Check]:
    """Where records wait and the embedded database lies."""
    free = shutil.disk_usage(installation.state.root).free
    why = f"{free // MIB} MiB free"
    if free < DISK_FAIL_BYTES:
        yield fail("disk", why, "free some space: without it no call can be recorded, so none runs")
    elif free < DISK_WARN_BYTES:
        yield warn("disk", why, "free some space soon")
    else:
        yield ok("disk", why)


def clock(installation: Installation) -> Iterator[Check]:
    """Against the latest time that the authorizer has seen: time does not go back."""
    mark = marks(installation).get("clock_mark_s", 0)
    behind = mark - installation.now_s
    if behind > CLOCK_SUSPECT_S:
        yield fail(
            "clock",
            f"the clock is {behind} s behind what was seen before",
            "set the clock (NTP): until then approvals count as expired",
        )
    else:
        yield ok("clock", "it has not gone back")


def marks(installation: Installation) -> dict[str, int]:
    """What the authorizer keeps beside its bundles."""
    try:
        document = json.loads((installation.state.root / "bundles" / "marks.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in document.items() if isinstance(value, int)}


def outbox(installation: Installation) -> Iterator[Check]:
    """How full each process's outbox is; at its limit every call is refused."""
    given = installation.environment.get("BEHAVRY_OUTBOX_MAX_BYTES", "")
    limit = int(given) if given.isdigit() and int(given) else OUTBOX_MAX_BYTES
    for name in ("proxy", "authorizer"):
        used, aside = _usage(installation.state.root / "outbox" / name)
        share = used / limit
        why = f"{used // MIB} of {limit // MIB} MiB"
        fix = "see `audit` in behavry status and its log: records wait until it takes them"
        if share >= OUTBOX_FAIL:
            yield fail(f"outbox.{name}", why, fix)
        elif share >= OUTBOX_WARN:
            yield warn(f"outbox.{name}", why, fix)
        else:
            yield ok(f"outbox.{name}", why)
        if aside:
            yield warn(
                f"outbox.{name}.set_aside",
                f"{aside} files hold records that could not be sent",
                "keep them, and ask whoever supports you: they are part of the chain's gap",
            )


def _usage(directory: Path) -> tuple[int, int]:
    used = aside = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                used += (Path(root) / name).stat().st_size
            except OSError:
                continue
            aside += name.endswith(".set-aside")
    return used, aside


def local_stops(installation: Installation) -> Iterator[Check]:
    """What this machine stops by itself is easily forgotten."""
    found = stop_file.stops(installation.state)
    if not found:
        yield ok("stops.local", "this machine stops nothing by itself")
        return
    named = ", ".join(f"{stop['scope']} {stop.get('subject', '')}".strip() for stop in found)
    yield warn(
        "stops.local",
        f"stopped by {installation.state.kill_file}: {named}",
        "behavry kill --local --off --scope SCOPE --subject SUBJECT",
    )
