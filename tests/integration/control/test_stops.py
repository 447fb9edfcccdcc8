"""Kill switches and restrictions: who may set and lift them, what planes are told, and when."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from services.common.postgres.pool import tenant_tx
from services.control.signals import Stop
from services.control.store import people
from tests.integration.control.conftest import PUBLIC, Answered, Rest
from tests.integration.control.planes import fetch, linked, plan, tenant_state, until_serial
from tests.integration.control.test_problems import key_of
from tests.integration.control.test_sign_in import browser
from tests.promises import promise

KILL = "/api/v1/kill-switch"
WHY = "it deletes what it should read"


def stops_told(rest: Rest) -> list[tuple[str, tuple[Stop, ...]]]:
    """Of each signal that no bundle has settled."""
    return [(s.tenant, s.stops) for s in rest.running.control.signals.pending()]


async def next_state(rest: Rest) -> dict[str, Any]:
    """The tenant's part of a bundle that holds every change so far."""
    serial = await rest.running.publisher.publish()
    await until_serial(rest, serial)
    return tenant_state(rest, (await fetch(rest)).body)


async def throw(rest: Rest, scope: str, subject: str = "", **options: Any) -> Answered:
    return await rest.post(KILL, {"scope": scope, "subject": subject, "reason": WHY}, **options)


async def second_admin(rest: Rest) -> dict[str, str]:
    """Headers of another admin's browser."""
    control, password = rest.running.control, "another good password"
    async with tenant_tx(control.pool, rest.running.tenant.id) as connection:
        await people.insert_user(
            connection,
            rest.running.tenant.id,
            id=control.new_id(),
            username="second",
            role="admin",
            password_hash=await control.passwords.hash(password),
            now=datetime.fromtimestamp(rest.clock.now_ns() / 1e9, UTC),
        )
    body = {"username": "second", "password": password}
    answer = await rest.post("/api/v1/auth/login", body, key=None)
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return {"cookie": cookie, "x-csrf-token": answer.json["csrf_token"], "origin": PUBLIC}


async def release(rest: Rest, id: str, headers: dict[str, str] | None) -> Answered:
    options: dict[str, Any] = {"key": None, "headers": headers} if headers else {}
    return await rest.post(f"{KILL}/{id}:release", {"reason": "the cause is gone"}, **options)


# --- Kill switches ------------------------------------------------------------------------------


async def test_each_scope_is_told_at_once_and_is_in_the_next_bundle(rest: Rest) -> None:
    agent, _ = await rest.add_agent(), await rest.add_server("time")
    wanted = [("agent", agent["id"]), ("class", "default"), ("server", "time"), ("tenant", "")]
    for scope, subject in wanted:
        answer = await throw(rest, scope, subject)
        assert (201, "on", scope, subject) == (
            answer.status, *(answer.json[name] for name in ("state", "scope", "subject"))
        )  # fmt: skip
    told = stops_told(rest)
    plan(rest)
    state = await next_state(rest)

    tenant = rest.running.tenant.id
    assert [(tenant, (Stop(scope=a, subject=b),)) for a, b in wanted] == told
    assert [{"scope": scope, "subject": subject} for scope, subject in wanted] == state["stops"]
    assert [] == stops_told(rest)


async def test_a_stop_reaches_the_plane_before_any_bundle(rest: Rest) -> None:
    """Nothing can be built here: entitlements never spoke."""
    async with linked(rest) as plane:
        await plane.next("hello_ack")
        await throw(rest, "class", "default")
        told = await plane.next("revocation")

    assert rest.running.tenant.id == told.tenant_id
    assert [("class", "default")] == [(stop.scope, stop.subject) for stop in told.stops]
    assert ([], []) == (list(told.agent_ids), list(told.session_ids))


async def test_a_stop_of_nothing_is_refused_by_pointer(rest: Rest) -> None:
    server = await rest.add_server("time")
    for scope, subject in (
        ("agent", "nobody"),
        ("agent", str(uuid4())),
        ("class", "none"),
        ("server", "files"),
        ("server", server["id"]),  # planes know it by its slug
        ("tenant", rest.running.tenant.id),
    ):
        answer = await throw(rest, scope, subject)
        assert (422, "/subject") == (answer.status, answer.json["errors"][0]["pointer"])
    short = await rest.post(KILL, {"scope": "tenant", "reason": "  because  "})
    assert [{"pointer": "/reason", "code": "too_short"}] == short.json["errors"]

    assert [] == stops_told(rest)


