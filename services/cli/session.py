"""The signed-in person of this installation: the session that `behavry login` left in a 0600 file.

Decides where it lies and for which control it counts; whether it still lives is control's matter.
"""

import json
from dataclasses import dataclass, field

from services.cli.state import State, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """`token` is a bearer credential of a person."""

    control_url: str
    username: str
    token: str = field(repr=False)
    #: Whether control asks for more than the password.
    second_factor: bool = False
    #: Somebody approved it in a browser; there they prove again who they are.
    by_device: bool = False


def keep(state: State, session: Session) -> None:
    document = {name: getattr(session, name) for name in session.__slots__}
    write_json(state.session, document)


def kept(state: State, *, control_url: str) -> Session | None:
    """The session, if it was opened at this control. A file that says nothing useful is none."""
    try:
        document = json.loads(state.session.read_bytes())
        session = Session(**document)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return session if session.control_url == control_url else None


def forget(state: State) -> None:
    state.session.unlink(missing_ok=True)
