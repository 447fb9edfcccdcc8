"""How people sign in is changed by two: who proposes it, and who runs the installation."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.escalated import Somebody, joined, run
from tests.integration.control.openid import signs_in_by
from tests.integration.control.people import TENANTS, WHY, entitle, operator
from tests.integration.control.test_problems import check
from tests.promises import promise

PATH: Final = "/api/v1/settings/auth"
OIDC: Final[dict[str, Any]] = {
    "provider": "oidc",
    "oidc": {
        "issuer": "https://login.example",
        "client_id": "behavry",
        "client_secret": "secret://oidc",
        "roles": [{"value": "staff", "role": "analyst"}],
        "role_claim": "groups",
    },
}


async def put(rest: Rest, who: Somebody, body: Any = OIDC, revision: int = 0) -> Answered:
    return await rest.put(PATH, body, key=who.token, headers={"if-match": f'"{revision}"'})


async def approve(rest: Rest, who: Somebody, revision: int) -> Answered:
    path = f"{TENANTS}/{rest.running.tenant.id}/auth:approve"
    return await rest.post(path, key=who.token, headers=WHY | {"if-match": f'"{revision}"'})


async def tried(rest: Rest, who: Somebody, **body: Any) -> Answered:
    return await rest.post(f"{PATH}:test", body, key=who.token)


@promise("people:sign-in-changed-by-two")
async def test_what_an_admin_proposes_waits_for_a_super_admin_and_a_test(rest: Rest) -> None:
    anna, boss = await joined(rest, "anna", "admin"), await operator(rest)
    proposed = await put(rest, anna)
    assert ("password", "oidc", ["approval", "test"]) == (
        proposed.json["provider"], proposed.json["proposed"]["provider"],
        proposed.json["proposed"]["waits_for"],
    )  # fmt: skip
    check(await approve(rest, anna, 1), 403, "role_required")
    check(await approve(rest, boss, 0), 412, "stale_revision")
    done = await approve(rest, boss, 1)

    assert (200, "password") == (done.status, done.json["provider"])
    assert ["test"] == done.json["proposed"]["waits_for"]
    assert "password" == (await rest.get(PATH)).json["provider"]
    recorded = [one["type"] for one in await rest.records() if ".auth." in one["type"]]
    assert ["admin.auth.proposed", "admin.auth.approved"] == recorded
    assert 200 == (await put(rest, anna, revision=2)).status  # what is proposed anew begins anew
    assert ["approval", "test"] == (await rest.get(PATH)).json["proposed"]["waits_for"]


@promise("people:sign-in-changed-by-two")
async def test_nobody_approves_their_own_but_whoever_is_alone(rest: Rest) -> None:
    """Alone: no other super-admin, no other admin here, and no plan for teams."""
    boss = await operator(rest)
    anna = await joined(rest, "anna", "admin")
    await put(rest, boss)
    check(await approve(rest, boss, 1), 403, "self_approval_forbidden")
    await run(rest, "UPDATE control.users SET role = 'viewer' WHERE username = 'anna'")
    entitle(rest)
    check(await approve(rest, boss, 1), 403, "self_approval_forbidden")
    entitle(rest, mode="off")
    await run(rest, "UPDATE control.users SET is_super_admin = true WHERE id = $1", anna.id)
    check(await approve(rest, boss, 1), 403, "self_approval_forbidden")
    await run(rest, "UPDATE control.users SET is_super_admin = false WHERE id = $1", anna.id)
    done = await approve(rest, boss, 1)

    assert (200, ["test"]) == (done.status, done.json["proposed"]["waits_for"])
    [record] = [r for r in await rest.records() if r["type"] == "admin.auth.approved"]
    assert [{"field": "sole_operator", "new": True}] == record["changes"]


async def test_to_go_back_to_passwords_an_admin_shows_that_theirs_works(rest: Rest) -> None:
    anna, boss = await joined(rest, "anna", "admin"), await operator(rest)
    await signs_in_by(rest, "https://login.example")
    before = (await rest.get(PATH)).headers["etag"].strip('"')
    check(await tried(rest, anna), 404, "not_found")
    assert 200 == (await put(rest, anna, {"provider": "password"}, int(before))).status
    for body in ({}, {"password": "another one"}):
        check(await tried(rest, anna, **body), 401, "unauthenticated")
    shown = (await rest.get(PATH)).json["proposed"]
    assert ("password_wrong", None) == (shown["test_failure"], shown["tested_by"])
    assert (200, None) == ((done := await tried(rest, anna, password=anna.password)).status,
                           done.json["uri"])  # fmt: skip
    assert ["approval"] == (await rest.get(PATH)).json["proposed"]["waits_for"]
    assert "oidc" == (await rest.get(PATH)).json["provider"]
    done = await approve(rest, boss, int(before) + 1)

    assert ("password", None, None) == (
        done.json["provider"], done.json["oidc"], done.json["proposed"]
    )  # fmt: skip
    types = [one["type"] for one in await rest.records() if ".auth." in one["type"]]
    assert types[-3:] == ["admin.auth.tested", "admin.auth.approved", "admin.auth.updated"]


async def test_whoever_had_a_part_in_it_must_still_have_their_role(rest: Rest) -> None:
    anna, boss = await joined(rest, "anna", "admin"), await operator(rest)
    await put(rest, anna, {"provider": "password"})
    assert 200 == (await tried(rest, anna, password=anna.password)).status
    await run(rest, "UPDATE control.users SET role = 'analyst' WHERE username = 'anna'")
    check(await approve(rest, boss, 1), 409, "conflict")

    assert ["approval"] == (await rest.get(PATH)).json["proposed"]["waits_for"]


async def test_a_test_needs_a_person_of_here_who_has_just_proven_it(rest: Rest) -> None:
    anna = await joined(rest, "anna", "admin")
    await put(rest, anna)
    check(await rest.post(f"{PATH}:test", {}), 403, "human_required")
    check(await rest.post(f"{PATH}:test", {"x": 1}, key=anna.token), 422, "validation_failed")
    rest.clock.advance(301)
    check(await tried(rest, anna), 403, "step_up_required")


async def test_saml_is_of_a_plan_and_of_a_tool_that_is_not_here(rest: Rest) -> None:
    """control.md 4: never half of it."""
    anna = await joined(rest, "anna", "admin")
    entitle(rest, mode="off")
    told = await put(rest, anna, {"provider": "saml"})
    check(told, 403, "feature_not_included")
    assert "saml_sso" == told.json["feature"]
    entitle(rest)
    check(await put(rest, anna, {"provider": "saml"}), 503, "tool_unavailable")
    for path in ("metadata", "acs"):
        check(await rest.get(f"/api/v1/auth/saml/{path}"), 404, "not_found")

    assert None is (await rest.get(PATH)).json["proposed"]


@promise("people:sign-in-changed-by-two")
async def test_without_a_proof_of_lately_nothing_is_proposed(rest: Rest) -> None:
    anna = await joined(rest, "anna", "admin")
    check(await rest.put(PATH, OIDC, headers={"if-match": '"0"'}), 403, "human_required")
    rest.clock.advance(301)
    check(await put(rest, anna), 403, "step_up_required")
    assert 200 == (await anna.step_up()).status
    check(await rest.put(PATH, OIDC, key=anna.token), 428, "precondition_required")

    assert 200 == (await put(rest, anna)).status


@pytest.mark.parametrize(
    "bent",
    [{"issuer": "http://login.example"}, {"issuer": "https://a.example/?x"},
     {"client_secret": "hunter2-hunter2"}, {"scopes": "openid"},
     {"roles": [{"value": "x", "role": "super_admin"}]}, {"unknown": 1}],
)  # fmt: skip
async def test_settings_that_cannot_be_meant_are_refused(rest: Rest, bent: dict[str, Any]) -> None:
    anna = await joined(rest, "anna", "admin")
    answer = await put(rest, anna, {"provider": "oidc", "oidc": OIDC["oidc"] | bent})
    check(answer, 422, "validation_failed")
    assert "hunter2" not in answer.body.decode()
    for provider in ({"provider": "oidc"}, {"provider": "password", "oidc": OIDC["oidc"]}):
        check(await put(rest, anna, provider), 422, "validation_failed")

    assert None is (await rest.get(PATH)).json["proposed"]