async def test_the_fleet_is_nobodys_to_stop_over_this_api(rest: Rest) -> None:
    answer = await throw(rest, "fleet")

    assert (403, "role_required", "super_admin") == (
        answer.status, answer.json["code"], answer.json["required_role"]
    )  # fmt: skip


async def test_a_switch_thrown_twice_is_one_and_is_told_again(rest: Rest) -> None:
    first, second = await throw(rest, "tenant"), await throw(rest, "tenant")

    assert (201, 200) == (first.status, second.status)
    assert first.json["id"] == second.json["id"]
    assert 2 == len(stops_told(rest))
    assert 1 == len([r for r in await rest.records() if r["type"] == "admin.kill_switch.thrown"])


@promise("stops:released-by-two")
async def test_two_admins_release_and_one_alone_does_not(rest: Rest) -> None:
    plan(rest)
    first, second = await browser(rest), await second_admin(rest)
    switch = (await throw(rest, "tenant")).json
    once, again = [await release(rest, switch["id"], first) for _ in range(2)]
    assert [(200, "on", 1)] * 2 == [
        (one.status, one.json["state"], len(one.json["releases"])) for one in (once, again)
    ]
    assert [{"scope": "tenant", "subject": ""}] == (await next_state(rest))["stops"]
    done = await release(rest, switch["id"], second)
    late = await release(rest, switch["id"], first)

    assert (200, "off", 2) == (done.status, done.json["state"], len(done.json["releases"]))
    assert (409, "conflict") == (late.status, late.json["code"])
    assert [] == (await next_state(rest))["stops"]
    kinds = [r for r in await rest.records() if r["type"].startswith("admin.kill_switch.")]
    assert ["thrown", "release_asked", "release_asked", "released"] == [
        record["type"].rpartition(".")[2] for record in kinds
    ]
    assert "sole_operator" not in str(kinds)


@promise("stops:released-by-two")
async def test_the_only_admin_releases_alone_and_the_record_says_so(rest: Rest) -> None:
    switch = (await throw(rest, "class", "default")).json
    done = await release(rest, switch["id"], await browser(rest))
    seen = (await rest.get(f"{KILL}/{switch['id']}")).json

    assert (200, "off") == (done.status, seen["state"])
    [record] = [r for r in await rest.records() if r["type"] == "admin.kill_switch.released"]
    assert {"field": "sole_operator", "new": True} in record["changes"]
    assert ("the cause is gone", True) == (record["reason"], record["step_up"])


async def test_the_vote_of_who_is_no_admin_any_more_counts_for_nothing(rest: Rest) -> None:
    first, second = await browser(rest), await second_admin(rest)
    switch = (await throw(rest, "tenant")).json
    await release(rest, switch["id"], second)
    tenant = rest.running.tenant.id
    async with tenant_tx(rest.running.control.pool, tenant) as connection:
        await connection.execute(
            "UPDATE control.users SET role = 'analyst' WHERE username = 'second'"
        )
    demoted = await release(rest, switch["id"], second)
    done = await release(rest, switch["id"], first)

    assert (403, "role_required") == (demoted.status, demoted.json["code"])
    assert ("off", 1) == (done.json["state"], len(done.json["releases"]))


async def test_a_machine_throws_the_switch_and_never_releases_it(rest: Rest) -> None:
    switch = (await throw(rest, "tenant")).json
    answer = await release(rest, switch["id"], None)

    assert (403, "human_required") == (answer.status, answer.json["code"])
    assert "on" == (await rest.get(f"{KILL}/{switch['id']}")).json["state"]


async def test_a_sign_in_of_long_ago_does_not_release(rest: Rest) -> None:
    person = await browser(rest)
    switch = (await throw(rest, "tenant")).json
    rest.clock.advance(301)
    stale = await release(rest, switch["id"], person)
    assert (403, "step_up_required") == (stale.status, stale.json["code"])

    done = await release(rest, switch["id"], await browser(rest))
    assert "off" == done.json["state"]


