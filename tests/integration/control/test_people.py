"""People come by invite, have one of four roles, and leave at once (C-ROLE)."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tests.integration.control.conftest import Rest
from tests.integration.control.escalated import ESCALATIONS, Somebody, asked, joined, signed_in
from tests.integration.control.people import INVITES, USERS, came, entitle, invited
from tests.integration.control.planes import linked
from tests.integration.control.test_problems import check
from tests.promises import promise


@pytest.fixture(autouse=True)
def entitled(rest: Rest) -> None:
    entitle(rest)


async def set_role(rest: Rest, who: Somebody, role: str, key: str = "") -> int:
    return (await rest.call("PATCH", f"{USERS}/{who.id}", {"role": role}, key=key)).status


async def types(rest: Rest) -> list[str]:
    return [record["type"] for record in await rest.records()]


async def test_whoever_is_invited_comes_in_with_that_role_and_no_other(rest: Rest) -> None:
    anna = await came(rest, "Anna@Example.org", "analyst")
    me = (await rest.get("/api/v1/me", key=anna.token)).json

    assert ("anna@example.org", "analyst") == (me["name"], me["role"])
    recorded = await types(rest)
    order = ["admin.invite.created", "admin.invite.accepted", "admin.user.created", "user.signin"]
    assert order == [one for one in recorded if one in order]


async def test_an_invite_is_used_once_and_what_is_wrong_with_one_is_told_alike(rest: Rest) -> None:
    used = (await invited(rest, "a@example.org")).json["token"]
    revoked = (await invited(rest, "b@example.org")).json
    old = (await invited(rest, "c@example.org")).json["token"]
    said = {"password": "twelve letters"}
    both = await asyncio.gather(
        *(rest.post(f"{INVITES}:accept", {"token": used, **said}, key=None) for _ in range(2))
    )
    assert [201, 401] == sorted(answer.status for answer in both)
    assert 204 == (await rest.call("DELETE", f"{INVITES}/{revoked['id']}")).status
    rest.clock.advance(timedelta(days=7).total_seconds())

    told = []
    for token in (used, revoked["token"], old, "bhv_inv_" + "x" * 43, "x"):
        answer = await rest.post(f"{INVITES}:accept", {"token": token, **said}, key=None)
        check(answer, 401, "invite_invalid")
        told.append({k: v for k, v in answer.json.items() if k != "request_id"})
    assert 1 == len({str(one) for one in told})
    failed = [r for r in await rest.records() if r["type"] == "user.signin_failed"]
    assert 6 == len(failed)
    assert {"invite_invalid"} == {one["reason"] for one in failed}


async def test_an_invite_is_listed_without_its_token_and_one_is_open_per_address(
    rest: Rest,
) -> None:
    made = await invited(rest, "a@example.org")
    token = made.json["token"]
    check(await invited(rest, "A@example.org"), 409, "conflict")
    listed = await rest.get(INVITES)

    assert token not in listed.body.decode()
    assert ["invited"] == [one["state"] for one in listed.json["items"]]
    rest.clock.advance(timedelta(days=8).total_seconds())
    assert 201 == (await invited(rest, "a@example.org")).status
    assert token not in str(await rest.records())


@promise("people:role-counts-at-once")
async def test_a_role_counts_from_the_next_request(rest: Rest) -> None:
    anna = await joined(rest, "anna", "admin")
    assert 200 == (await rest.get(USERS, key=anna.token)).status
    assert 200 == await set_role(rest, anna, "viewer")
    check(await rest.get(USERS, key=anna.token), 403, "role_required")
    assert 200 == await set_role(rest, anna, "admin")

    assert 200 == (await rest.get(USERS, key=anna.token)).status
    assert 2 == (await types(rest)).count("admin.user.role_changed")


@promise("people:leave-at-once")
async def test_with_a_role_go_the_keys_and_approvals_that_it_was_needed_for(rest: Rest) -> None:
    async with linked(rest) as plane:
        anna = await joined(rest, "anna", "admin")
        high, low = [
            (await rest.post("/api/v1/api-keys", {"name": r, "role": r}, key=anna.token)).json[
                "key"
            ]
            for r in ("policy_author", "viewer")
        ]
        escalation = await asked(rest, plane)
        assert 200 == (await anna.act(escalation, "approve")).status
        assert 200 == await set_role(rest, anna, "analyst")
        check(await rest.get("/api/v1/me", key=high), 401, "unauthenticated")
        assert "approved" == (await rest.get(f"{ESCALATIONS}/{escalation}")).json["state"]
        assert 200 == await set_role(rest, anna, "viewer")

        assert "revoked" == (await rest.get(f"{ESCALATIONS}/{escalation}")).json["state"]
        assert 200 == (await rest.get("/api/v1/me", key=low)).status


@promise("people:leave-at-once")
async def test_whoever_is_deactivated_has_no_session_no_key_and_no_approval_left(
    rest: Rest,
) -> None:
    async with linked(rest) as plane:
        anna = await joined(rest, "anna", "admin")
        key = await rest.post(
            "/api/v1/api-keys", {"name": "anna's", "role": "admin"}, key=anna.token
        )
        escalation = await asked(rest, plane)
        assert 200 == (await anna.act(escalation, "approve")).status
        answer = await rest.post(f"{USERS}/{anna.id}:deactivate")
        assert (200, "deactivated") == (answer.status, answer.json["status"])

        for credential in (anna.token, key.json["key"]):
            assert 401 == (await rest.get("/api/v1/me", key=credential)).status
        state = (await rest.get(f"{ESCALATIONS}/{escalation}")).json["state"]
        assert "revoked" == state
    recorded = await types(rest)
    for one in ("admin.user.deactivated", "admin.api_key.deleted", "admin.escalation.revoke"):
        assert 1 == recorded.count(one), one


async def test_whoever_is_let_in_again_signs_in_anew(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    await rest.post(f"{USERS}/{anna.id}:deactivate")
    said = {"username": "anna", "password": anna.password, "bearer": True}
    check(await rest.post("/api/v1/auth/login", said, key=None), 401, "unauthenticated")
    assert 200 == (await rest.post(f"{USERS}/{anna.id}:reactivate")).status
    check(await rest.get("/api/v1/me", key=anna.token), 401, "session_expired")

    assert 200 == (await rest.post("/api/v1/auth/login", said, key=None)).status


async def test_whoever_is_deleted_is_gone_and_their_name_is_free(rest: Rest) -> None:
    anna = await came(rest, "anna@example.org")
    assert 204 == (await rest.call("DELETE", f"{USERS}/{anna.id}")).status
    check(await rest.get(f"{USERS}/{anna.id}"), 404, "not_found")
    assert 401 == (await rest.get("/api/v1/me", key=anna.token)).status

    again = await came(rest, "anna@example.org")
    assert again.id != anna.id


@promise("people:last-admin-stays")
async def test_the_last_active_admin_stays(rest: Rest) -> None:
    admin = await signed_in(rest)
    for method, path, body in (
        ("PATCH", f"{USERS}/{admin.id}", {"role": "analyst"}),
        ("POST", f"{USERS}/{admin.id}:deactivate", None),
        ("DELETE", f"{USERS}/{admin.id}", None),
    ):
        check(await rest.call(method, path, body), 409, "last_admin")

    assert 200 == (await rest.get("/api/v1/me", key=admin.token)).status
    assert not [one for one in await types(rest) if one.startswith("admin.user.")]
    await joined(rest, "anna", "admin")
    assert 200 == await set_role(rest, admin, "analyst")


async def test_a_role_is_not_changed_by_whoever_has_read_an_old_one(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    read = (await rest.get(f"{USERS}/{anna.id}")).headers["etag"]
    await set_role(rest, anna, "analyst")
    answer = await rest.call(
        "PATCH", f"{USERS}/{anna.id}", {"role": "admin"}, headers={"if-match": read}
    )

    check(answer, 412, "stale_revision")


async def test_people_see_where_they_are_signed_in_and_end_it_there(rest: Rest) -> None:
    here, there, elsewhere = [await signed_in(rest) for _ in range(3)]
    path = "/api/v1/me/sessions"
    mine = (await rest.get(path, key=here.token)).json["items"]
    assert 3 == len(mine)
    assert 1 == sum(one["current"] for one in mine)
    theirs = (await rest.get(path, key=there.token)).json["items"]
    (of_there,) = [one["id"] for one in theirs if one["current"]]
    assert 204 == (await rest.call("DELETE", f"{path}/{of_there}", key=here.token)).status
    check(await rest.get("/api/v1/me", key=there.token), 401, "session_expired")
    assert 1 == (await rest.post(f"{path}:end-others", key=here.token)).json["ended"]

    check(await rest.get("/api/v1/me", key=elsewhere.token), 401, "session_expired")
    assert 200 == (await rest.get("/api/v1/me", key=here.token)).status


async def test_nobody_ends_the_session_of_somebody_else(rest: Rest) -> None:
    admin, anna = await signed_in(rest), await joined(rest, "anna")
    path = "/api/v1/me/sessions"
    (hers,) = (await rest.get(path, key=anna.token)).json["items"]
    answer = await rest.call("DELETE", f"{path}/{hers['id']}", key=admin.token)

    check(answer, 404, "not_found")
    assert 200 == (await rest.get("/api/v1/me", key=anna.token)).status


@pytest.mark.parametrize(
    ("mode", "reads", "removes", "writes"),
    [("on", 200, 200, 200), ("frozen", 200, 200, 403), ("off", 403, 403, 403)],
)
async def test_what_the_plan_has_not_is_refused_by_name(
    rest: Rest, mode: str, reads: int, removes: int, writes: int
) -> None:
    anna = await joined(rest, "anna")
    entitle(rest, mode=mode)
    assert reads == (await rest.get(USERS)).status
    assert removes == (await rest.post(f"{USERS}/{anna.id}:deactivate")).status
    answer = await rest.post(f"{USERS}/{anna.id}:reactivate")

    assert writes == answer.status
    if writes == 403:
        check(answer, 403, "feature_not_included")
        assert ("team_management", mode) == (answer.json["feature"], answer.json["mode"])


async def test_a_question_about_sessions_that_is_not_understood_is_refused(rest: Rest) -> None:
    admin = await signed_in(rest)
    path = "/api/v1/me/sessions"
    check(await rest.get(f"{path}?user=anna", key=admin.token), 400, "invalid_filter")

    assert 200 == (await rest.get(path, key=admin.token)).status
