"""`behavry invites`: how people come into the tenant, and how one comes in oneself."""

import uuid
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from services.cli import asking
from services.cli.commands.inside import OWN, InsideOptions
from services.cli.commands.options import (
    JsonOption,
    PasswordFile,
    StateOption,
    control_url,
    existing_state,
)
from services.cli.output import emit, emit_text, say, table
from services.cli.person import accept_invite
from services.cli.rest import segment
from services.cli.secret_files import check_new, keep_token, show_token

app = App(name="invites", help="How people come into the tenant.")
Level = Literal["viewer", "analyst", "policy_author", "admin"]
_PATH = "/api/v1/invites"


@app.command(name="list")
def list_invites(
    *,
    inside: InsideOptions = OWN,
    json: JsonOption = False,
) -> None:
    """List the invites, without their tokens."""
    items = list(inside.control().items(_PATH))
    if json:
        emit(items)
    else:
        emit_text(table(items, "email", "id", "role", "state", "expires_at"))


@app.command
def create(
    email: str,
    /,
    *,
    role: Annotated[Level, Parameter("--role", help="At most your own.")],
    out: Annotated[Path | None, Parameter("--out", help="A new 0600 file for the token.")] = None,
    inside: InsideOptions = OWN,
    json: JsonOption = False,
) -> None:
    """Invite somebody. Where the tenant has a mail server for notices, they have the link by mail;
    else the token is shown once, and you hand it over.
    """
    check_new(out)
    body = {"email": email, "role": role}
    made = inside.control().post(_PATH, body, key=str(uuid.uuid4()))
    keep_token(made, out)
    if json:
        emit(made)
        return
    show_token(made)
    say(f"{made['email']} may come in as {made['role']} until {made['expires_at']}")


@app.command
def revoke(
    invite: str,
    /,
    *,
    inside: InsideOptions = OWN,
) -> None:
    """Take an open invite back, by its id."""
    inside.control().delete(f"{_PATH}/{segment(invite)}")
    say(f"{invite} cannot be used any more")


@app.command
def accept(
    *,
    token_file: Annotated[Path, Parameter("--token-file", help="Holds the token; - is stdin.")],
    password_file: PasswordFile = None,
    state: StateOption = None,
) -> None:
    """Come in with an invite, and choose a password of at least 12 characters."""
    token = asking.secret("Token: ", file=token_file)
    password = asking.secret("New password: ", file=password_file)
    url = control_url(existing_state(state))
    come = accept_invite(url, token=token, password=password)
    say(f"welcome; `behavry login {come['username']}` next")
