"""`up`, `status`, `down`, `demo`: the life of an installation on this machine."""

import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from services.cli.commands.options import (
    JsonOption,
    StateOption,
    existing_state,
    machine_control,
    running_document,
    state_root,
)
from services.cli.output import CommandFailed, Exit, emit, emit_text, say, table
from services.cli.state import holder, proxy_workers, recall
from services.common.postgres.embedded import command_line
from services.common.settings import environment

DOWN_TIMEOUT_S = 60.0


def up(
    *,
    state: StateOption = None,
    port_base: Annotated[
        int | None,
        Parameter(
            "--port-base", help="Ports N (proxy) and N+1 (control); 0 takes free ones. Remembered."
        ),
    ] = None,
    db_url: Annotated[
        str | None,
        Parameter(
            "--db-url", help="PostgreSQL instead of the embedded one; its password in a passfile."
        ),
    ] = None,
    engine: Annotated[
        str | None, Parameter("--engine", help="auto, opa or embedded (BEHAVRY_AUTHORIZER_ENGINE).")
    ] = None,
    demo_data: Annotated[
        bool, Parameter("--demo-data", help="An agent, two tool servers and two policies to try.")
    ] = True,
    json: JsonOption = False,
) -> None:
    """Start everything on this machine and stay until Ctrl-C."""
    from services.cli import up as everything  # noqa: PLC0415  # other commands do not need it

    caller = environment()
    everything.run(
        everything.Options(
            root=state_root(state),
            port_base=port_base,
            db_url=db_url or caller.get("BEHAVRY_DB_URL") or None,
            engine=engine or caller.get("BEHAVRY_AUTHORIZER_ENGINE") or "auto",
            json=json,
            demo=demo_data,
        ),
        caller,
    )


def status(*, state: StateOption = None, json: JsonOption = False) -> None:
    """Say which processes run. Status 0: all ready; 1: some are not; 7: nothing runs."""
    found = existing_state(state)
    pid = holder(found)
    if pid is None:
        if json:
            emit({"running": False, "state_dir": str(found.root)})
        raise CommandFailed(f"nothing runs on {found.root}", status=Exit.UNREACHABLE)
    document = running_document(found)
    processes: Any = document.get("processes", {})
    pids: Any = document.get("pids", {})
    proxy = processes.get("proxy", {})
    if proxy.get("pid") is not None:  # its workers come and go without a word to `up`
        run_dir = Path(recall(found).run_dir or found.root / "run")
        workers = proxy_workers(run_dir, proxy["pid"])
        pids["proxy"] = [proxy["pid"], *workers]
        if workers:
            proxy["workers"] = workers
    if json:
        emit({"running": True, "pid": pid, **document})
    else:
        rows = [{"process": name, **facts} for name, facts in processes.items()]
        emit_text(f"up is process {pid}\n" + table(rows, "process", "pid", "ready", "starts"))
    if not processes or not all(facts["ready"] for facts in processes.values()):
        raise CommandFailed("not everything is ready")


def down(*, state: StateOption = None) -> None:
    """Stop the `up` of this state directory and wait until it is gone."""
    found = existing_state(state)
    pid = holder(found)
    if pid is None:
        say(f"nothing runs on {found.root}")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while holder(found) is not None or command_line(pid):
        if time.monotonic() > deadline:
            raise CommandFailed(f"process {pid} does not end")
        time.sleep(0.05)  # noqa: TID251  # another process's end sends us no event
    say("stopped")


def demo(*, state: StateOption = None, json: JsonOption = False) -> None:
    """One governed call of each kind through the running installation, each with its record."""
    from services.cli import story  # noqa: PLC0415  # other commands do not need it

    found = existing_state(state)
    if holder(found) is None:
        raise CommandFailed(
            f"nothing runs on {found.root}; start `behavry up` first", status=Exit.UNREACHABLE
        )
    steps = story.tell(machine_control(found), found, on_step=None if json else story.say_step)
    if json:
        emit(steps)