async def test_only_admins_throw_and_everybody_sees(rest: Rest) -> None:
    author, viewer = await key_of(rest, "policy_author"), await key_of(rest, "viewer")
    refused = await throw(rest, "tenant", key=author)
    for scope, subject in (("class", "default"), ("tenant", "")):
        await throw(rest, scope, subject)
        rest.clock.advance(1)
    pages = [await rest.get(f"{KILL}?page_size=1", key=viewer)]
    token = pages[0].json["next_page_token"]
    pages.append(await rest.get(f"{KILL}?page_size=1&page_token={token}", key=viewer))

    assert 403 == refused.status
    assert ["tenant", "class"] == [page.json["items"][0]["scope"] for page in pages]
    assert "" == pages[1].json["next_page_token"]


async def test_a_released_switch_can_be_thrown_anew(rest: Rest) -> None:
    first = (await throw(rest, "tenant")).json
    await release(rest, first["id"], await browser(rest))
    second = await throw(rest, "tenant")

    assert 201 == second.status
    assert first["id"] != second.json["id"]


# --- Restrictions -------------------------------------------------------------------------------


def until(rest: Rest, days: float) -> str:
    at = datetime.fromtimestamp(rest.clock.now_ns() / 1e9, UTC) + timedelta(days=days)
    return at.isoformat()


async def restrict(rest: Rest, agent: str, days: float = 1, **more: Any) -> Answered:
    key = more.pop("key", "")
    body = {"profile": "read_only", "until": until(rest, days), "reason": WHY, **more}
    return await rest.post(f"/api/v1/agents/{agent}:restrict", body, key=key)


async def test_a_restricted_agent_is_so_in_the_next_bundle_until_it_is_lifted(rest: Rest) -> None:
    plan(rest)
    agent = (await rest.add_agent())["id"]
    before = await next_state(rest)
    answer = await restrict(
        rest, agent, profile="custom", tools=["time/*"], resources=["/srv"], rate_factor=0.5,
        max_arg_bytes=100,
    )  # fmt: skip
    held = await next_state(rest)
    lifted = await rest.post(f"/api/v1/agents/{agent}:unrestrict", {"reason": WHY})
    after = await next_state(rest)

    assert (200, 0.5, None) == (
        answer.status, answer.json["rate_factor"], answer.json["session_id"]
    )  # fmt: skip
    assert {
        "profile": "custom",
        "until_s": rest.clock.now_ns() // 10**9 + 86_400,
        "tools": ["time/*"],
        "resources": ["/srv"],
        "max_arg_bytes": 100,
        "rate_factor_milli": 500,
    } == held["agents"][agent]["restriction"]
    assert 204 == lifted.status
    assert before["agents"] == after["agents"]
    assert before["policy_revision"] == held["policy_revision"]


async def test_a_session_is_restricted_beside_its_agent(rest: Rest) -> None:
    plan(rest)
    agent, other = await rest.add_agent("one"), await rest.add_agent("two")
    token = await rest.token(client_id=agent["client_id"], client_secret=agent["client_secret"])
    session = token.json["session_id"]
    answer = await restrict(rest, agent["id"], session=session)
    strange = await restrict(rest, other["id"], session=session)
    state = await next_state(rest)
    shown = (await rest.get(f"/api/v1/agents/{agent['id']}/restrictions")).json["items"]

    assert (200, session) == (answer.status, answer.json["session_id"])
    assert [{"pointer": "/session", "code": "unknown"}] == strange.json["errors"]
    assert [session] == list(state["restricted_sessions"])
    assert state["agents"][agent["id"]]["restriction"] is None
    assert [session] == [one["session_id"] for one in shown]
    rest.clock.advance(9 * 3600)  # nobody can have a token of it any more
    assert {} == (await next_state(rest))["restricted_sessions"]


async def test_a_restriction_ends_by_itself_and_a_wind_down_goes_on(rest: Rest) -> None:
    plan(rest)
    one, two = (await rest.add_agent("one"))["id"], (await rest.add_agent("two"))["id"]
    await restrict(rest, one)
    await restrict(rest, two, profile="wind_down")
    rest.clock.advance(86_401)
    agents = (await next_state(rest))["agents"]
    shown = (await rest.get(f"/api/v1/agents/{one}/restrictions")).json["items"]

    assert agents[one]["restriction"] is None
    assert "wind_down" == agents[two]["restriction"]["profile"]
    assert [] == shown


