"""What is tried at control's doors to have a call approved that nobody who may has approved. Each
attack has an innocent twin.
"""

from typing import Any

import aiohttp
from yarl import URL

from services.common.postgres.pool import tenant_tx
from services.control.desired_state import policy_revision
from services.control.store import desired
from tests.integration.control import neighbour
from tests.integration.control.conftest import PUBLIC, Answered, Rest
from tests.integration.control.escalated import (
    ESCALATIONS,
    Somebody,
    asked,
    decided,
    joined,
    run,
    signed_in,
    state_of,
)
from tests.integration.control.planes import linked

NOBODY = "0199d0d0-0000-7000-8000-0000000000ff"


def refused(answer: Answered) -> tuple[int, str]:
    return answer.status, answer.json["code"]


async def one(rest: Rest, **more: Any) -> str:
    async with linked(rest) as plane:
        return await asked(rest, plane, **more)


async def again(somebody: Somebody) -> Somebody:
    """A second session of the same person."""
    return await signed_in(somebody.rest, somebody.name, somebody.password)


async def test_nobody_but_a_person_of_the_tenant_with_the_role_approves(
    rest: Rest, other_key: str
) -> None:
    escalation = await one(rest)
    agent = await rest.add_agent()
    token = (
        await rest.token(client_id=agent["client_id"], client_secret=agent["client_secret"])
    ).json["access_token"]
    second = await rest.get("/api/v1/me", key=other_key)
    stranger = await joined(rest, "eve", "admin", tenant=second.json["tenant"]["id"])
    viewer = await joined(rest, "vera", "viewer")
    path, keyed = f"{ESCALATIONS}/{escalation}:approve", {"idempotency-key": "k"}
    answers = {
        "an API key": await rest.post(path, {}, headers=keyed),
        "another tenant's key": await rest.post(path, {}, key=other_key, headers=keyed),
        "an agent's token": await rest.post(path, {}, key=token, headers=keyed),
        "an agent's secret": await rest.post(path, {}, key=agent["client_secret"], headers=keyed),
        "another tenant's admin": await stranger.act(escalation, "approve"),
        "a viewer": await viewer.act(escalation, "approve"),
        "nobody": await rest.post(path, {}, key=None, headers=keyed),
    }

    assert {
        "an API key": (403, "human_required"),
        "another tenant's key": (403, "human_required"),
        "an agent's token": (401, "unauthenticated"),
        "an agent's secret": (401, "unauthenticated"),
        "another tenant's admin": (404, "not_found"),
        "a viewer": (403, "role_required"),
        "nobody": (401, "unauthenticated"),
    } == {who: refused(answer) for who, answer in answers.items()}
    assert "pending" == await state_of(rest, escalation)
    analyst = await joined(rest, "anna")
    assert "approved" == (await analyst.act(escalation, "approve")).json["state"]


async def test_who_made_an_agent_or_is_named_its_owner_does_not_approve_its_calls(
    rest: Rest,
) -> None:
    admin, anna = await signed_in(rest), await joined(rest, "anna")
    body = {"name": "mine"}
    mine = (await rest.post("/api/v1/agents", body, key=admin.token)).json
    annas = (await rest.post("/api/v1/agents", {"name": "annas", "owner": anna.id})).json
    nobodys = await rest.post("/api/v1/agents", {"name": "x", "owner": NOBODY})
    assert ((admin.id, anna.id), (422, "validation_failed")) == (
        (mine["owner"], annas["owner"]), refused(nobodys),
    )  # fmt: skip
    ticket = {"label": "one more", "class": "default", "roles": []}
    token = (await rest.post("/api/v1/enrollment-tokens", ticket, key=admin.token)).json["token"]
    enrolled = (await rest.post("/api/v1/enroll", {"token": token, "name": "e"}, key=None)).json
    for agent, owner, other in (
        (mine, admin, anna), (annas, anna, admin), (enrolled, admin, anna)
    ):  # fmt: skip
        escalation = await one(rest, agent_id=agent["id"])
        own = await owner.act(escalation, "approve")
        assert (403, "self_approval_forbidden") == refused(own)
        assert "approved" == (await other.act(escalation, "approve")).json["state"]


async def test_one_person_is_one_vote_from_however_many_sessions(rest: Rest) -> None:
    anna, bert = await joined(rest, "anna"), await joined(rest, "bert")
    async with linked(rest) as plane:
        escalation = await asked(rest, plane, quorum=2)
        for session in (anna, await again(anna), await again(anna)):
            assert "pending" == (await session.act(escalation, "approve")).json["state"]
        settled = await bert.act(escalation, "approve")
        said = decided(rest, await plane.next("escalation_decision"))

    assert ("approved", sorted([anna.id, bert.id])) == (settled.json["state"], said["approvers"])


async def test_a_vote_of_who_lost_the_role_or_left_does_not_count_and_their_session_is_over(
    rest: Rest,
) -> None:
    people = [await joined(rest, name) for name in ("anna", "bert", "cara", "dora")]
    anna, bert, cara, dora = people
    escalation = await one(rest, quorum=2)
    await anna.act(escalation, "approve")
    await bert.act(escalation, "approve", {"reason": "x" * 501})  # refused: no vote
    await run(rest, "UPDATE control.users SET role = 'viewer' WHERE id = $1", anna.id)
    still = await cara.act(escalation, "approve")
    await run(rest, "UPDATE control.users SET status = 'deactivated' WHERE id = $1", cara.id)
    gone = await cara.act(escalation, "approve")

    assert ("pending", (401, "unauthenticated")) == (still.json["state"], refused(gone))
    assert "pending" == (await bert.act(escalation, "approve")).json["state"]
    assert "approved" == (await dora.act(escalation, "approve")).json["state"]


