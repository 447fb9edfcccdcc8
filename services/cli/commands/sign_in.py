"""`behavry sign-in`: how the tenant's people sign in. An admin proposes, a super-admin approves."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from services.cli.commands import tenants
from services.cli.commands.options import StateOption, control_of
from services.cli.output import CommandFailed, Exit, emit, say

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
    told = control.put(_PATH, wanted, etag=etag)
    waits = told["proposed"] is not None
    say("a super-admin has to approve it" if waits else f"people sign in by {told['provider']}")


@app.command
def approve(tenant: str, /, *, reason: tenants.ReasonOption, state: StateOption = None) -> None:
    """Put what was proposed into force, as a super-admin."""
    control = control_of(state)
    found = tenants.id_of(control, tenant)
    held = f"/api/v1/tenants/{found}/settings/auth"
    _, etag = control.get_tagged(held, reason=reason)
    path = f"/api/v1/tenants/{found}/auth:approve"
    told = control.post_because(path, reason, etag=etag)
    say(f"people of {tenant} sign in by {told['provider']}")
