"""`behavry policy` between files and control."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.common.rego.check import check_policy
from tests.fakes.rest import RestControl
from tests.unit.cli.conftest import Run

TENANT = "01a1fe9f-24a4-7161-bb98-e45d09faf63a"
ID = "01a1fe9f-73d2-7f92-8f33-7e1cbbb5a52d"
ME = {"kind": "api_key", "id": "k", "name": "k", "role": "admin", "tenant": {"id": TENANT}}


@pytest.fixture
def written(run: Run, control: RestControl, tmp_path: Path) -> Path:
    control.answers["GET /api/v1/me"] = (200, ME)
    options = ("--server", "git", "--tool", 'odd"\\tool', "--directory", str(tmp_path))
    assert 0 == run("policy", "new", "no_log", *options).status
    return tmp_path / "no_log.rego"


def _saved(written: Path, **more: Any) -> dict[str, Any]:
    tests = json.loads(written.with_name("no_log.tests.json").read_text())
    return {
        "id": ID,
        "key": "no_log",
        "state": "draft",
        "latest_version": 1,
        "active_version": None,
        "source": written.read_text(),
        "tests": tests,
        **more,
    }


@pytest.mark.needs_regorus
def test_a_new_policy_is_one_that_control_would_take(written: Path) -> None:
    report = check_policy(written.read_text(), TENANT, "no_log")

    assert report.package.endswith(".no_log")


def test_what_exists_is_not_written_over(run: Run, written: Path) -> None:
    before = written.read_text()
    options = ("--server", "git", "--tool", "x", "--directory", str(written.parent))

    assert 2 == run("policy", "new", "no_log", *options).status
    assert before == written.read_text()


def test_a_rejected_policy_is_status_3_with_its_line(
    run: Run, control: RestControl, written: Path
) -> None:
    problem = {"code": "policy_rejected", "detail": "No.", "line": "4", "column": "2", "errors": []}
    control.answers["POST /api/v1/policies:check"] = (422, problem)
    told = run("policy", "check", str(written))

    assert 3 == told.status
    assert "line 4, column 2" in told.err
    assert [] == control.seen[-1][1]["tests"]


def test_a_case_that_came_out_differently_is_named(
    run: Run, control: RestControl, written: Path
) -> None:
    errors = [{"pointer": "/tests/1/expect", "code": "deny"}]
    problem = {"code": "policy_rejected", "detail": "No.", "errors": errors}
    control.answers["POST /api/v1/policies:check"] = (422, problem)
    told = run("policy", "test", str(written), "--json")

    assert 3 == told.status
    assert ["another tool"] == json.loads(told.out)["failed_cases"]
    assert 2 == len(control.seen[-1][1]["tests"])


def test_without_cases_there_is_nothing_to_test(run: Run, written: Path) -> None:
    written.with_name("no_log.tests.json").unlink()

    assert 2 == run("policy", "test", str(written)).status


def test_push_makes_changes_and_leaves_what_is_saved_already(
    run: Run, control: RestControl, written: Path
) -> None:
    page = {"items": [{"id": ID, "key": "no_log"}], "next_page_token": ""}
    control.answers["GET /api/v1/policies"] = (200, {"items": [], "next_page_token": ""})
    control.answers["POST /api/v1/policies"] = (201, _saved(written))
    made = run("policy", "push", str(written))
    control.answers["GET /api/v1/policies"] = (200, page)
    control.answers[f"GET /api/v1/policies/{ID}"] = (200, _saved(written))
    same = run("policy", "push", str(written))
    difference = run("policy", "diff", str(written))
    written.write_text(written.read_text() + "# more\n")
    control.answers[f"PUT /api/v1/policies/{ID}"] = (200, _saved(written, latest_version=2))
    changed = run("policy", "push", str(written))
    differs = run("policy", "diff", str(written))
    (put,) = [one for one in control.seen if one[0].startswith("PUT")]

    assert (0, 0, 0, 0, 3) == (
        made.status,
        same.status,
        difference.status,
        changed.status,
        differs.status,
    )
    assert '"1"' == put[2]["if-match"]
    assert "+# more" in differs.out


def test_promotion_and_rollback_are_done_once_however_often_they_travel(
    run: Run, control: RestControl, written: Path
) -> None:
    for verb in ("enforce", "shadow", "retire", "rollback"):
        control.answers[f"POST /api/v1/policies/{ID}:{verb}"] = (200, _saved(written))
    statuses = [
        run("policy", "promote", ID).status,
        run("policy", "promote", ID, "--to", "shadow").status,
        run("policy", "retire", ID, "--confirm", ID).status,
        run("policy", "rollback", ID, "1").status,
        run("policy", "retire", ID).status,
    ]
    keys = [headers.get("idempotency-key") for route, _, headers in control.seen if ":" in route]

    assert [0, 0, 0, 0, 2] == statuses
    assert 4 == len(set(keys) - {None})


@pytest.mark.parametrize("name", ["x.txt", "No.rego", "1.rego"])
def test_a_policy_s_file_is_named_by_its_key(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("package x")

    assert 2 == run("policy", "check", str(tmp_path / name)).status
