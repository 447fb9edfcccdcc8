"""What the commands of people ask control for, and what they keep and show of its answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.cli import asking
from tests.fakes.rest import RestControl
from tests.unit.cli.conftest import Run

ID = "0199d0d0-0000-7000-8000-00000000000a"
TENANT = "0199d0d0-0000-7000-8000-0000000000bb"
ME = {"name": "anna", "role": "viewer", "tenant": {"slug": "default"}}


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the person types when a code is asked for."""
    answers: list[str] = []
    monkeypatch.setattr(asking, "code", lambda _: answers.pop(0))
    return answers


@pytest.mark.parametrize(
    "answer", [("123456", "totp"), ("ab12-cd34", "recovery_code"), ("12345", "recovery_code")]
)
def test_a_sign_in_goes_on_with_the_code_that_control_asks_for(
    run: Run, control: RestControl, state_dir: Path, typed: list[str], answer: tuple[str, str]
) -> None:
    text, kind = answer
    half = {"token": "half", "factors": ["totp"], "passkey": None}
    control.answers["POST /api/v1/auth/login"] = (200, {"token": None, "second_factor": half})
    control.answers["POST /api/v1/auth/second-factor"] = (200, {"token": "bhv_us_x"})
    control.answers["GET /api/v1/me"] = (200, ME)
    typed.append(text)
    told = run("login", "anna", "--password-file", str(state_dir / "admin-password"))
    bodies = {route: body for route, body, _ in control.seen}

    assert 0 == told.status, told.err
    assert {"token": "half", kind: text} == bodies["POST /api/v1/auth/second-factor"]
    assert text not in told.out + told.err
    kept = json.loads((state_dir / "session.json").read_text())
    assert ("bhv_us_x", True) == (kept["token"], kept["second_factor"])


def test_without_a_terminal_nobody_is_asked_for_a_code(
    run: Run, control: RestControl, state_dir: Path
) -> None:
    half = {"token": "half", "factors": ["totp"], "passkey": None}
    control.answers["POST /api/v1/auth/login"] = (200, {"token": None, "second_factor": half})
    told = run("login", "anna", "--password-file", str(state_dir / "admin-password"))

    assert 8 == told.status


def test_a_person_is_found_by_name_and_given_a_role(run: Run, control: RestControl) -> None:
    page = {"items": [{"id": ID, "username": "anna"}], "next_page_token": ""}
    control.answers["GET /api/v1/users"] = (200, page)
    control.answers[f"PATCH /api/v1/users/{ID}"] = (200, {"username": "anna", "role": "admin"})
    told = run("users", "role", "Anna", "--to", "admin")
    nobody = run("users", "role", "ben", "--to", "admin")

    assert (0, 1) == (told.status, nobody.status)
    sent = [(route, body) for route, body, _ in control.seen]
    assert (f"PATCH /api/v1/users/{ID}", {"role": "admin"}) in sent


def test_whoever_is_put_out_is_named_twice(run: Run, control: RestControl) -> None:
    for verb in ("deactivate", "delete"):
        assert 2 == run("--no-input", "users", verb, ID).status
        assert 2 == run("users", verb, ID, "--confirm", "somebody-else").status

    assert [] == control.seen


def test_an_invites_token_goes_into_a_file_and_nowhere_else(
    run: Run, control: RestControl, tmp_path: Path
) -> None:
    made = {"id": ID, "email": "a@b.c", "role": "viewer", "expires_at": "x", "token": "bhv_inv_x"}
    control.answers["POST /api/v1/invites"] = (201, made)
    out = tmp_path / "token"
    told = run("invites", "create", "a@b.c", "--role", "viewer", "--out", str(out), "--json")

    assert (0, "bhv_inv_x\n") == (told.status, out.read_text())
    assert 0o600 == out.stat().st_mode & 0o777
    assert "bhv_inv_x" not in told.out + told.err
    assert control.seen[0][2]["idempotency-key"]


def test_a_super_admins_reason_travels_with_the_request(run: Run, control: RestControl) -> None:
    path = f"POST /api/v1/tenants/{ID}:suspend"
    control.answers[path] = (200, {"slug": "acme", "status": "suspended"})
    why = "they asked us to"
    told = run("tenants", "suspend", ID, "--reason", why, "--confirm", ID)
    missing = run("tenants", "suspend", ID, "--confirm", ID)

    assert (0, 2) == (told.status, missing.status)
    assert [why] == [headers["x-behavry-reason"] for _, _, headers in control.seen]


def test_a_key_is_replaced_by_its_id(run: Run, control: RestControl) -> None:
    made = {"id": "new", "key": "bhv_sk_x", "expires_at": "x"}
    control.answers["POST /api/v1/api-keys/old:rotate"] = (201, made)
    told = run("api-keys", "rotate", "old", "--overlap-hours", "1", "--days", "30")

    assert (0, "bhv_sk_x\n") == (told.status, told.out)
    assert {"overlap_hours": 1, "expires_in_days": 30} == control.seen[0][1]


