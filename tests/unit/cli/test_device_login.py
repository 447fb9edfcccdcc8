"""`behavry login` where a browser approves: what is shown, how often it asks, what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from services.cli import devices
from tests.fakes.rest import Answered, RestControl
from tests.unit.cli.conftest import Run

AUTHORIZE: Final = "POST /api/v1/auth/device/authorize"
TOKEN: Final = "POST /api/v1/auth/device/token"
SETTINGS: Final = "GET /api/v1/settings/auth"
CODES: Final = {
    "device_code": "the device's own", "user_code": "BCDF-GHJK", "expires_in": 600, "interval": 5,
    "verification_uri": "https://b.example/device",
    "verification_uri_complete": "https://b.example/device/BCDF-GHJK",
}  # fmt: skip
GRANTED: Final[Answered] = (200, {"access_token": "bhv_us_9", "token_type": "Bearer"})
ME: Final = {"name": "anna", "role": "admin", "tenant": {"slug": "default"}}


def no(error: str) -> Answered:
    return 400, {"error": error, "error_description": "Not yet."}


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seconds: list[int] = []
    monkeypatch.setattr(devices, "pause", seconds.append)
    return seconds


@pytest.fixture
def asked(control: RestControl) -> RestControl:
    control.answers[AUTHORIZE] = (200, CODES)
    control.answers["GET /api/v1/me"] = (200, ME)
    return control


def test_a_browser_approves_and_the_session_is_kept(
    run: Run, asked: RestControl, waited: list[int], state_dir: Path
) -> None:
    asked.answers[TOKEN] = [no("authorization_pending"), no("slow_down"), GRANTED]
    told = run("login", "--device", "--tenant", "acme")
    kept = json.loads((state_dir / "session.json").read_text())

    assert (0, [5, 5, 10]) == (told.status, waited)
    assert "https://b.example/device/BCDF-GHJK" in told.err
    assert ("anna", "bhv_us_9", True) == (kept["username"], kept["token"], kept["by_device"])
    assert 0o600 == (state_dir / "session.json").stat().st_mode & 0o777
    assert "bhv_us_9" not in told.out + told.err
    assert "the device's own" not in told.out + told.err
    bodies = {route: body for route, body, _ in asked.seen}
    assert {"client_id": "behavry-cli", "tenant": "acme"} == bodies[AUTHORIZE]


@pytest.mark.parametrize(
    "answers",
    [[no("access_denied")], [no("expired_token")], [no("invalid_grant")],
     [no("authorization_pending")] * 200],
)  # fmt: skip
def test_whoever_is_not_let_in_is_told_so(
    run: Run, asked: RestControl, waited: list[int], state_dir: Path, answers: list[Answered]
) -> None:
    asked.answers[TOKEN] = list(answers)

    assert 8 == run("login", "--device").status
    assert sum(waited) <= 600
    assert not (state_dir / "session.json").exists()


@pytest.mark.parametrize(("settings", "by_browser"), [
    ((200, {"provider": "oidc"}), True), ((200, {"provider": "password"}), False),
    ((503, {"code": "overloaded"}), False),
])  # fmt: skip
def test_where_people_sign_in_by_a_provider_no_password_is_asked_for(
    run: Run, asked: RestControl, waited: list[int], settings: Any, by_browser: bool
) -> None:
    asked.answers[SETTINGS] = settings
    asked.answers[TOKEN] = [GRANTED]

    assert (0 if by_browser else 2) == run("--no-input", "login").status
    assert by_browser is (AUTHORIZE in [route for route, *_ in asked.seen])


def test_a_fresh_proof_is_given_in_the_browser_and_the_old_session_ends(
    run: Run, asked: RestControl, waited: list[int], state_dir: Path
) -> None:
    asked.answers[TOKEN] = [GRANTED, (200, {"access_token": "bhv_us_10"})]
    run("login", "--device")
    proposed = {"provider": "oidc", "proposed": {"provider": "oidc"}}
    asked.answers[SETTINGS] = (200, proposed)
    uri = {"uri": "https://b.example/x", "expires_at": "2026-01-01T00:00:00Z"}
    refused = (403, {"code": "step_up_required", "detail": "No.", "status": 403})
    asked.answers["POST /api/v1/settings/auth:test"] = [refused, (200, uri)]
    asked.answers["POST /api/v1/auth/logout"] = (204, None)
    told = run("sign-in", "test")

    assert (0, "https://b.example/x\n") == (told.status, told.out)
    scopes = [
        body["scope"] for route, body, _ in asked.seen if route == AUTHORIZE and len(body) > 1
    ]
    assert ["step_up"] == scopes
    [ended] = [sent for route, _, sent in asked.seen if route == "POST /api/v1/auth/logout"]
    assert "Bearer bhv_us_9" == ended["authorization"]
    assert "bhv_us_10" == json.loads((state_dir / "session.json").read_text())["token"]
