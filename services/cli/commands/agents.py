"""`behavry agents`: who may call tools, with which credential, and the ways to stop one.

A secret is in one answer alone: on stdout, or in the file of `--out`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from services.cli import asking, wire
from services.cli.commands.options import (
    ConfirmOption,
    JsonOption,
    StateOption,
    control_of,
    control_url,
    existing_state,
)
from services.cli.output import CommandFailed, Exit, emit, emit_text, say, table
from services.cli.rest import Control, Refused, is_id, segment
from services.cli.secret_files import check_new, read_secret, write_new

app = App(name="agents", help="The agents and their credentials.")
for _verb, _help in (
    ("restrict", "Hold an agent to less for a while."),
    ("unrestrict", "Lift a restriction."),
    ("restrictions", "List what an agent and its sessions are held to."),
):
    app.command(f"services.cli.commands.restrict:{_verb}", name=_verb, help=_help)
_COLUMNS = ("name", "id", "type", "class", "roles", "status")
Type = Literal["autonomous", "assistant", "service", "worker"]
OutOption = Annotated[
    Path | None,
    Parameter("--out", help="A new 0600 file for the agent's key, instead of printing it."),
]


@app.command(name="list")
def list_agents(*, state: StateOption = None, json: JsonOption = False) -> None:
    """List the agents."""
    items = list(control_of(state).items("/api/v1/agents"))
    if json:
        emit(items)
    else:
        emit_text(table(items, *_COLUMNS))


@app.command
def show(agent: str, /, *, state: StateOption = None) -> None:
    """Everything that is known about one agent, by name or id, as JSON."""
    control = control_of(state)
    emit(control.get(f"/api/v1/agents/{segment(id_of(control, agent))}"))


@app.command
def enroll(
    name: str,
    /,
    *,
    role: Annotated[
        list[str] | None,
        Parameter("--role", negative=(), help="A role that it gets; may be repeated."),
    ] = None,
    type: Annotated[Type | None, Parameter("--type", help="What kind of agent it is.")] = None,
    agent_class: Annotated[
        str | None, Parameter("--class", help="The class that policies may read.")
    ] = None,
    tag: Annotated[
        list[str] | None, Parameter("--tag", negative=(), help="May be repeated.")
    ] = None,
    token_file: Annotated[
        Path | None,
        Parameter(
            "--token-file",
            help="Register with the enrolment token in this file (-: stdin); it brings the roles.",
        ),
    ] = None,
    out: OutOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Register an agent and show its credential, once."""
    check_new(out)
    if token_file is not None:
        if role or type or agent_class or tag:
            raise CommandFailed("roles, type, class come with the token", status=Exit.USAGE)
        made = _enroll_with_token(control_url(existing_state(state)), name, read_secret(token_file))
    else:
        said = {"type": type, "class": agent_class, "roles": role, "tags": tag}
        body = {"name": name, **{key: value for key, value in said.items() if value is not None}}
        made = control_of(state).post("/api/v1/agents", body)
    _tell_credential(made, out=out, as_json=json)


@app.command
def suspend(
    agent: str,
    /,
    *,
    local: Annotated[
        bool,
        Parameter("--local", negative=(), help="On this machine alone, with or without control."),
    ] = False,
    off: Annotated[
        bool, Parameter("--off", negative=(), help="With --local: take it back.")
    ] = False,
    reason: Annotated[str, Parameter("--reason", help="With --local: why.")] = "",
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Stop an agent until it is resumed; its sessions end at once."""
    if local:
        from services.cli import local_stops  # noqa: PLC0415  # other verbs do not need it
        from services.cli.commands.kill import agent_id  # noqa: PLC0415  # it imports this file

        found = existing_state(state)
        subject = agent_id(found, agent)
        local_stops.switch(found, scope="agent", subject=subject, reason=reason, off=off)
        return
    if off:
        raise CommandFailed("--off goes with --local; else: agents resume", status=Exit.USAGE)
    _move(control_of(state), agent, "suspend", as_json=json)


@app.command
def resume(agent: str, /, *, state: StateOption = None, json: JsonOption = False) -> None:
    """Let a suspended agent work again."""
    _move(control_of(state), agent, "resume", as_json=json)


@app.command
def revoke(
    agent: str,
    /,
    *,
    confirm: ConfirmOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """End an agent for good."""
    asking.confirmed(agent, given=confirm, what=f"{agent} can never come back.")
    _move(control_of(state), agent, "revoke", as_json=json)


@app.command
def rotate(
    agent: str,
    /,
    *,
    out: OutOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Give an agent a new secret; the older one goes on for at most 7 days."""
    check_new(out)
    control = control_of(state)
    made = control.post(f"/api/v1/agents/{segment(id_of(control, agent))}:rotate")
    _tell_credential(made, out=out, as_json=json)


@app.command(name="delete-secret")
def delete_secret(agent: str, secret: str, /, *, state: StateOption = None) -> None:
    """End one secret of an agent (`agents show` lists them) and all that it opened."""
    control = control_of(state)
    control.delete(f"/api/v1/agents/{segment(id_of(control, agent))}/secrets/{segment(secret)}")
    say(f"secret {secret} has ended")


def id_of(control: Control, agent: str) -> str:
    """The id of an agent that a person named by id or name. Raises CommandFailed."""
    if is_id(agent):
        return agent
    for one in control.items("/api/v1/agents", page_size=500):
        if one["name"] == agent:
            return str(one["id"])
    raise CommandFailed(f"not_found: there is no agent {agent!r}")


def _move(control: Control, agent: str, verb: str, *, as_json: bool) -> None:
    moved = control.post(f"/api/v1/agents/{segment(id_of(control, agent))}:{verb}")
    if as_json:
        emit(moved)
    else:
        say(f"{moved['name']} is {moved['status']}")


def _enroll_with_token(url: str, name: str, token: str) -> Any:
    import json  # noqa: PLC0415  # its name is an option everywhere in this file

    answer = wire.send(
        "POST",
        f"{url}/api/v1/enroll",
        headers={"content-type": "application/json"},
        body=json.dumps({"token": token, "name": name}).encode(),
    )
    if answer.status >= 400:
        raise Refused(answer)
    return answer.json()


def _tell_credential(made: dict[str, Any], *, out: Path | None, as_json: bool) -> None:
    """The key is what clients send to an endpoint's /key form; id and secret fetch tokens."""
    made = {**made, "key": f"bhv_ak_{made['client_id']}.{made['client_secret']}"}
    if out is not None:
        write_new(out, made.pop("key"))
        del made["client_secret"]
        made["key_file"] = str(out)
    if as_json:
        emit(made)
        return
    if out is not None:
        say(f"{made['client_id']}: its key is in {out}")
    else:
        emit_text(made["key"])
        say("This is the only time that the key is shown. It goes into a variable or a file of the")
        say("agent's; client id and secret are its two parts, around the dot.")
