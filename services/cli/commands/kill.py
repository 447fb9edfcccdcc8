"""`behavry kill`: stop an agent, a class, a server or everything, within a second.

Without `--local` control does it, for every machine; with it this machine does it by itself, even
when control and database are gone. To give back needs people: two admins where there are two.
"""

from typing import Annotated, Literal

from cyclopts import App, Parameter

from services.cli import asking, local_stops
from services.cli.commands.agents import id_of
from services.cli.commands.options import (
    ConfirmOption,
    JsonOption,
    PasswordFile,
    StateOption,
    control_of,
    control_url,
    existing_state,
    machine_control,
)
from services.cli.output import CommandFailed, Exit, emit, emit_text, say, table
from services.cli.person import signed_in
from services.cli.rest import is_id, segment
from services.cli.state import State
from services.cli.wire import Unreachable

app = App(name="kill", help="Stop an agent, a class, a server or everything at once.")
Scope = Literal["agent", "class", "server", "tenant", "fleet"]


@app.default
def kill(
    *,
    scope: Annotated[
        Scope | None, Parameter("--scope", help="What kind of thing; with --local: the fleet.")
    ] = None,
    subject: Annotated[
        str, Parameter("--subject", help="An agent's name or id, a class, a server's slug.")
    ] = "",
    reason: Annotated[str, Parameter("--reason", help="Why; it is recorded.")] = "",
    local: Annotated[
        bool, Parameter("--local", negative=(), help="On this machine alone, without control.")
    ] = False,
    off: Annotated[
        bool, Parameter("--off", negative=(), help="With --local: take it back.")
    ] = False,
    release: Annotated[
        str | None, Parameter("--release", help="The id of a stop of control's to give back.")
    ] = None,
    confirm: ConfirmOption = None,
    password_file: PasswordFile = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Stop something, or give it back with --release ID (--local --off on this machine)."""
    found = existing_state(state)
    if off and not local:
        raise CommandFailed("--off goes with --local; else --release ID", status=Exit.USAGE)
    if not reason and not (local and off):
        raise CommandFailed("say why with --reason", status=Exit.USAGE)
    if release is not None:
        _release(found, release, reason, password_file=password_file, as_json=json)
        return
    scope = scope or ("fleet" if local else None)
    if scope is None:
        raise CommandFailed("say what with --scope and --subject", status=Exit.USAGE)
    named = f"{scope} {subject}".strip()
    verb = "works again" if off else "stands still"
    asking.confirmed(subject or scope, given=confirm, what=f"{named} {verb}.")
    if scope == "agent":
        subject = agent_id(found, subject)
    if local:
        local_stops.switch(found, scope=scope, subject=subject, reason=reason, off=off)
        return
    body = {"scope": scope, "subject": subject, "reason": reason}
    thrown = control_of(state).post("/api/v1/kill-switch", body)
    if json:
        emit(thrown)
    else:
        say(f"{named} is stopped; behavry kill --release {thrown['id']} gives it back")


@app.command(name="list")
def list_stops(*, state: StateOption = None, json: JsonOption = False) -> None:
    """What stands still: by control's word, and by this machine's own file."""
    found = existing_state(state)
    own = [{**stop, "id": "local", "state": "on"} for stop in local_stops.stops(found)]
    try:
        items = list(control_of(state).items("/api/v1/kill-switch"))
    except Unreachable as why:
        say(f"{why}: only what this machine stops by itself is shown")
        items = []
    if json:
        emit([*own, *items])
    else:
        emit_text(table([*own, *items], "id", "state", "scope", "subject", "reason", "on_at"))


@app.command
def show(stop: str, /, *, state: StateOption = None) -> None:
    """One stop of control's as JSON: who threw it, who wants it released."""
    emit(control_of(state).get(f"/api/v1/kill-switch/{segment(stop)}"))


def agent_id(state: State, agent: str) -> str:
    """The id of an agent named by a person; without control, only an id will do. A session that has
    ended meanwhile must not be in the way.
    """
    if is_id(agent):
        return agent
    try:
        return id_of(machine_control(state), agent)
    except Unreachable:
        raise CommandFailed(
            "control does not answer, so only it knows names: name the agent's id",
            status=Exit.UNREACHABLE,
        ) from None


def _release(
    state: State, id: str, reason: str, *, password_file: PasswordFile, as_json: bool
) -> None:
    person = signed_in(state, control_url=control_url(state), password_file=password_file)
    answer = person.act(f"/api/v1/kill-switch/{segment(id)}:release", {"reason": reason})
    if as_json:
        emit(answer)
    elif answer["state"] == "off":
        say(f"{answer['scope']} {answer['subject']} works again")
    else:
        say("one more admin has to release it")
