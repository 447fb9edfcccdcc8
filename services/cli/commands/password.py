"""`behavry password`: your own password, changed, or chosen anew with a link."""

from pathlib import Path
from typing import Annotated, TypeAlias

from cyclopts import App, Parameter

from services.cli import asking
from services.cli.commands.options import (
    PasswordFile,
    StateOption,
    control_url,
    existing_state,
)
from services.cli.output import say
from services.cli.person import forget_password, reset_password, signed_in

app = App(name="password", help="Your own password.")
NewPasswordFile: TypeAlias = Annotated[
    Path | None, Parameter("--new-password-file", help="Holds the new one; - is stdin.")
]


@app.command
def change(
    *,
    password_file: PasswordFile = None,
    new_password_file: NewPasswordFile = None,
    state: StateOption = None,
) -> None:
    """Change it, knowing the old one; your other sessions end."""
    found = existing_state(state)
    person = signed_in(found, control_url=control_url(found), password_file=password_file)
    old = asking.secret("Password: ", file=password_file)
    new = asking.secret("New password: ", file=new_password_file)
    done = person.act("/api/v1/me/password", {"old": old, "new": new})
    say(f"it is changed; {done['sessions_ended']} other sessions ended")


@app.command
def forgot(username: str, /, *, state: StateOption = None) -> None:
    """Ask for a link by mail, where the tenant has a mail server for notices."""
    forget_password(control_url(existing_state(state)), username)
    say("whoever has an account and an address finds a link in their mail")


@app.command
def reset(
    *,
    token_file: Annotated[
        Path, Parameter("--token-file", help="Holds what stands behind the # of the link.")
    ],
    new_password_file: NewPasswordFile = None,
    state: StateOption = None,
) -> None:
    """Choose another password with a link; second factors stay what they were."""
    token = asking.secret("Token: ", file=token_file)
    new = asking.secret("New password: ", file=new_password_file)
    username = reset_password(control_url(existing_state(state)), token=token, password=new)
    say(f"done; `behavry login {username}` next")
