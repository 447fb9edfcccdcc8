"""`behavry sign-in`: how the tenant's people sign in. An admin proposes and tests, a super-admin
approves; whichever of them comes last brings it into force.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from services.cli import asking
from services.cli.commands import tenants
from services.cli.commands.options import (
    PasswordFile,
    StateOption,
    control_of,
    control_url,
    existing_state,
)
from services.cli.output import CommandFailed, Exit, emit, emit_text, say
from services.cli.person import signed_in

app = App(name="sign-in", help="How the tenant's people sign in.")
_PATH = "/api/v1/settings/auth"


@app.command
def show(*, state: StateOption = None) -> None:
    """The settings as JSON, and what is proposed."""
    emit(control_of(state).get(_PATH))


@app.command
def propose(
    file: Annotated[Path, Parameter(help="A JSON document; - is stdin.")],
    /,
    *,
    state: StateOption = None,
) -> None:
    """Propose other settings. Sign in right before: it takes a fresh proof."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        wanted = json.loads(text)
    except (OSError, ValueError):
        raise CommandFailed(f"cannot read {file}", status=Exit.USAGE) from None
    control = control_of(state)
    _, etag = control.get_tagged(_PATH)
    _say_where_it_stands(control.put(_PATH, wanted, etag=etag))


@app.command(name="test")
def try_it(*, password_file: PasswordFile = None, state: StateOption = None) -> None:
    """Try what is proposed: by a sign-in in a browser, or with your own password. Opens nothing."""
    found = existing_state(state)
    person = signed_in(found, control_url=control_url(found), password_file=password_file)
    proposed = person.control.get(_PATH)["proposed"]
    if proposed is None:
        raise CommandFailed("nothing is proposed: `behavry sign-in propose FILE`")
    body = {}
    if proposed["provider"] == "password":
        prompt = f"Password of {person.session.username}: "
        body["password"] = asking.secret(prompt, file=password_file)
    told = person.act(f"{_PATH}:test", body)
    if told["uri"] is None:
        _say_where_it_stands(person.control.get(_PATH))
        return
    say(f"sign in at this address once, until {told['expires_at']}:")
    emit_text(told["uri"])


@app.command
def approve(tenant: str, /, *, reason: tenants.ReasonOption, state: StateOption = None) -> None:
    """Approve what was proposed, as a super-admin who is somebody else."""
    control = control_of(state)
    found = tenants.id_of(control, tenant)
    held = f"/api/v1/tenants/{found}/settings/auth"
    _, etag = control.get_tagged(held, reason=reason)
    path = f"/api/v1/tenants/{found}/auth:approve"
    _say_where_it_stands(control.post_because(path, reason, etag=etag))


_MISSING = {
    "approval": "a super-admin's word (`behavry sign-in approve TENANT`)",
    "test": "a sign-in that works (`behavry sign-in test`)",
}


def _say_where_it_stands(told: dict[str, Any]) -> None:
    say(f"people sign in by {told['provider']}")
    proposed = told["proposed"]
    if proposed is not None:
        missing = " and ".join(_MISSING.get(one, one) for one in proposed["waits_for"])
        say(f"{proposed['provider']} is proposed, and waits for {missing}")
    if proposed is not None and proposed["test_failure"]:
        say(f"the last try did not work: {proposed['test_failure']}")
