"""`behavry users`: the people of the tenant, their roles, and whether they are let in."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from services.cli import asking
from services.cli.commands.inside import OWN, InsideOptions
from services.cli.commands.options import (
    ConfirmOption,
    JsonOption,
    PasswordFile,
    StateOption,
    control_url,
    existing_state,
)
from services.cli.output import CommandFailed, emit, emit_text, say, table
from services.cli.person import signed_in
from services.cli.rest import Control, is_id, segment
from services.cli.secret_files import check_new, keep_token, show_token

app = App(name="users", help="The people of the tenant and their roles.")
Level = Literal["viewer", "analyst", "policy_author", "admin"]
_PATH = "/api/v1/users"


@app.command(name="list")
def list_users(
    *,
    inside: InsideOptions = OWN,
    json: JsonOption = False,
) -> None:
    """List the people, with roles and second factors."""
    items = list(inside.control().items(_PATH))
    if json:
        emit(items)
    else:
        rows = [{**one, "factors": " ".join(one["factors"])} for one in items]
        emit_text(table(rows, "username", "id", "role", "status", "factors"))


@app.command
def show(
    user: str,
    /,
    *,
    inside: InsideOptions = OWN,
) -> None:
    """One person as JSON, by name or id."""
    control = inside.control()
    emit(control.get(f"{_PATH}/{_id_of(control, user)}"))


@app.command
def role(
    user: str,
    /,
    *,
    to: Annotated[Level, Parameter("--to", help="At most your own.")],
    inside: InsideOptions = OWN,
) -> None:
    """Give somebody another role; it counts from their next request."""
    control = inside.control()
    changed = control.patch(f"{_PATH}/{_id_of(control, user)}", {"role": to})
    say(f"{changed['username']} is {changed['role']} now")


@app.command
def deactivate(
    user: str,
    /,
    *,
    confirm: ConfirmOption = None,
    inside: InsideOptions = OWN,
) -> None:
    """Let somebody in no more: sessions, keys and unused approvals end at once."""
    asking.confirmed(user, given=confirm, what=f"{user} is out at once, with all keys they made.")
    control = inside.control()
    changed = control.post(f"{_PATH}/{_id_of(control, user)}:deactivate")
    say(f"{changed['username']} is out")


@app.command
def reactivate(
    user: str,
    /,
    *,
    inside: InsideOptions = OWN,
) -> None:
    """Let somebody sign in again; nothing that ended begins again."""
    control = inside.control()
    changed = control.post(f"{_PATH}/{_id_of(control, user)}:reactivate")
    say(f"{changed['username']} may sign in again")


@app.command
def reset_password(
    user: str,
    /,
    *,
    out: Annotated[Path | None, Parameter("--out", help="A new 0600 file for the token.")] = None,
    password_file: PasswordFile = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Make a link for somebody who has lost their password, good for a day and once. They have it
    by mail where there is a mail server for notices; else the token is shown.
    """
    check_new(out)
    found = existing_state(state)
    person = signed_in(found, control_url=control_url(found), password_file=password_file)
    made = person.act(f"{_PATH}/{_id_of(person.control, user)}:reset-password", {})
    keep_token(made, out)
    if json:
        emit(made)
        return
    show_token(made)
    say(f"{made['username']} may choose another password until {made['expires_at']}")


@app.command
def delete(
    user: str,
    /,
    *,
    confirm: ConfirmOption = None,
    inside: InsideOptions = OWN,
) -> None:
    """Take somebody out for good. Records go on naming them."""
    asking.confirmed(user, given=confirm, what=f"{user} is out for good.")
    control = inside.control()
    control.delete(f"{_PATH}/{_id_of(control, user)}")
    say(f"{user} is gone")


def _id_of(control: Control, user: str) -> str:
    if is_id(user):
        return user
    wanted = user.strip().lower()
    found = [one["id"] for one in control.items(_PATH) if one["username"] == wanted]
    if not found:
        raise CommandFailed(f"nobody here is called {user!r}")
    return segment(found[0])