async def test_a_step_up_is_neither_old_nor_from_a_clock_that_went_back(rest: Rest) -> None:
    anna = await joined(rest, "anna")
    grave = [await one(rest, tier="high") for _ in range(2)]
    rest.clock.advance(301)
    old = await anna.act(grave[0], "approve")
    await anna.step_up()
    rest.clock.advance(-120)
    ahead = await anna.act(grave[0], "approve")
    rest.clock.advance(120)
    fresh = await anna.act(grave[0], "approve")
    stolen = await again(anna)  # signed in just now: fresh by itself
    rest.clock.advance(301)
    stale = await stolen.act(grave[1], "approve")

    assert [(403, "step_up_required")] * 3 == [refused(one) for one in (old, ahead, stale)]
    assert "approved" == fresh.json["state"]


async def test_an_idempotency_key_approves_the_one_it_was_sent_for(rest: Rest) -> None:
    anna, bert = await joined(rest, "anna"), await joined(rest, "bert")
    first, second = await one(rest), await one(rest)
    approved = await anna.act(first, "approve", key="same")
    other = await anna.act(second, "approve", key="same")
    worth_more = await anna.act(first, "approve", {"mode": "grant", "minutes": 60}, key="same")
    repeated = await anna.act(first, "approve", key="same")

    assert [(422, "idempotency_mismatch")] * 2 == [refused(one) for one in (other, worth_more)]
    assert (approved.json, "pending") == (repeated.json, await state_of(rest, second))
    # The key is the person's own: another one's is another request.
    assert (409, "escalation_closed") == refused(await bert.act(first, "approve", key="same"))
    assert "approved" == (await bert.act(second, "approve", key="same")).json["state"]


async def test_a_browsers_cookie_alone_approves_nothing(rest: Rest) -> None:
    escalation = await one(rest)
    body = {"username": "admin", "password": (rest.state / "admin-password").read_text().strip()}
    login = await rest.post("/api/v1/auth/login", body, key=None)
    cookie = {"cookie": login.headers["set-cookie"].partition(";")[0], "idempotency-key": "k"}
    good = {**cookie, "origin": PUBLIC, "x-csrf-token": login.json["csrf_token"]}
    path = f"{ESCALATIONS}/{escalation}:approve"
    bent = {
        "no proof": cookie,
        "no origin": {**good, "origin": "null"},
        "another's page": {**good, "origin": "https://elsewhere.example"},
        "another's token": {**good, "x-csrf-token": "x"},
    }
    for name, headers in bent.items():
        answer = await rest.post(path, {}, key=None, headers=headers)
        assert (403, "csrf_failed") == refused(answer), name
    # A bearer that is none is not made good by the cookie beside it.
    mixed = {**good, "authorization": "Bearer bhv_us_x"}
    assert 401 == (await rest.post(path, {}, key=None, headers=mixed)).status

    assert "pending" == await state_of(rest, escalation)
    assert 200 == (await rest.post(path, {}, key=None, headers=good)).status


async def test_the_way_back_from_the_sign_in_is_the_page_itself(rest: Rest) -> None:
    escalation = await one(rest)
    path = f"/approve/{escalation}"
    secret = (rest.state / "admin-password").read_text().strip()
    async with aiohttp.ClientSession(rest.base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        async with http.get(f"{path}?next=//elsewhere.example") as page:
            shown = await page.text()
        neighbour.unseen("the page", shown)
        token = shown.partition('name="token" value="')[2].partition('"')[0]
        form = {"token": token, "username": "admin", "password": secret,
                "next": "https://elsewhere.example"}  # fmt: skip
        async with http.post(
            f"{path}/sign-in?next=//elsewhere.example", data=form,
            headers={"origin": PUBLIC, "x-forwarded-host": "elsewhere.example"},
            allow_redirects=False,
        ) as answer:  # fmt: skip
            assert (303, path) == (answer.status, answer.headers["location"])
        assert "behavry_local" in http.cookie_jar.filter_cookies(URL(rest.base))


async def test_approvals_end_where_their_server_is_somewhere_else(rest: Rest) -> None:
    await rest.add_server("files", transport="http", stdio=None, urls=["http://127.0.0.1:9/mcp"])
    before = await revision(rest)
    etag = (await rest.get("/api/v1/servers/files")).headers["etag"]
    moved = await rest.call(
        "PATCH", "/api/v1/servers/files", {"urls": ["http://127.0.0.2:9/mcp"]},
        headers={"if-match": etag},
    )  # fmt: skip
    after = await revision(rest)
    await rest.add_agent()

    assert 200 == moved.status
    assert before != after
    assert after == await revision(rest)  # the twin: another agent supersedes nothing


async def revision(rest: Rest) -> str:
    """As planes would get it now."""
    control = rest.running.control
    async with tenant_tx(control.pool, rest.running.tenant.id) as connection:
        now_s = rest.clock.now_ns() // 10**9
        rows = await desired.read(connection, rest.running.tenant.id, now_s=now_s)
    return policy_revision(rows)