NO_RESTRICTIONS: list[tuple[float, dict[str, Any], str]] = [
    (0, {}, "/until"),
    (30.1, {}, "/until"),
    (1, {"until": "2026-01-01T00:00:00"}, "/until"),
    (1, {"profile": "custom"}, "/profile"),
    (1, {"profile": "none"}, "/profile"),
    (1, {"tools": ["no-server"]}, "/tools/0"),
    (1, {"rate_factor": 0}, "/rate_factor"),
    (1, {"rate_factor": 1.5}, "/rate_factor"),
    (1, {"max_arg_bytes": -1}, "/max_arg_bytes"),
    (1, {"reason": "short"}, "/reason"),
    (1, {"session": str(uuid4())}, "/session"),
]


async def test_what_cannot_be_a_restriction_is_refused_by_pointer(rest: Rest) -> None:
    agent = (await rest.add_agent())["id"]
    for days, more, pointer in NO_RESTRICTIONS:
        answer = await restrict(rest, agent, days, **more)
        assert (422, pointer) == (answer.status, answer.json["errors"][0]["pointer"])
    shown = await rest.get(f"/api/v1/agents/{agent}/restrictions")

    assert [] == shown.json["items"]


async def test_analysts_tighten_and_admins_loosen(rest: Rest) -> None:
    analyst, viewer = await key_of(rest, "analyst"), await key_of(rest, "viewer")
    agent = (await rest.add_agent())["id"]
    path = f"/api/v1/agents/{agent}:unrestrict"
    answers = [
        await restrict(rest, agent, key=viewer),
        await restrict(rest, agent, 2, key=analyst),
        await restrict(rest, agent, 3, key=analyst),
        await restrict(rest, agent, 1, key=analyst),  # ends earlier
        await rest.post(path, {"reason": WHY}, key=analyst),
        await restrict(rest, agent, 1),
        await rest.post(path, {"reason": WHY}),
        await rest.post(path, {"reason": WHY}),
    ]

    assert [403, 200, 200, 403, 403, 200, 204, 404] == [answer.status for answer in answers]
    assert "admin" == answers[3].json["required_role"]
    kinds = [r for r in await rest.records() if r["type"].startswith("admin.agent.")]
    assert ["created", "restricted", "restricted", "restricted", "unrestricted"] == [
        record["type"].rpartition(".")[2] for record in kinds
    ]


async def test_a_restriction_that_has_ended_binds_no_analyst(rest: Rest) -> None:
    analyst = await key_of(rest, "analyst")
    agent = (await rest.add_agent())["id"]
    await restrict(rest, agent, profile="investigation")
    rest.clock.advance(86_401)

    assert 200 == (await restrict(rest, agent, key=analyst)).status


async def test_a_revoked_agent_is_not_restricted_any_more(rest: Rest) -> None:
    agent = (await rest.add_agent())["id"]
    await rest.post(f"/api/v1/agents/{agent}:revoke")

    assert 409 == (await restrict(rest, agent)).status


# --- Two tenants --------------------------------------------------------------------------------


async def test_one_tenants_stops_do_not_exist_for_the_other(rest: Rest, other_key: str) -> None:
    agent = (await rest.add_agent())["id"]
    await rest.add_server("time")
    switch = (await throw(rest, "tenant")).json["id"]
    await restrict(rest, agent)
    for scope, subject in (("agent", agent), ("server", "time")):
        assert 422 == (await throw(rest, scope, subject, key=other_key)).status
    theirs = await throw(rest, "tenant", key=other_key)
    told = [tenant for tenant, _ in stops_told(rest)]

    assert 201 == theirs.status
    assert (rest.running.tenant.id, 2) == (told[0], len(set(told)))
    assert [theirs.json["id"]] == [
        one["id"] for one in (await rest.get(KILL, key=other_key)).json["items"]
    ]
    assert 404 == (await rest.get(f"{KILL}/{switch}", key=other_key)).status
    assert 404 == (await restrict(rest, agent, key=other_key)).status
    path = f"/api/v1/agents/{agent}"
    assert 404 == (await rest.get(f"{path}/restrictions", key=other_key)).status
    lifted = await rest.post(f"{path}:unrestrict", {"reason": WHY}, key=other_key)
    assert 404 == lifted.status
