"""What only people may do: their session at control, and the second proof that control may ask for.

Decides nothing about who may approve; it signs in, and proves the password again when control says
`step_up_required`.
"""

import contextlib
import json
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.cli import asking, devices, session, wire
from services.cli.output import CommandFailed, Exit, say
from services.cli.rest import Control, Refused
from services.cli.session import Session
from services.cli.state import State

TOTP_DIGITS = 6


def open_session(url: str, *, username: str, password: str) -> Session:
    """Sign in with a password, and with a code where control wants one. Raises Refused: 401 for a
    wrong name or password alike.
    """
    body = {"username": username, "password": password, "bearer": True}
    told = _send(f"{url}/api/v1/auth/login", body)
    wanted = told.get("second_factor")
    if wanted:
        typed = asking.code("One-time code, or a recovery code: ")
        kind = "totp" if typed.isdigit() and len(typed) == TOTP_DIGITS else "recovery_code"
        half = {"token": wanted["token"], kind: typed}
        told = _send(f"{url}/api/v1/auth/second-factor", half)
    return Session(
        control_url=url, username=username, token=told["token"], second_factor=bool(wanted)
    )


def accept_invite(url: str, *, token: str, password: str) -> dict[str, Any]:
    """Who one is from then on. Raises Refused."""
    return _send(f"{url}/api/v1/invites:accept", {"token": token, "password": password})


def forget_password(url: str, username: str) -> None:
    """Asks for a letter; whether one comes, nobody says. Raises Refused."""
    _send(f"{url}/api/v1/auth/password:forgot", {"username": username})


def reset_password(url: str, *, token: str, password: str) -> str:
    """Whose password it is then. Raises Refused."""
    told = _send(f"{url}/api/v1/auth/password:reset", {"token": token, "password": password})
    return str(told["username"])


def _send(url: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = wire.send(
        "POST",
        url,
        headers={"content-type": "application/json", "accept": "application/json"},
        body=json.dumps(body).encode(),
    )
    if answer.status >= 400:
        raise Refused(answer)
    told: dict[str, Any] = answer.json()
    return told


@dataclass(slots=True, kw_only=True)
class Person:
    """Somebody signed in at one control. `password_file` answers for them where nobody can."""

    state: State | None
    session: Session
    password_file: Path | None = None

    @property
    def control(self) -> Control:
        return Control(url=self.session.control_url, credential=self.session.token)

    def act(self, path: str, body: dict[str, Any]) -> Any:
        """One POST, done once however often it travels; the password again if control wants it."""
        key = str(uuid.uuid4())
        try:
            return self.control.post(path, body, key=key)
        except Refused as refused:
            if refused.code != "step_up_required":
                raise
        self.step_up()
        return self.control.post(path, body, key=key)

    def remove(self, path: str) -> None:
        """One DELETE, as `act`."""
        try:
            self.control.delete(path)
        except Refused as refused:
            if refused.code != "step_up_required":
                raise
            self.step_up()
            self.control.delete(path)

    def step_up(self) -> None:
        """Prove who one is once more. A session that got a new token by it is kept."""
        if self.password_file is None and asking.may_ask():
            say("This needs a fresh proof that it is you.")
        if self.session.by_device:
            self._approved_again()
            return
        if self.session.second_factor:
            proof = {"totp": asking.code("One-time code: ")}
        else:
            name = self.session.username
            given = asking.secret(f"Password of {name}: ", file=self.password_file)
            proof = {"password": given}
        answer = self.control.post("/api/v1/auth/step-up", proof)
        token = answer.get("token") if isinstance(answer, dict) else None
        if token:
            self.keep(token=token)

    def _approved_again(self) -> None:
        """Another session, approved right after a proof; this one ends."""
        old, again = self.control, devices.open_session(self.session.control_url, step_up=True)
        if again.username != self.session.username:
            raise CommandFailed("somebody else approved it", status=Exit.NOT_SIGNED_IN)
        self.keep(token=again.token)
        with contextlib.suppress(CommandFailed):  # it ends by itself, later
            old.post("/api/v1/auth/logout")

    def keep(self, **changed: Any) -> None:
        """The session goes on as changed."""
        self.session = replace(self.session, **changed)
        if self.state is not None:
            session.keep(self.state, self.session)


def signed_in(state: State, *, control_url: str, password_file: Path | None) -> Person:
    """The person of `behavry login`. Raises CommandFailed, status 8, where there is none."""
    found = session.kept(state, control_url=control_url)
    if found is None:
        raise CommandFailed(
            "this is for people, and nobody is signed in: `behavry login`",
            status=Exit.NOT_SIGNED_IN,
        )
    return Person(state=state, session=found, password_file=password_file)
