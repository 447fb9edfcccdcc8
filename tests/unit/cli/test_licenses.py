"""Licences at the command line: no network, no service, each status reached (E20)."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest

from services.common.clock import SystemClock
from services.entitlements import installation_file
from services.entitlements.license import fingerprint
from tests.altered import altered
from tests.fakes.licenses import DAY_S, license_token, private_pem, revocations_token
from tests.unit.cli.conftest import Run

OURS = fingerprint("an installation")


@pytest.fixture
def now_s() -> int:
    return SystemClock().now_ns() // 10**9


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    """Keys of development count, an installation has run here, and nothing can be reached."""

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a licence command uses no network")

    monkeypatch.setenv("BEHAVRY_ENV", "development")
    installation_file.write(state_dir / "installation.fingerprint", OURS)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def issue(run: Run, tmp_path: Path, *options: str, name: str = "license") -> Path:
    key = tmp_path / "private.pem"
    key.write_bytes(private_pem("dev"))
    out = tmp_path / name
    ran = run(
        *("license", "issue", "--signer", str(key), "--kid", "dev", "--id", "licence-1"),
        *("--customer", "A customer", "--issuer", "An issuer", "--plan", "professional"),
        *("--days", "90", "--out", str(out), *options),
    )

    assert (0, "") == (ran.status, ran.err)
    assert 0o600 == out.stat().st_mode & 0o777
    return out


def test_what_is_asked_for_is_issued_for_this_installation_and_in_force(
    run: Run, tmp_path: Path
) -> None:
    asked = tmp_path / "request.json"

    assert 0 == run("license", "request", "--out", str(asked)).status
    assert OURS == json.loads(asked.read_text())["fingerprint"]
    file = issue(
        run,
        tmp_path,
        *("--request", str(asked), "--feature", "saml_sso=true", "--limit", "agents=5"),
        *("--grace-days", "7", "--model", "self_hosted"),
    )
    ran = run("license", "verify", str(file), "--json")
    said = json.loads(ran.out)

    assert (0, True, "VALID", []) == (
        ran.status,
        said["verified"],
        said["status"],
        said["unchecked"],
    )
    assert (OURS, {"saml_sso": True}, 5, ["self_hosted"]) == (
        said["fingerprint"],
        said["features"],
        said["limits"]["agents"],
        said["models"],
    )


def test_inspect_shows_what_is_said_and_that_nobody_has_proven_it(
    run: Run, tmp_path: Path, now_s: int
) -> None:
    file = tmp_path / "license"
    file.write_text(license_token(now_s=now_s, key="somebody") + "\n")
    ran = run("license", "inspect", str(file))

    assert (0, True) == (ran.status, "Not verified" in ran.err)
    assert "plan: professional" in ran.out
    assert 3 == run("license", "verify", str(file)).status


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({}, 0),
        ({"nbf": -100 * DAY_S, "exp": -DAY_S}, 0),  # in grace
        ({"nbf": -100 * DAY_S, "exp": -15 * DAY_S}, 1),
        ({"nbf": DAY_S}, 1),
        ({"fingerprint": fingerprint("another")}, 1),
        ({"aud": "another"}, 1),
        ({"key": "issuer"}, 3),  # which is not built in
    ],
    ids=str,
)
def test_each_outcome_of_a_check_has_its_status(
    run: Run, tmp_path: Path, now_s: int, said: dict[str, Any], status: int
) -> None:
    moved = {k: now_s + v if k in {"nbf", "exp"} else v for k, v in said.items()}
    file = tmp_path / "license"
    file.write_text(license_token(now_s=now_s, **moved))

    assert status == run("license", "verify", str(file)).status


def test_a_revoked_one_has_lapsed(run: Run, tmp_path: Path, now_s: int) -> None:
    file, listed = tmp_path / "license", tmp_path / "revoked"
    file.write_text(license_token(now_s=now_s))
    listed.write_text(revocations_token(now_s=now_s, serial=1, revoked=["licence-1"]))
    ran = run("license", "verify", str(file), "--revocations", str(listed))

    assert (1, True) == (ran.status, "REVOKED" in ran.err)
    assert 0 == run("license", "verify", str(file)).status


def test_the_key_of_development_counts_in_development_only(
    run: Run, tmp_path: Path, now_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "license"
    file.write_text(license_token(now_s=now_s))
    monkeypatch.delenv("BEHAVRY_ENV")

    assert 3 == run("license", "verify", str(file)).status


def test_an_altered_one_is_a_matter_of_its_signature(run: Run, tmp_path: Path, now_s: int) -> None:
    file = tmp_path / "license"
    file.write_text(altered(license_token(now_s=now_s), at=-10))

    assert 3 == run("license", "verify", str(file)).status


def test_what_is_no_licence_and_what_no_licence_can_say_is_a_usage_error(
    run: Run, tmp_path: Path
) -> None:
    file = issue(run, tmp_path)
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nothing")
    key = str(tmp_path / "private.pem")
    again = ("license", "issue", "--signer", key, "--kid", "dev", "--id", "2", "--customer", "c")
    full = (*again, "--issuer", "i", "--plan", "trial", "--days", "1")

    statuses = {
        "no licence": run("license", "verify", str(nonsense)).status,
        "no file": run("license", "verify", str(tmp_path / "none")).status,
        "inspect": run("license", "inspect", str(nonsense)).status,
        "no plan": run(*again).status,
        "over a file": run(*full, "--out", str(file)).status,
        "feature": run(*full, "--feature", "saml_sso").status,
        "grace": run(*full, "--grace-days", "31").status,
        "request": run(*full, "--request", str(nonsense)).status,
    }

    assert {2} == set(statuses.values()), statuses


def test_a_key_that_cannot_sign_licences_is_refused_without_being_shown(
    run: Run, tmp_path: Path
) -> None:
    issue(run, tmp_path)
    key = tmp_path / "wrong.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----\nplanted\n-----END PRIVATE KEY-----\n")
    ran = run(
        *("license", "issue", "--signer", str(key), "--kid", "dev", "--id", "2"),
        *("--customer", "c", "--issuer", "i", "--plan", "trial", "--days", "1"),
    )

    assert (3, "") == (ran.status, ran.out)
    assert "planted" not in ran.err


def test_where_no_installation_has_run_there_is_nothing_to_ask_for(
    run: Run, tmp_path: Path
) -> None:
    assert 2 == run("license", "request", "--state", str(tmp_path / "empty")).status


@pytest.mark.parametrize("verb", ["activate", "inspect", "verify"])
@pytest.mark.parametrize("length", [9_999, 200, 90], ids=["whole", "cut", "cut short"])
def test_a_licence_in_the_place_of_its_file_is_not_quoted(
    run: Run, now_s: int, verb: str, length: int
) -> None:
    token = license_token(now_s=now_s)[:length]
    ran = run("license", verb, token)

    assert (2, "") == (ran.status, ran.out)
    assert token[:40] not in ran.err
    assert "name the file" in ran.err
