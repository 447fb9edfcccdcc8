"""`behavry mfa`: your second factors. Passkeys live in browsers and are added there; here they are
listed and removed, and one-time codes are set up.
"""

from typing import Annotated

from cyclopts import App, Parameter

from services.cli import asking
from services.cli.commands.options import (
    ConfirmOption,
    JsonOption,
    PasswordFile,
    StateOption,
    control_url,
    existing_state,
)
from services.cli.output import emit, emit_text, say, table
from services.cli.person import Person, signed_in
from services.cli.rest import segment

app = App(name="mfa", help="Your second factors.")
NameOption = Annotated[str, Parameter("--name", help="What you call it.")]
_PATH = "/api/v1/me/mfa"


@app.command(name="list")
def list_factors(*, state: StateOption = None, json: JsonOption = False) -> None:
    """List your second factors."""
    told = _person(state, None).control.get(_PATH)
    if json:
        emit(told)
        return
    emit_text(table(told["items"], "id", "kind", "name", "created_at"))
    say(f"{told['recovery_codes_left']} recovery codes are left")


@app.command
def add(
    *,
    name: NameOption = "authenticator",
    password_file: PasswordFile = None,
    state: StateOption = None,
) -> None:
    """Set up one-time codes: put the secret into an authenticator, then type a code of it."""
    person = _person(state, password_file)
    begun = person.act(f"{_PATH}/totp", {"name": name})
    emit_text(begun["uri"])
    code = asking.code("Code: ")
    done = person.act(f"{_PATH}/totp/{begun['id']}:confirm", {"code": code})
    person.keep(second_factor=True)
    say("one-time codes are asked for from now on")
    _show(done["recovery_codes"])


@app.command
def remove(
    factor: str,
    /,
    *,
    confirm: ConfirmOption = None,
    password_file: PasswordFile = None,
    state: StateOption = None,
) -> None:
    """Remove one, by its id."""
    asking.confirmed(factor, given=confirm, what="It opens nothing any more.")
    person = _person(state, password_file)
    person.remove(f"{_PATH}/{segment(factor)}")
    say(f"{factor} is removed")


@app.command
def recovery_codes(*, password_file: PasswordFile = None, state: StateOption = None) -> None:
    """Make new recovery codes; earlier ones are worth nothing then."""
    made = _person(state, password_file).act(f"{_PATH}/recovery-codes", {})
    _show(made["recovery_codes"])


def _show(codes: list[str] | None) -> None:
    if codes:
        say("each of these opens one session when all else is lost; they are shown once:")
        emit_text("\n".join(codes))


def _person(state: StateOption, password_file: PasswordFile) -> Person:
    found = existing_state(state)
    return signed_in(found, control_url=control_url(found), password_file=password_file)
