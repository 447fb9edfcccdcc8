"""The inbox over REST: who decides, once, in time; what each act leaves behind."""

import asyncio
from typing import Any
from uuid import uuid4

from services.common.postgres.windows import WINDOW
from services.control.roles import Role
from tests.altered import altered
from tests.integration.control.conftest import PUBLIC, Answered, Rest
from tests.integration.control.escalated import (
    ESCALATIONS,
    Somebody,
    asked,
    decided,
    joined,
    report,
    run,
    signed_in,
    state_of,
    statements,
)
from tests.integration.control.planes import linked
from tests.promises import promise


async def one(rest: Rest, **more: Any) -> str:
    """An escalation whose plane has gone away again."""
    async with linked(rest) as plane:
        return await asked(rest, plane, **more)


def refused(answer: Answered) -> tuple[int, str]:
    return answer.status, answer.json["code"]


# Who -----------------------------------------------------------------------------------------


@promise("escalations:no-machine")
async def test_a_machine_decides_nothing(rest: Rest) -> None:
    escalation = await one(rest)
    for verb in ("approve", "deny", "revoke", "cancel"):
        answer = await rest.post(
            f"{ESCALATIONS}/{escalation}:{verb}", {"reason": "because"},
            headers={"idempotency-key": "k"},
        )  # fmt: skip
        assert (403, "human_required") == refused(answer), verb

    assert "pending" == await state_of(rest, escalation)


async def test_a_viewer_looks_and_an_analyst_decides(rest: Rest) -> None:
    escalation = await one(rest)
    viewer = await joined(rest, "vera", Role.VIEWER.key)
    analyst = await joined(rest, "anna", Role.ANALYST.key)
    looked = await rest.get(f"{ESCALATIONS}/{escalation}", key=viewer.token)

    assert (200, False) == (looked.status, looked.json["approval"]["eligible"])
    assert (403, "role_required") == refused(await viewer.act(escalation, "approve"))
    assert 200 == (await analyst.act(escalation, "approve")).status


