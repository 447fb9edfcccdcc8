"""`behavry sign-in`: what is asked of control, and what a person is told is still missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from services.cli import session
from services.cli.session import Session
from services.cli.state import State
from tests.fakes.rest import RestControl
from tests.unit.cli.conftest import Run

SETTINGS: Final = "/api/v1/settings/auth"
TENANT: Final = "0199d0d0-0000-7000-8000-00000000000a"


def told(in_force: str = "password", **proposed: Any) -> dict[str, Any]:
    waits = {"provider": "oidc", "waits_for": ["approval", "test"], "test_failure": None}
    return {"provider": in_force, "oidc": None, "proposed": {**waits, **proposed}}


@pytest.fixture
def boss(control: RestControl, state_dir: Path) -> None:
    url = f"http://127.0.0.1:{control.port}"
    session.keep(State(state_dir), Session(control_url=url, username="boss", token="bhv_us_1"))


@pytest.mark.usefixtures("boss")
def test_whoever_proposes_is_told_what_is_missing(
    run: Run, control: RestControl, tmp_path: Path
) -> None:
    control.answers[f"GET {SETTINGS}"] = (200, {"provider": "password", "proposed": None})
    control.answers[f"PUT {SETTINGS}"] = (200, told())
    wanted = tmp_path / "wanted.json"
    wanted.write_text('{"provider": "password"}')
    ran = run("sign-in", "propose", str(wanted))

    assert 0 == ran.status
    for words in ("sign in by password", "oidc is proposed", "sign-in approve", "sign-in test"):
        assert words in ran.err
    [(_, body, headers)] = [one for one in control.seen if one[0].startswith("PUT")]
    assert ({"provider": "password"}, '"1"') == (body, headers["if-match"])


@pytest.mark.usefixtures("boss")
def test_a_test_prints_where_to_sign_in_and_nothing_without_a_proposal(
    run: Run, control: RestControl
) -> None:
    control.answers[f"GET {SETTINGS}"] = (200, {"provider": "password", "proposed": None})
    assert 1 == run("sign-in", "test").status
    control.answers[f"GET {SETTINGS}"] = (200, told())
    uri = {"uri": "https://b.example/x?test=1", "expires_at": "2026-01-01T00:10:00Z"}
    control.answers[f"POST {SETTINGS}:test"] = (200, uri)
    ran = run("sign-in", "test")

    assert (0, "https://b.example/x?test=1\n") == (ran.status, ran.out)


@pytest.mark.usefixtures("boss")
def test_to_go_back_to_passwords_ones_own_is_given_from_a_file(
    run: Run, control: RestControl, state_dir: Path
) -> None:
    shown = told("oidc", provider="password", test_failure="password_wrong")
    control.answers[f"GET {SETTINGS}"] = (200, shown)
    control.answers[f"POST {SETTINGS}:test"] = (200, {"uri": None, "expires_at": None})
    ran = run("sign-in", "test", "--password-file", str(state_dir / "admin-password"))

    assert 0 == ran.status
    assert "password_wrong" in ran.err
    [body] = [body for route, body, _ in control.seen if route.endswith(":test")]
    assert {"password": "correct horse"} == body
    assert "correct horse" not in ran.out + ran.err


@pytest.mark.usefixtures("boss")
def test_whoever_approves_is_told_what_is_in_force(run: Run, control: RestControl) -> None:
    control.answers[f"GET /api/v1/tenants/{TENANT}/settings/auth"] = (200, told())
    done = {"provider": "oidc", "oidc": None, "proposed": None}
    control.answers[f"POST /api/v1/tenants/{TENANT}/auth:approve"] = (200, done)
    ran = run("sign-in", "approve", TENANT, "--reason", "agreed with anna")

    assert (0, True, False) == (ran.status, "sign in by oidc" in ran.err, "waits" in ran.err)
