"""`behavry doctor`: look at everything, say what is wrong and what mends it."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from services.cli.commands.options import (
    JsonOption,
    StateOption,
    running_document,
    state_root,
)
from services.cli.doctor.checks import Installation, every
from services.cli.output import CommandFailed, Exit, emit, emit_text, plain
from services.cli.state import State, holder, recall
from services.common.clock import SystemClock
from services.common.settings import environment

_MARKS = {"ok": "ok     ", "warn": "warn   ", "fail": "FAIL   ", "unknown": "unknown"}


def doctor(
    *,
    fix: Annotated[
        bool, Parameter("--fix", negative=(), help="Close files that stand open to others.")
    ] = False,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Check this installation. Status 0: nothing fails (warnings may be); 3: something does."""
    root = state_root(state)
    if not (root / "state.json").exists():
        raise CommandFailed(
            f"there is no installation in {root}; `behavry up` makes one", status=Exit.UNREACHABLE
        )
    found = State(root.resolve())
    if fix:
        from services.cli.doctor import machine  # noqa: PLC0415  # only here

        for path in machine.open_files(found):
            machine.close(path)
    pid = holder(found)
    installation = Installation(
        state=found,
        remembered=recall(found),
        document=dict(running_document(found)) if pid is not None else {},
        running=pid,
        now_s=SystemClock().now_ns() // 1_000_000_000,
        project=Path.cwd(),
        home=Path.home(),
        environment=environment(),
    )
    checks = []
    for check in every(installation):
        checks.append(check)
        if not json:
            emit_text(f"{_MARKS[check.state]} {check.id:<26} {plain(check.why)}")
            if check.fix:
                emit_text(f"{'':34} -> {check.fix}")
    failed = [check.id for check in checks if check.state == "fail"]
    if json:
        emit({"ok": not failed, "checks": [check.told() for check in checks]})
    if failed:
        raise CommandFailed(f"{len(failed)} checks fail", status=Exit.DIFFERENCE)