async def test_the_verified_requester_cannot_approve_and_somebody_else_can(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    escalation = await one(rest, requester_id="anna", requester_verified=True)

    assert (403, "self_approval_forbidden") == refused(await anna.act(escalation, "approve"))
    assert 200 == (await (await signed_in(rest)).act(escalation, "approve")).status


async def test_the_owner_of_the_agent_cannot_approve_beside_others(rest: Rest) -> None:
    admin, anna = await signed_in(rest), await joined(rest, "anna")
    agent = await rest.add_agent()
    await run(rest, "UPDATE control.agents SET owner = $1 WHERE id = $2", admin.id, agent["id"])
    escalation = await one(rest, agent_id=agent["id"])

    assert (403, "self_approval_forbidden") == refused(await admin.act(escalation, "approve"))
    assert 200 == (await anna.act(escalation, "approve")).status


async def test_a_lone_operator_approves_their_own_agents_call_flagged(rest: Rest) -> None:
    admin = await signed_in(rest)
    agent = await rest.add_agent()
    await run(rest, "UPDATE control.agents SET owner = $1 WHERE id = $2", admin.id, agent["id"])
    escalation = await one(rest, agent_id=agent["id"])
    rest.clock.advance(6 * 60)
    stale = await admin.act(escalation, "approve")
    await admin.step_up()
    answer = await admin.act(escalation, "approve")

    assert (403, "step_up_required") == refused(stale)
    assert ("approved", ["sole_operator"]) == (
        answer.json["state"], answer.json["approval"]["flags"]
    )  # fmt: skip
    [record] = [r for r in await rest.records() if r["type"] == "admin.escalation.approve"]
    assert record["step_up"] is True
    assert {"field": "flags", "new": ["sole_operator"]} in record["changes"]


# How many ------------------------------------------------------------------------------------


async def test_two_agree_before_the_plane_hears_of_it(rest: Rest) -> None:
    admin, anna = await signed_in(rest), await joined(rest, "anna")
    async with linked(rest) as plane:
        escalation = await asked(rest, plane, quorum=2)
        first = await admin.act(escalation, "approve", {"mode": "grant", "minutes": 30, "uses": 9})
        again = await admin.act(escalation, "approve")
        second = await anna.act(escalation, "approve", {"mode": "grant", "minutes": 10, "uses": 5})
        said = decided(rest, await plane.next("escalation_decision"))

    assert ["pending", "pending", "approved"] == [
        answer.json["state"] for answer in (first, again, second)
    ]
    assert sorted([admin.id, anna.id]) == said["approvers"]
    assert (1, 600_000) == (said["uses"], said["execute_by_ms"] - said["decided_at_ms"])
    assert ["admin", "anna"] == [vote["name"] for vote in second.json["votes"]]


async def test_one_denial_ends_what_another_approved(rest: Rest) -> None:
    admin, anna = await signed_in(rest), await joined(rest, "anna")
    escalation = await one(rest, quorum=2)
    await admin.act(escalation, "approve")
    denied = await anna.act(escalation, "deny")

    assert "denied" == denied.json["state"]
    assert (409, "escalation_closed") == refused(await admin.act(escalation, "approve"))


async def test_a_person_who_left_has_no_vote(rest: Rest) -> None:
    anna, bert = await joined(rest, "anna"), await joined(rest, "bert")
    admin = await signed_in(rest)
    escalation = await one(rest, quorum=2)
    await anna.act(escalation, "approve")
    await run(rest, "UPDATE control.users SET status = 'deactivated' WHERE id = $1", anna.id)
    first = await bert.act(escalation, "approve")
    second = await admin.act(escalation, "approve")

    assert ["pending", "approved"] == [answer.json["state"] for answer in (first, second)]


async def test_the_only_person_there_is_suffices_stepped_up_and_flagged(rest: Rest) -> None:
    admin = await signed_in(rest)
    escalation = await one(rest, quorum=2)
    answer = await admin.act(escalation, "approve")

    assert ("approved", ["quorum_reduced"]) == (
        answer.json["state"], answer.json["approval"]["flags"]
    )  # fmt: skip


# The password again --------------------------------------------------------------------------


@promise("escalations:step-up")
async def test_high_risk_needs_the_password_again_and_low_risk_does_not(rest: Rest) -> None:
    admin = await signed_in(rest)
    high, low = await one(rest, tier="high"), await one(rest)
    rest.clock.advance(5 * 60 + 1)

    assert (403, "step_up_required") == refused(await admin.act(high, "approve"))
    assert 200 == (await admin.act(low, "approve")).status
    assert 200 == (await admin.act(await one(rest, tier="critical"), "deny")).status
    assert 200 == (await admin.step_up()).status
    assert "approved" == (await admin.act(high, "approve")).json["state"]


async def test_a_step_up_gives_the_session_another_token(rest: Rest) -> None:
    admin = await signed_in(rest)
    old = admin.token
    rest.clock.advance(60)
    await admin.step_up()
    me = await rest.get("/api/v1/me", key=admin.token)

    assert (200, 401) == (me.status, (await rest.get("/api/v1/me", key=old)).status)
    assert me.json["stepped_up_until"] is not None


async def test_a_stepped_up_session_lives_no_longer_than_it_would_have(rest: Rest) -> None:
    admin = await signed_in(rest)
    for _ in range(25):
        rest.clock.advance(29 * 60)
        await admin.step_up()

    answer = await rest.get("/api/v1/me", key=admin.token)
    assert (401, "session_expired") == refused(answer)


async def test_a_wrong_password_proves_nothing_and_is_limited_and_recorded(rest: Rest) -> None:
    admin = await signed_in(rest)
    rest.clock.advance(6 * 60)
    tries = [await admin.step_up("wrong wrong wrong") for _ in range(11)]

    assert [403] * 10 + [429] == [answer.status for answer in tries]
    assert "step_up_required" == tries[0].json["code"]
    failed = [r for r in await rest.records() if r["type"] == "user.signin_failed"]
    assert {"step_up_refused"} == {record["reason"] for record in failed}
    high = await one(rest, tier="high")
    assert (403, "step_up_required") == refused(await admin.act(high, "approve"))


async def test_a_machine_has_no_password_to_give(rest: Rest) -> None:
    answer = await rest.post("/api/v1/auth/step-up", {"password": "x"})

    assert (403, "human_required") == refused(answer)


# Sessions of the command line ----------------------------------------------------------------


async def test_a_bearer_session_is_a_person_and_needs_no_origin(rest: Rest) -> None:
    admin = await signed_in(rest)
    me = await rest.get("/api/v1/me", key=admin.token)
    made = await rest.put(
        "/api/v1/roles/r", {"permissions": ["a:read"]}, key=admin.token,
        headers={"origin": "https://elsewhere.example"},
    )  # fmt: skip

    assert admin.token.startswith("bhv_us_")
    assert ("user", "admin", None) == tuple(me.json[k] for k in ("kind", "name", "csrf_token"))
    assert 200 == made.status


async def test_a_bearer_token_is_no_cookie_and_a_cookie_no_bearer_token(rest: Rest) -> None:
    admin = await signed_in(rest)
    body = {"username": "admin", "password": admin.password}
    browser = await rest.post("/api/v1/auth/login", body, key=None)
    cookie = browser.headers["set-cookie"].partition(";")[0].partition("=")[2]
    as_cookie = await rest.get(
        "/api/v1/me", key=None, headers={"cookie": f"behavry_local={admin.token}"}
    )

    assert 401 == as_cookie.status
    for token in (cookie, f"bhv_us_{cookie}", "bhv_us_"):
        assert 401 == (await rest.get("/api/v1/me", key=token)).status
    assert browser.json["token"] is None


async def test_signing_out_ends_a_bearer_session_too(rest: Rest) -> None:
    admin = await signed_in(rest)
    assert 204 == (await rest.post("/api/v1/auth/logout", {}, key=admin.token)).status

    assert 401 == (await rest.get("/api/v1/me", key=admin.token)).status


async def test_a_browser_steps_up_and_approves_from_our_own_page_alone(rest: Rest) -> None:
    body = {"username": "admin", "password": (rest.state / "admin-password").read_text().strip()}
    answer = await rest.post("/api/v1/auth/login", body, key=None)
    rest.clock.advance(6 * 60)

    def browser(answer: Answered, **more: str) -> dict[str, str]:
        cookie = answer.headers["set-cookie"].partition(";")[0]
        return {"cookie": cookie, "x-csrf-token": answer.json["csrf_token"], "origin": PUBLIC,
                "idempotency-key": str(uuid4())} | more  # fmt: skip

    high = await one(rest, tier="high")
    path, password = f"{ESCALATIONS}/{high}:approve", {"password": body["password"]}
    early = await rest.post(path, {}, key=None, headers=browser(answer))
    stepped = await rest.post("/api/v1/auth/step-up", password, key=None, headers=browser(answer))
    foreign = browser(stepped, origin="https://elsewhere.example")
    elsewhere = await rest.post(path, {}, key=None, headers=foreign)
    ours = await rest.post(path, {}, key=None, headers=browser(stepped))

    assert (403, "step_up_required") == refused(early)
    assert (403, "csrf_failed") == refused(elsewhere)
    assert (200, "approved") == (ours.status, ours.json["state"])
    assert 401 == (await rest.get("/api/v1/me", key=None, headers=browser(answer))).status


# When ----------------------------------------------------------------------------------------


async def test_after_its_time_nothing_is_decided(rest: Rest) -> None:
    admin = await signed_in(rest)
    escalation = await one(rest, decide_by_ms=rest.clock.now_ns() // 10**6 + 60_000)
    rest.clock.advance(60)

    for verb in ("approve", "deny", "cancel", "revoke"):
        assert (409, "escalation_closed") == refused(await admin.act(escalation, verb)), verb
    assert "expired" == await state_of(rest, escalation)
    listed = await rest.get(f"{ESCALATIONS}?filter=state:pending")
    assert [] == listed.json["items"]


async def test_an_approval_that_nobody_used_in_time_is_lapsed(rest: Rest) -> None:
    admin = await signed_in(rest)
    escalation = await one(rest)
    await admin.act(escalation, "approve")
    rest.clock.advance(900)

    assert "lapsed" == await state_of(rest, escalation)
    assert (409, "escalation_closed") == refused(await admin.act(escalation, "revoke"))


async def test_a_grant_is_worth_so_many_uses_for_so_long(rest: Rest) -> None:
    admin = await signed_in(rest)
    async with linked(rest) as plane:
        escalation = await asked(rest, plane)
        grant = {"mode": "grant", "minutes": 60, "uses": 20}
        answer = await admin.act(escalation, "approve", grant)
        said = decided(rest, await plane.next("escalation_decision"))
        await report(rest, plane, escalation, "approved", 2, uses_left=17)

    assert (20, 3_600_000) == (said["uses"], said["execute_by_ms"] - said["decided_at_ms"])
    assert 20 == answer.json["uses"]
    assert 17 == (await rest.get(f"{ESCALATIONS}/{escalation}")).json["uses_left"]


async def test_no_more_than_that_can_be_granted(rest: Rest) -> None:
    admin = await signed_in(rest)
    escalation = await one(rest)
    for body, pointer in [
        ({"mode": "grant"}, "/minutes"),
        ({"mode": "grant", "minutes": 61}, "/minutes"),
        ({"mode": "grant", "minutes": 0}, "/minutes"),
        ({"mode": "grant", "minutes": 5, "uses": 21}, "/uses"),
        ({"mode": "once", "uses": 2}, "/uses"),
        ({"mode": "for ever"}, "/mode"),
        ({"reason": "x" * 501}, "/reason"),
    ]:
        answer = await admin.act(escalation, "approve", body)
        assert (422, "validation_failed") == refused(answer), body
        assert pointer == answer.json["errors"][0]["pointer"]

    assert "pending" == await state_of(rest, escalation)


async def test_each_act_is_recorded_with_its_reason(rest: Rest) -> None:
    admin = await signed_in(rest)
    approved, denied, cancelled = [await one(rest) for _ in range(3)]
    await admin.act(approved, "approve", {"reason": "it is fine"})
    await admin.act(approved, "revoke", {"reason": "it is not"})
    await admin.act(denied, "deny", {"reason": "no commits on Friday"})
    await admin.act(cancelled, "cancel")

    records = [r for r in await rest.records() if r["type"].startswith("admin.escalation.")]
    assert [
        ("admin.escalation.approve", approved, "it is fine", "approved"),
        ("admin.escalation.revoke", approved, "it is not", "revoked"),
        ("admin.escalation.deny", denied, "no commits on Friday", "denied"),
        ("admin.escalation.cancel", cancelled, None, "cancelled"),
    ] == [(r["type"], r["resource_id"], r.get("reason"), r["changes"][0]["new"]) for r in records]
    assert {"admin"} == {record["chain"] for record in records}
    assert {admin.id} == {record["actor"]["id"] for record in records}


async def test_a_denial_says_why(rest: Rest) -> None:
    admin = await signed_in(rest)
    escalation = await one(rest)

    assert 422 == (await admin.act(escalation, "deny", {"reason": ""})).status
    assert 422 == (await admin.act(escalation, "deny", {})).status
    assert "pending" == await state_of(rest, escalation)


# Once ----------------------------------------------------------------------------------------


async def test_a_key_is_mandatory_where_it_matters(rest: Rest) -> None:
    admin = await signed_in(rest)
    escalation = await one(rest)
    for verb in ("approve", "deny"):
        answer = await admin.act(escalation, verb, key=None)
        assert (400, "idempotency_key_required") == refused(answer), verb

    assert 200 == (await admin.act(escalation, "approve", key="k")).status
    assert 200 == (await admin.act(escalation, "revoke", key=None)).status


async def test_the_same_approval_twice_is_one(rest: Rest) -> None:
    admin = await signed_in(rest)
    escalation = await one(rest)
    first = await admin.act(escalation, "approve", {"reason": "a"}, key="k")
    again = await admin.act(escalation, "approve", {"reason": "a"}, key="k")
    other = await admin.act(escalation, "approve", {"reason": "b"}, key="k")

    assert (200, first.json) == (again.status, again.json)
    assert "true" == again.headers["idempotency-replayed"]
    assert (422, "idempotency_mismatch") == refused(other)
    assert 1 == await approvals(rest)


@promise("api:done-once")
async def test_many_people_and_tries_at_once_make_one_decision(rest: Rest) -> None:
    admin, anna = await signed_in(rest), await joined(rest, "anna")
    async with linked(rest) as plane:
        escalation = await asked(rest, plane)
        answers = await asyncio.gather(
            *(admin.act(escalation, "approve", key="same") for _ in range(4)),
            *(anna.act(escalation, "approve") for _ in range(2)),
            *(anna.act(escalation, "deny") for _ in range(2)),
        )
        said = decided(rest, await plane.next("escalation_decision"))
        other = await asked(rest, plane)
        await admin.act(other, "deny")
        following = await plane.next("escalation_decision")

    assert {a.status for a in answers} <= {200, 409}
    codes = {a.json["code"] for a in answers if a.status == 409}
    assert codes <= {"escalation_closed", "idempotency_in_flight"}
    assert other == following.escalation_id
    verdicts = {"approve": "approved", "deny": "denied"}
    assert verdicts[said["verdict"]] == await state_of(rest, escalation)


async def approvals(rest: Rest) -> int:
    return sum(record["type"] == "admin.escalation.approve" for record in await rest.records())


# Lists ---------------------------------------------------------------------------------------


@promise("api:pages-hold-still")
async def test_pages_during_inserts_skip_and_repeat_nothing(rest: Rest) -> None:
    async with linked(rest) as plane:
        before = []
        for _ in range(7):
            rest.clock.advance(0.002)
            before.append(await asked(rest, plane))
        seen: list[str] = []
        token = ""
        while True:
            path = f"{ESCALATIONS}?page_size=2" + (f"&page_token={token}" if token else "")
            page = (await rest.get(path)).json
            seen += [item["id"] for item in page["items"]]
            token = page["next_page_token"]
            if not token:
                break
            rest.clock.advance(0.002)
            await asked(rest, plane)

    assert list(reversed(before)) == seen


async def test_a_filter_shows_what_fits_and_refuses_what_it_does_not_know(rest: Rest) -> None:
    admin = await signed_in(rest)
    async with linked(rest) as plane:
        commit = await asked(rest, plane)
        push = await asked(rest, plane, tool="git_push", agent_name="other", codes=["a", "b"])
    await admin.act(push, "approve")

    async def shown(text: str) -> list[str]:
        answer = await rest.call("GET", f"{ESCALATIONS}?filter={text}")
        assert 200 == answer.status, answer.body
        return [item["id"] for item in answer.json["items"]]

    assert [commit] == await shown("state:pending")
    assert [push] == await shown("state:approved,denied")
    assert [push] == await shown("agent:other -tool:git_commit")
    assert [commit] == await shown("-code:b server:git")
    assert {push, commit} == set(await shown("agent:0199d0d0-0000-7000-8000-00000000000a"))
    assert [] == await shown("tier:critical")
    for bad in ("verdict:deny", "state:open", "x"):
        answer = await rest.get(f"{ESCALATIONS}?filter={bad}")
        assert (400, "invalid_filter") == refused(answer)
        assert "?filter" == answer.json["errors"][0]["pointer"]


_COPIES = """
INSERT INTO control.escalations
SELECT (jsonb_populate_record(e, jsonb_build_object(
    'id', lpad(to_hex(g), 8, '0') || '-0000-7000-8000-000000000000',
    'tool', CASE g WHEN 1 THEN 'first' ELSE 'filler' END, 'state', 'consumed'))).*
FROM control.escalations e, generate_series(1, $2::bigint) g WHERE e.id = $1"""


@promise("api:pages-hold-still")
async def test_a_page_looks_at_so_many_and_says_where_it_stopped(rest: Rest) -> None:
    """What fits lies behind more rows than one page may look at; what is live has an index."""
    pending = await one(rest)
    await run(rest, _COPIES, pending, 2 * WINDOW)
    seen: dict[str, list[list[str]]] = {}
    for text in ("tool:first", "tool:nothing", "tool:git_commit,first", "state:pending tool:first"):
        seen[text], token = [], ""
        while not seen[text] or token:
            page = (await rest.get(f"{ESCALATIONS}?filter={text}&page_token={token}")).json
            seen[text].append([item["id"] for item in page["items"]])
            token = page["next_page_token"]

    first = "00000001-0000-7000-8000-000000000000"
    assert {
        "tool:first": [[], [], [first]],
        "tool:nothing": [[], [], []],
        "tool:git_commit,first": [[pending], [], [first]],
        "state:pending tool:first": [[]],
    } == seen


async def test_a_page_token_fits_its_own_filter_alone(rest: Rest) -> None:
    async with linked(rest) as plane:
        for _ in range(2):
            await asked(rest, plane)
    token = (await rest.get(f"{ESCALATIONS}?page_size=1")).json["next_page_token"]
    forged = [
        f"?page_token={token}&filter=tool:x",
        f"?page_token={altered(token)}",
        "?page_token=x",
    ]

    for query in forged:
        assert (400, "invalid_page_token") == refused(await rest.get(ESCALATIONS + query)), query
    assert 1 == len((await rest.get(f"{ESCALATIONS}?page_token={token}")).json["items"])


async def test_reading_costs_two_statements(rest: Rest) -> None:
    """The credential, and the rows."""
    escalation = await one(rest)
    admin = await signed_in(rest)
    for path in (ESCALATIONS, f"{ESCALATIONS}/{escalation}"):

        async def read(path: str = path) -> None:
            assert 200 == (await rest.get(path, key=admin.token)).status

        assert 2 >= await statements(rest, read), path


# Tenants -------------------------------------------------------------------------------------


@promise("tenancy:others-are-not-found")
async def test_another_tenants_escalation_does_not_exist(rest: Rest) -> None:
    tenant = str(uuid4())
    await run(
        rest, "INSERT INTO control.tenants VALUES ($1, 'second', 'Second', 'active', now())", tenant
    )
    stranger: Somebody = await joined(rest, "sid", Role.ADMIN.key, tenant=tenant)
    admin = await signed_in(rest)
    async with linked(rest) as plane:
        ours = await asked(rest, plane)
        theirs = await asked(rest, plane, tenant_id=tenant)
        same_id = await rest.get(f"{ESCALATIONS}/{theirs}", key=stranger.token)

        assert 200 == same_id.status
        for person, foreign in ((stranger, ours), (admin, theirs)):
            listed = await rest.get(ESCALATIONS, key=person.token)
            assert foreign not in [item["id"] for item in listed.json["items"]]
            looked = await rest.get(f"{ESCALATIONS}/{foreign}", key=person.token)
            assert (404, "not_found") == refused(looked)
            for verb in ("approve", "deny", "revoke", "cancel"):
                assert (404, "not_found") == refused(await person.act(foreign, verb)), verb
        await stranger.act(theirs, "approve")
        decision = await plane.next("escalation_decision")

    assert (tenant, theirs) == (decision.tenant_id, decision.escalation_id)
    assert tenant == decided(rest, decision)["tenant"]
