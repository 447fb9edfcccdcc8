"""Sign-in without a password at this command line (RFC 8628): control gives two codes, a person
approves in a browser, wherever it is and by whatever they sign in with, and we ask until they have.

Decides how long and how often to ask. What is approved, and by whom, is control's.
"""

import json
import time
from typing import Any
from urllib.parse import urlencode

from services.cli import wire
from services.cli.output import CommandFailed, Exit, say
from services.cli.rest import Control
from services.cli.session import Session

CLIENT = "behavry-cli"
GRANT_TYPE = "urn:ietf:params:oauth:grant-type:device_code"
_PATH = "/api/v1/auth/device"
_SLOWER_S = 5


def open_session(url: str, *, tenant: str = "", step_up: bool = False) -> Session:
    """The session that somebody approves. Raises CommandFailed where nobody does."""
    asked = {"client_id": CLIENT, "tenant": tenant, "scope": "step_up" if step_up else ""}
    status, codes = _ask(url, "authorize", {name: text for name, text in asked.items() if text})
    if status != 200:
        raise CommandFailed(_words(codes), status=Exit.FAILURE)
    say(f"open {codes['verification_uri_complete']}")
    say(f"and allow it if it shows {codes['user_code']}; this waits for you")
    token = _wait_for(url, codes)
    me = Control(url=url, credential=token).get("/api/v1/me")
    return Session(control_url=url, username=me["name"], token=token, by_device=True)


def _wait_for(url: str, codes: dict[str, Any]) -> str:
    interval_s = max(1, int(codes.get("interval", 5)))
    left_s = int(codes["expires_in"])
    form = {"grant_type": GRANT_TYPE, "device_code": codes["device_code"], "client_id": CLIENT}
    while left_s > 0:
        pause(interval_s)
        left_s -= interval_s
        try:
            status, told = _ask(url, "token", form)
        except wire.Unreachable:
            interval_s *= 2  # RFC 8628 3.5
            continue
        error = told.get("error")
        if status == 200:
            return str(told["access_token"])
        if error == "slow_down":
            interval_s += _SLOWER_S
        elif error == "access_denied":
            raise CommandFailed("it was refused in the browser", status=Exit.NOT_SIGNED_IN)
        elif error not in {"authorization_pending", "rate_limited"}:
            raise CommandFailed(_words(told), status=Exit.NOT_SIGNED_IN)
    raise CommandFailed("nobody approved it in time", status=Exit.NOT_SIGNED_IN)


def pause(seconds: int) -> None:
    time.sleep(seconds)  # noqa: TID251  # OAuth: whoever waits asks now and then; nobody tells it


def _ask(url: str, what: str, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
    answer = wire.send(
        "POST",
        f"{url}{_PATH}/{what}",
        headers={"content-type": "application/x-www-form-urlencoded"},
        body=urlencode(form).encode(),
    )
    try:
        told = json.loads(answer.body)
    except ValueError:
        told = None
    return answer.status, told if isinstance(told, dict) else {}


def _words(told: dict[str, Any]) -> str:
    words = told.get("error_description") or told.get("detail") or "it cannot be done"
    return f"not signed in: {words}"
