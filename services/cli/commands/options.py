"""Options that several commands share, and how an installation's control is found."""

import json
from pathlib import Path
from typing import Annotated, TypeAlias

from cyclopts import Parameter

from services.cli.output import CommandFailed, Exit
from services.cli.rest import Control, read_key
from services.cli.state import State, recall
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


def state_root(given: Path | None) -> Path:
    """The option, the setting, or the default, in this order."""
    named = given or environment().get("BEHAVRY_STATE_DIR")
    return Path(named) if named else default_state_dir({})


def existing_state(given: Path | None) -> State:
    """A state directory that an `up` has made."""
    root = state_root(given)
    if not (root / "state.json").exists():
        raise CommandFailed(
            f"there is no installation in {root}; `behavry up` makes one", status=Exit.UNREACHABLE
        )
    return State(root.resolve())


def control_of(given: Path | None) -> Control:
    """Control of the installation in a state directory, as its admin's API key."""
    state = existing_state(given)
    port = recall(state).control_port
    if port is None:
        raise CommandFailed(f"{state.root} was never started", status=Exit.UNREACHABLE)
    return Control(url=f"http://127.0.0.1:{port}", api_key=read_key(state.admin_api_key))


def running_document(state: State) -> dict[str, object]:
    """What the running `up` last wrote about itself; empty while it starts."""
    try:
        document = json.loads(state.running_file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return dict(document)
