"""`behavry enrollment-tokens`: what lets one agent register itself, once."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from services.cli.commands.agents import Type
from services.cli.commands.options import JsonOption, StateOption, control_of
from services.cli.output import emit, emit_text, say
from services.cli.secret_files import check_new, write_new

app = App(name="enrollment-tokens", help="Tokens with which agents register themselves.")


@app.command
def create(
    label: str,
    /,
    *,
    role: Annotated[
        list[str] | None,
        Parameter("--role", negative=(), help="A role of the agent; may be repeated."),
    ] = None,
    type: Annotated[Type | None, Parameter("--type", help="What kind of agent it is.")] = None,
    agent_class: Annotated[
        str | None, Parameter("--class", help="The class that policies may read.")
    ] = None,
    ttl: Annotated[int | None, Parameter("--ttl", help="Seconds, at most 7 days.")] = None,
    out: Annotated[Path | None, Parameter("--out", help="A new 0600 file for the token.")] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Make a token, shown once; `agents enroll NAME --token-file FILE` uses it up."""
    check_new(out)
    said = {"type": type, "class": agent_class, "roles": role, "ttl": ttl}
    body = {"label": label, **{key: value for key, value in said.items() if value is not None}}
    made = control_of(state).post("/api/v1/enrollment-tokens", body)
    if out is not None:
        write_new(out, made.pop("token"))
        made["token_file"] = str(out)
    if json:
        emit(made)
        return
    if out is None:
        emit_text(made["token"])
    say(f"good for one agent until {made['expires_at']}")
