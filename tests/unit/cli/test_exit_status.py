"""The statuses with which commands end (control.md 7), each of them reached."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli import session
from services.cli.session import Session
from services.cli.state import State
from tests.fakes.rest import RestControl
from tests.unit.cli.conftest import Run

ID = "01a1fe9f-73d2-7f92-8f33-7e1cbbb5a52d"


@pytest.fixture
def signed_in(state_dir: Path, control: RestControl) -> str:
    """Somebody is; answers the token."""
    url = f"http://127.0.0.1:{control.port}"
    session.keep(State(state_dir), Session(control_url=url, username="ada", token="bhv_us_1"))
    return "bhv_us_1"


def _page(*items: object) -> tuple[int, object]:
    return 200, {"items": list(items), "next_page_token": ""}


def test_0_data_on_stdout_and_words_on_stderr(run: Run, control: RestControl) -> None:
    control.answers["GET /api/v1/roles"] = _page({"name": "r", "permissions": ["a:read"]})
    control.answers["PUT /api/v1/roles/r"] = (200, {"name": "r", "permissions": ["a:read"]})
    listed = run("roles", "list", "--json")
    said = run("roles", "grant", "r", "a:read")

    assert (0, [{"name": "r", "permissions": ["a:read"]}], "") == (
        listed.status,
        json.loads(listed.out),
        listed.err,
    )
    assert (0, "", "r: a:read\n") == (said.status, said.out, said.err)


def test_1_a_refusal_that_is_none_of_the_others(run: Run, control: RestControl) -> None:
    control.problem("GET /api/v1/roles", 429, "rate_limited")
    refused = run("roles", "list")

    assert (1, "") == (refused.status, refused.out)
    assert "rate_limited" in refused.err


def test_2_usage(run: Run) -> None:
    statuses = [
        run("fly").status,
        run("tools", "classify", "git").status,
        run("agents", "revoke", ID, "--no-input").status,
        run("kill", "--scope", "tenant", "--reason", "x").status,
        run("kill", "--scope", "tenant", "--reason", "x", "--confirm", "else").status,
        run("login", "--no-input").status,
        run("connect", "cursor", "--server", "s", "--write", "--remove").status,
    ]

    assert [2] * 7 == statuses


@pytest.mark.parametrize(
    ("verdict", "status"), [("ok", 0), ("tampered", 3), ("incomplete", 4), ("new", 3)]
)
def test_3_and_4_a_check_found_something_or_could_not_see_all(
    run: Run, control: RestControl, verdict: str, status: int
) -> None:
    result = {"verdict": verdict, "assurance": "links", "rows_done": 1, "chains": 1, "why": "w"}
    job = {"id": ID, "state": "succeeded", "result": result, "error": None}
    control.answers["POST /api/v1/audit/verify"] = (202, job)

    assert status == run("audit", "verify").status


def test_5_a_rule_says_no_whoever_asks(run: Run, control: RestControl, signed_in: str) -> None:
    control.problem(f"POST /api/v1/escalations/{ID}:approve", 403, "self_approval_forbidden")

    assert 5 == run("escalations", "approve", ID).status


def test_6_not_in_the_plan(run: Run, control: RestControl) -> None:
    control.problem("GET /api/v1/roles", 403, "feature_not_included")

    assert 6 == run("roles", "list").status


def test_7_unreachable(run: Run, control: RestControl, tmp_path: Path) -> None:
    control.problem("GET /api/v1/roles", 503, "dependency_unavailable")

    assert 7 == run("roles", "list").status
    assert 7 == run("roles", "list", "--state", str(tmp_path / "none")).status


@pytest.mark.parametrize(
    ("http", "code"),
    [
        (401, "unauthenticated"),
        (401, "session_expired"),
        (403, "role_required"),
        (403, "human_required"),
    ],
)
def test_8_nobody_or_not_enough(run: Run, control: RestControl, http: int, code: str) -> None:
    control.problem("GET /api/v1/roles", http, code)
    refused = run("roles", "list")

    assert 8 == refused.status
    assert code in refused.err


def test_8_what_only_people_do_when_nobody_is_signed_in(run: Run, control: RestControl) -> None:
    refused = run("escalations", "approve", ID)

    assert 8 == refused.status
    assert "behavry login" in refused.err
    assert [] == control.seen


def test_130_interrupted(state_dir: Path) -> None:
    code = (
        "import sys; from services.cli import __main__ as m, wire\n"
        "def send(*a, **k):\n print('asked', flush=True); import signal; signal.pause()\n"
        "wire.send = send; sys.argv = ['behavry', 'roles', 'list']; m.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "BEHAVRY_STATE_DIR": str(state_dir)},
    ) as asking:
        assert asking.stdout is not None
        asking.stdout.readline()
        asking.send_signal(signal.SIGINT)
        status = asking.wait(timeout=10)

    assert 130 == status


def test_lines_of_json_where_there_may_be_many(run: Run, control: RestControl) -> None:
    control.answers["GET /api/v1/traces"] = _page({"id": "1"}, {"id": "2"})
    control.answers["GET /api/v1/escalations"] = _page({"id": "1"}, {"id": "2"})

    for noun in ("traces", "escalations"):
        told = run(noun, "list", "--json")
        assert [{"id": "1"}, {"id": "2"}] == [json.loads(line) for line in told.out.splitlines()]


def test_what_is_listed_may_begin_on_a_later_page(run: Run, control: RestControl) -> None:
    for noun in ("traces", "escalations"):
        control.answers[f"GET /api/v1/{noun}"] = [
            (200, {"items": [], "next_page_token": "t1"}),
            (200, {"items": [{"id": "1"}], "next_page_token": "t2"}),
            (200, {"items": [{"id": "2"}, {"id": "3"}], "next_page_token": "t3"}),
        ]
        told = run(noun, "list", "--json", "--limit", "2")
        assert [{"id": "1"}, {"id": "2"}] == [json.loads(line) for line in told.out.splitlines()]


def test_a_session_goes_before_the_installation_s_key(
    run: Run, control: RestControl, signed_in: str
) -> None:
    control.answers["GET /api/v1/roles"] = _page()
    control.answers["POST /api/v1/auth/logout"] = (204, None)
    run("roles", "list")
    run("logout")
    run("roles", "list")
    credentials = [headers["authorization"] for _, _, headers in control.seen]

    assert [f"Bearer {signed_in}", f"Bearer {signed_in}", "Bearer bhv_sk_local_a_b"] == credentials


def test_a_session_of_another_control_is_not_sent(
    run: Run, control: RestControl, state_dir: Path
) -> None:
    other = Session(control_url="http://127.0.0.1:1", username="ada", token="bhv_us_1")
    session.keep(State(state_dir), other)
    control.answers["GET /api/v1/roles"] = _page()
    run("roles", "list")

    assert ["Bearer bhv_sk_local_a_b"] == [headers["authorization"] for *_, headers in control.seen]


def test_sign_in_keeps_a_closed_file_and_no_password(
    run: Run, control: RestControl, state_dir: Path
) -> None:
    control.answers["POST /api/v1/auth/login"] = (200, {"csrf_token": None, "token": "bhv_us_2"})
    me = {"kind": "user", "name": "admin", "role": "admin", "tenant": {"id": "t", "slug": "d"}}
    control.answers["GET /api/v1/me"] = (200, me)
    told = run("login", "--password-file", str(state_dir / "admin-password"))
    kept = state_dir / "session.json"

    assert 0 == told.status
    assert 0o600 == kept.stat().st_mode & 0o777
    assert "correct horse" not in kept.read_text() + told.out + told.err
    assert "bhv_us_2" not in told.out + told.err


def test_a_second_proof_is_asked_for_and_its_new_token_kept(
    run: Run, control: RestControl, state_dir: Path, signed_in: str
) -> None:
    item = {
        "id": ID,
        "state": "approved",
        "agent": {"name": "a"},
        "server": "git",
        "tool": "git_commit",
        "votes": [],
        "quorum": 1,
    }
    refusal = (403, {"code": "step_up_required", "detail": "Again."})
    control.answers[f"POST /api/v1/escalations/{ID}:approve"] = [refusal, (200, item)]
    control.answers["POST /api/v1/auth/step-up"] = (200, {"csrf_token": None, "token": "bhv_us_9"})
    told = run("escalations", "approve", ID, "--password-file", str(state_dir / "admin-password"))
    (first, proof, second) = control.seen

    assert (0, "a git/git_commit: approved\n") == (told.status, told.err)
    assert {"password": "correct horse"} == proof[1]
    assert first[2]["idempotency-key"] == second[2]["idempotency-key"]
    assert ["Bearer bhv_us_1", "Bearer bhv_us_9"] == [
        one[2]["authorization"] for one in (first, second)
    ]
    assert "bhv_us_9" in (state_dir / "session.json").read_text()


def test_a_wrong_second_proof_ends_it(
    run: Run, control: RestControl, state_dir: Path, signed_in: str
) -> None:
    control.problem(f"POST /api/v1/escalations/{ID}:deny", 403, "step_up_required")
    control.problem("POST /api/v1/auth/step-up", 403, "step_up_required")
    password = str(state_dir / "admin-api-key")
    told = run("escalations", "deny", ID, "--reason", "no", "--password-file", password)

    assert (8, 2) == (told.status, len(control.seen))


def test_what_agents_wrote_does_not_drive_the_terminal(run: Run, control: RestControl) -> None:
    trace = {"at": None, "agent": {"name": "a\x1b[2J\u202e"}, "tool": "x\r\nforged"}
    control.answers["GET /api/v1/traces"] = _page(trace)
    told = run("traces")

    assert 2 == len(told.out.splitlines())
    assert not {"\x1b", "\u202e", "\r"} & set(told.out)


def test_a_secret_goes_into_a_new_file_alone(
    run: Run, control: RestControl, tmp_path: Path
) -> None:
    made = {"id": ID, "client_id": ID, "client_secret": "s3cret", "name": "bot"}
    control.answers["POST /api/v1/agents"] = (201, made)
    out = tmp_path / "bot.key"
    told = run("agents", "enroll", "bot", "--out", str(out), "--json")
    again = run("agents", "enroll", "bot", "--out", str(out))

    assert (0, 0o600, f"bhv_ak_{ID}.s3cret\n") == (
        told.status,
        out.stat().st_mode & 0o777,
        out.read_text(),
    )
    assert "s3cret" not in told.out + told.err
    assert (2, 1) == (again.status, len(control.seen))