def test_without_its_database_the_host_makes_nobody_a_super_admin(
    run: Run, control: RestControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEHAVRY_DB_URL", "postgresql://nobody@127.0.0.1:1/x")
    told = run("admin", "grant", "anna", "--confirm", "anna")
    unsure = run("--no-input", "admin", "grant", "anna")

    assert (7, 2) == (told.status, unsure.status)
    assert [] == control.seen


@pytest.mark.parametrize(
    "command",
    [
        ("users", "list"),
        ("users", "show", ID),
        ("users", "role", ID, "--to", "viewer"),
        ("users", "deactivate", ID, "--confirm", ID),
        ("users", "reactivate", ID),
        ("users", "delete", ID, "--confirm", ID),
        ("invites", "list"),
        ("invites", "create", "new@example.org", "--role", "viewer"),
        ("invites", "revoke", ID),
    ],
)
def test_a_super_admin_says_where_and_why(
    run: Run, control: RestControl, command: tuple[str, ...]
) -> None:
    tenants = {"items": [{"id": TENANT, "slug": "acme"}], "next_page_token": ""}
    control.answers["GET /api/v1/tenants"] = (200, tenants)
    why = ("--reason", "they asked for help")
    run(*command, "--tenant", "acme", *why)
    run(*command, *why)
    (_, _, first), (there, _, said), (here, _, also) = control.seen
    assert 2 == run(*command, "--tenant", "acme").status

    assert f" /api/v1/tenants/{TENANT}/{command[0]}" in there
    assert there.replace(f"tenants/{TENANT}/", "") == here
    assert "x-behavry-reason" not in first
    assert "they asked for help" == said["x-behavry-reason"] == also["x-behavry-reason"]
    assert 3 == len(control.seen)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Files that hold a secret each, by name."""
    made = {}
    for name, secret in (("old", "the old password"), ("new", "the new password")):
        (tmp_path / name).write_text(f"{secret}\n")
        made[name] = str(tmp_path / name)
    return made


def test_a_password_is_changed_after_a_proof_where_control_asks_for_one(
    run: Run, control: RestControl, state_dir: Path, files: dict[str, str]
) -> None:
    control.answers["POST /api/v1/auth/login"] = (200, {"token": "bhv_us_1"})
    control.answers["GET /api/v1/me"] = (200, ME)
    assert 0 == run("login", "anna", "--password-file", files["old"]).status
    refused = (403, {"code": "step_up_required", "detail": "No.", "status": 403})
    control.answers["POST /api/v1/me/password"] = [refused, (200, {"sessions_ended": 2})]
    control.answers["POST /api/v1/auth/step-up"] = (200, {"token": "bhv_us_2"})
    given = ("--password-file", files["old"], "--new-password-file", files["new"])
    told = run("password", "change", *given)

    assert (0, "") == (told.status, told.out), told.err
    assert "2 other sessions ended" in told.err
    sent = [(route, body) for route, body, _ in control.seen]
    wanted = {"old": "the old password", "new": "the new password"}
    assert ("POST /api/v1/me/password", wanted) == sent[-1]
    assert ("POST /api/v1/auth/step-up", {"password": "the old password"}) in sent
    assert "bhv_us_2" in (state_dir / "session.json").read_text()
    assert "the new password" not in told.err


def test_a_password_is_chosen_anew_with_a_token_from_a_file(
    run: Run, control: RestControl, tmp_path: Path, files: dict[str, str]
) -> None:
    (tmp_path / "token").write_text("bhv_rst_x\n")
    control.answers["POST /api/v1/auth/password:forgot"] = (202, {})
    control.answers["POST /api/v1/auth/password:reset"] = (200, {"username": "anna"})
    token = str(tmp_path / "token")
    asked = run("password", "forgot", "anna")
    done = run("password", "reset", "--token-file", token, "--new-password-file", files["new"])
    bodies = {route: (body, headers) for route, body, headers in control.seen}

    assert (0, 0) == (asked.status, done.status), done.err
    assert "behavry login anna" in done.err
    said, headers = bodies["POST /api/v1/auth/password:reset"]
    assert {"token": "bhv_rst_x", "password": "the new password"} == said
    assert "authorization" not in headers


@pytest.mark.parametrize("mailed", [True, False])
def test_a_link_is_shown_unless_its_person_has_it_by_mail(
    run: Run, control: RestControl, tmp_path: Path, files: dict[str, str], mailed: bool
) -> None:
    assert 8 == run("users", "reset-password", ID).status  # nobody is signed in
    control.answers["POST /api/v1/auth/login"] = (200, {"token": "bhv_us_1"})
    control.answers["GET /api/v1/me"] = (200, ME)
    assert 0 == run("login", "anna", "--password-file", files["old"]).status
    link = {"token": "bhv_rst_x", "link": "http://x/reset#bhv_rst_x"}
    made = {"username": "anna", "mailed": mailed, "expires_at": "soon"}
    made |= dict.fromkeys(link) if mailed else link
    control.answers[f"POST /api/v1/users/{ID}:reset-password"] = (200, made)
    shown = run("users", "reset-password", ID)
    out = tmp_path / "reset"
    kept = run("users", "reset-password", ID, "--out", str(out))

    assert (0, 0) == (shown.status, kept.status), kept.err
    assert ("" if mailed else "bhv_rst_x\n") == shown.out
    assert mailed == ("by mail" in shown.err)
    assert "bhv_rst_x" not in kept.out + kept.err
    assert (not mailed) == out.exists()
