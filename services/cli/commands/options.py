"""Options that several commands share, and how an installation's control is found.

Decides as whom a command asks: the person who signed in with `behavry login`, else the
installation's own API key.
"""

import json
import uuid
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from cyclopts import Parameter

from services.cli import session
from services.cli.output import CommandFailed, Exit
from services.cli.rest import Control, Refused, read_key
from services.cli.state import State, check_closed, recall
from services.common.service_settings import default_state_dir
from services.common.settings import environment

StateOption: TypeAlias = Annotated[
    Path | None,
    Parameter(
        "--state", help="State directory (BEHAVRY_STATE_DIR; default: the XDG data directory)."
    ),
]
JsonOption: TypeAlias = Annotated[
    bool, Parameter("--json", negative=(), help="One JSON value on stdout.")
]
LinesOption: TypeAlias = Annotated[
    bool, Parameter("--json", negative=(), help="One JSON value per line on stdout.")
]
PasswordFile: TypeAlias = Annotated[
    Path | None,
    Parameter("--password-file", help="Holds the password; - reads it from stdin."),
]
ConfirmOption: TypeAlias = Annotated[
    str | None, Parameter("--confirm", help="Repeats the name of what is meant, instead of asking.")
]


def state_root(given: Path | None) -> Path:
    """The option, the setting, or the default, in this order."""
    named = given or environment().get("BEHAVRY_STATE_DIR")
    return Path(named) if named else default_state_dir({})


def existing_state(given: Path | None) -> State:
    """A state directory that an `up` has made, and that is ours alone."""
    root = state_root(given)
    if not (root / "state.json").exists():
        raise CommandFailed(
            f"there is no installation in {root}; `behavry up` makes one", status=Exit.UNREACHABLE
        )
    check_closed(root)
    return State(root.resolve())


def control_url(state: State) -> str:
    """Where the installation's control listens."""
    port = recall(state).control_port
    if port is None:
        raise CommandFailed(f"{state.root} was never started", status=Exit.UNREACHABLE)
    return f"http://127.0.0.1:{port}"


def proxy_url(state: State) -> str:
    """Where agents find the gateway."""
    port = recall(state).proxy_port
    if port is None:
        raise CommandFailed(f"{state.root} was never started", status=Exit.UNREACHABLE)
    return f"http://127.0.0.1:{port}"


def control_of(given: Path | None) -> Control:
    """Control as the person who signed in, or with the installation's API key."""
    state = existing_state(given)
    signed_in = session.kept(state, control_url=control_url(state))
    if signed_in is not None:
        return Control(url=signed_in.control_url, credential=signed_in.token)
    return machine_control(state)


def posted(
    path: str,
    body: dict[str, Any] | None = None,
    *,
    state: Path | None,
    password_file: Path | None = None,
) -> Any:
    """A POST, done once however often it travels. Whoever signed in may have to prove who they are
    first.
    """
    key = str(uuid.uuid4())
    try:
        return control_of(state).post(path, body, key=key)
    except Refused as refused:
        if refused.code != "step_up_required":
            raise
    from services.cli.person import signed_in  # noqa: PLC0415  # few commands come here

    found = existing_state(state)
    person = signed_in(found, control_url=control_url(found), password_file=password_file)
    return person.act(path, body or {})


def machine_control(state: State) -> Control:
    """Control with the installation's API key, whoever is signed in."""
    return Control(url=control_url(state), credential=read_key(state.admin_api_key))


def running_document(state: State) -> dict[str, object]:
    """What the running `up` last wrote about itself; empty while it starts."""
    try:
        document = json.loads(state.running_file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return dict(document)
