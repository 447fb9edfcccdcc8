"""`behavry login`, `logout`, `whoami`: who the person at this command line is.

A session lives in a 0600 file of the state directory. The password comes from a prompt, a file or
stdin; a file named here is read again whenever control asks for a second proof. Where people sign
in by a provider, or with `--device`, there is no password here: a browser approves.
"""

from typing import Annotated

from cyclopts import Parameter

from services.cli import asking, devices, session
from services.cli.commands.options import (
    JsonOption,
    PasswordFile,
    StateOption,
    control_of,
    control_url,
    existing_state,
    machine_control,
)
from services.cli.output import CommandFailed, Exit, emit, emit_text, say
from services.cli.person import open_session
from services.cli.rest import Control, Refused
from services.cli.state import State


def login(
    username: Annotated[
        str | None, Parameter(help="Whose session; the first start made `admin`.")
    ] = None,
    /,
    *,
    device: Annotated[
        bool, Parameter(negative=(), help="Approve it in a browser, by whatever you sign in with.")
    ] = False,
    tenant: Annotated[
        str, Parameter(help="With --device: whose provider, where there are several tenants.")
    ] = "",
    password_file: PasswordFile = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Sign in. What you do at this command line from then on is done in your name."""
    found = existing_state(state)
    url = control_url(found)
    named = username is not None or password_file is not None
    if device or (not named and _by_provider(found)):
        opened = devices.open_session(url, tenant=tenant)
    else:
        name = username or "admin"
        password = asking.secret(f"Password of {name}: ", file=password_file)
        opened = open_session(url, username=name, password=password)
    session.keep(found, opened)
    me = Control(url=url, credential=opened.token).get("/api/v1/me")
    if json:
        emit({"username": me["name"], "role": me["role"], "tenant": me["tenant"]["slug"]})
    else:
        say(f"signed in as {me['name']} ({me['role']}); `behavry logout` ends it")


def _by_provider(state: State) -> bool:
    """Whether the tenant's people sign in elsewhere. Who cannot be asked signs in by password."""
    try:
        settings = machine_control(state).get("/api/v1/settings/auth")
    except CommandFailed:
        return False
    return isinstance(settings, dict) and settings.get("provider") not in {None, "password"}


def logout(*, state: StateOption = None) -> None:
    """End the session here and at control; commands then use the installation's API key again."""
    found = existing_state(state)
    signed_in = session.kept(found, control_url=control_url(found))
    session.forget(found)
    if signed_in is None:
        say("nobody was signed in")
        return
    try:
        Control(url=signed_in.control_url, credential=signed_in.token).post("/api/v1/auth/logout")
    except Refused as refused:
        if refused.http_status != 401:  # it had ended already
            raise
    except CommandFailed as unreachable:
        raise CommandFailed(
            f"forgotten here, but control could not be told: {unreachable}", status=Exit.UNREACHABLE
        ) from None
    say("signed out")


def whoami(*, state: StateOption = None, json: JsonOption = False) -> None:
    """Say as whom commands ask, with which role."""
    me = control_of(state).get("/api/v1/me")
    shown = {name: me[name] for name in ("kind", "id", "name", "role", "tenant")}
    if json:
        emit(shown)
    else:
        kind = "person" if me["kind"] == "user" else "API key"
        emit_text(f"{me['name']} ({kind}), {me['role']} of {me['tenant']['slug']}")
