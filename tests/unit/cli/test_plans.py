"""Plans at the command line: what is asked of control, and the status of each refusal."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.rest import RestControl
from tests.unit.cli.conftest import Run

ID = "01a1fe9f-73d2-7f92-8f33-7e1cbbb5a52d"
ACTIVATE = "POST /api/v1/license/activate"
WHY = "a test looks after it"


def held(**other: Any) -> dict[str, Any]:
    feature = {
        "key": "context_gate", "allowed": True, "mode": "on", "source": "PLAN",
        "required_plan": "professional",
    }  # fmt: skip
    return {
        "plan": "professional", "status": "VALID", "expires_at": None, "scheduled": None,
        "features": [feature], "history": {"items": []}, **other,
    }  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "license"
    path.write_text("e.y.J\n")
    return path


def test_a_licence_is_activated_from_a_file_and_never_shown(
    run: Run, control: RestControl, file: Path
) -> None:
    control.answers[ACTIVATE] = (200, held())
    told = run("license", "activate", str(file), "--replace")
    [(_, body, headers)] = control.seen

    assert (0, {"key": "e.y.J", "replace": True}) == (told.status, body)
    assert headers["idempotency-key"]
    assert "professional (VALID)" in told.out
    assert "e.y.J" not in told.out + told.err


def test_a_licence_may_come_from_stdin(
    run: Run, control: RestControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.answers[ACTIVATE] = (200, held())
    monkeypatch.setattr("sys.stdin", io.StringIO("e.y.J\n"))

    assert 0 == run("license", "activate", "-").status
    assert {"key": "e.y.J"} == control.seen[0][1]


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        ((422, "license_signature_invalid"), 3),
        ((422, "license_unknown_key"), 3),
        ((422, "license_malformed"), 2),
        ((422, "license_expired"), 1),
        ((409, "license_older"), 1),
        ((503, "dependency_unavailable"), 7),
        ((403, "role_required"), 8),
    ],
)
def test_each_refusal_of_a_licence_has_its_status(
    run: Run, control: RestControl, file: Path, refusal: tuple[int, str], status: int
) -> None:
    control.problem(ACTIVATE, *refusal)
    told = run("license", "activate", str(file))

    assert (status, "") == (told.status, told.out)
    assert refusal[1] in told.err


@pytest.mark.parametrize(("status", "left"), [("GRACE", 0), ("EXPIRED", 1), ("REVOKED", 1)])
def test_a_plan_that_has_lapsed_is_status_1(
    run: Run, control: RestControl, status: str, left: int
) -> None:
    control.answers["GET /api/v1/license"] = (200, held(status=status))
    told = run("license", "show", "--json")

    assert (left, status) == (told.status, json.loads(told.out)["status"])


def test_6_names_the_feature_and_the_plan(run: Run, control: RestControl) -> None:
    refusal = {
        "code": "feature_not_included", "detail": "Context Gate needs the Professional plan.",
        "feature": "context_gate", "required_plan": "professional",
    }  # fmt: skip
    control.answers["GET /api/v1/context-gate/summary"] = (403, refusal)
    told = run("tools", "summary")

    assert (6, "") == (told.status, told.out)
    assert "feature: context_gate; required plan: professional" in told.err


def test_the_summary_is_a_table_with_a_sum(run: Run, control: RestControl) -> None:
    weight = {
        "approved": 3, "hidden": 2, "unclassified": 1, "changed": 0, "estimated_tokens": 90,
        "shown_estimated_tokens": 60,
    }  # fmt: skip
    said = {"servers": [{"server": "files", **weight}], "total": weight}
    control.answers["GET /api/v1/context-gate/summary"] = (200, said)
    lines = run("tools", "summary").out.splitlines()

    assert ["files", "3", "2", "1", "0", "60", "90"] == lines[1].split()
    assert ["all", "3", "2", "1", "0", "60", "90"] == lines[2].split()


def test_a_tenants_features_are_read_and_changed_with_a_reason(
    run: Run, control: RestControl
) -> None:
    past = {
        "created_at": "2026-01-01T00:00:00Z", "feature": "saml_sso", "effect": "enable",
        "actor": "user:1", "reason": WHY,
    }  # fmt: skip
    route = f"/api/v1/tenants/{ID}/features"
    control.answers[f"GET {route}"] = (200, held())
    control.answers[f"POST {route}"] = (200, held(history={"items": [past]}))
    read = run("tenants", "features", ID, "--reason", WHY)
    changed = run(
        "tenants", "features", ID, "--reason", WHY, "--enable", "saml_sso", "--disable",
        "context_gate", "--ends-at", "2027-01-31T00:00:00Z",
    )  # fmt: skip
    asked = [(route, body, headers["x-behavry-reason"]) for route, body, headers in control.seen]

    assert (0, 0) == (read.status, changed.status)
    assert [
        (f"GET {route}", None, WHY),
        (
            f"POST {route}",
            {
                "enable": ["saml_sso"], "disable": ["context_gate"], "clear": [],
                "ends_at": "2027-01-31T00:00:00Z",
            },
            WHY,
        ),
    ] == asked  # fmt: skip
    assert WHY in changed.out


def test_a_tenant_is_put_on_a_plan(run: Run, control: RestControl) -> None:
    control.answers[f"PUT /api/v1/tenants/{ID}/plan"] = (200, held())
    told = run("tenants", "plan", ID, "professional", "--reason", WHY)

    assert (0, {"plan": "professional"}) == (told.status, control.seen[0][1])
    assert "professional (VALID)" in told.err
