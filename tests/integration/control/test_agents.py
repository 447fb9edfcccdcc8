"""Agents from their registration to their end."""

import json
from typing import Any

import asyncpg

from tests.altered import altered
from tests.integration.control.conftest import Rest
from tests.promises import promise

GONE = "00000000-0000-7000-8000-000000000000"


def revoked(rest: Rest) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """(tenant, agents, sessions) of each signal: no bundle is built here, so none is settled."""
    signals = rest.running.control.signals.pending()
    return [(signal.tenant, signal.agents, signal.sessions) for signal in signals]


async def get_token(rest: Rest, agent: dict[str, Any], **form: str) -> Any:
    return await rest.token(
        client_id=agent["client_id"], client_secret=agent["client_secret"], **form
    )


async def everything_stored(rest: Rest) -> str:
    """All rows of control's schema as text."""
    connection = await asyncpg.connect(rest.database.admin_dsn)
    try:
        names = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'control'"
        )
        rows = [await connection.fetch(f"SELECT * FROM control.{n['tablename']}") for n in names]
        drafts = await connection.fetch("SELECT draft FROM control.outbox")
    finally:
        await connection.close()
    return str(rows) + "".join(d["draft"].decode() for d in drafts)


@promise("agents:secret-told-once")
async def test_an_agents_secret_is_told_once_and_kept_as_a_hash(rest: Rest, capsys: Any) -> None:
    made = await rest.add_agent("worker-1", type="worker")
    seen = await rest.get(f"/api/v1/agents/{made['id']}")
    await get_token(rest, made)

    assert made["id"] == made["client_id"]
    assert 43 == len(made["client_secret"])
    assert "client_secret" not in seen.json
    assert [made["secret_id"]] == [secret["id"] for secret in seen.json["secrets"]]
    assert made["client_secret"] not in await everything_stored(rest)
    assert made["client_secret"] not in capsys.readouterr().out


async def test_making_an_agent_is_recorded_and_planes_hear_of_it(rest: Rest) -> None:
    before = rest.running.control.signals.changes
    made = await rest.add_agent("one")

    [record] = [r for r in await rest.records() if r["type"] == "admin.agent.created"]
    assert made["id"] == record["resource_id"]
    assert "api_key" == record["actor"]["kind"]
    assert {"field": "client_secret", "new": "set"} in record["changes"]
    assert before + 1 == rest.running.control.signals.changes


async def test_a_name_is_used_once(rest: Rest) -> None:
    await rest.add_agent("one")
    answer = await rest.post("/api/v1/agents", {"name": "one"})

    assert (409, "conflict") == (answer.status, answer.json["code"])


async def test_unknown_roles_and_classes_are_refused_by_pointer(rest: Rest) -> None:
    await rest.add_role("known", "time:read")
    roles = await rest.post("/api/v1/agents", {"name": "a", "roles": ["known", "not-known"]})
    class_ = await rest.post("/api/v1/agents", {"name": "a", "class": "no-such"})

    assert [{"pointer": "/roles/1", "code": "unknown"}] == roles.json["errors"]
    assert [{"pointer": "/class", "code": "unknown"}] == class_.json["errors"]
    assert "not-known" not in roles.body.decode()


@promise("agents:revocation-is-told")
async def test_suspending_ends_sessions_and_tells_the_planes(rest: Rest) -> None:
    agent = await rest.add_agent()
    session = (await get_token(rest, agent)).json["session_id"]
    before = rest.running.control.signals.changes
    answer = await rest.post(f"/api/v1/agents/{agent['id']}:suspend")

    assert (200, "suspended") == (answer.status, answer.json["status"])
    assert [(rest.running.tenant.id, (agent["id"],), ())] == revoked(rest)
    assert rest.running.control.signals.changes > before
    refused = await get_token(rest, agent)
    assert (403, "agent_suspended") == (refused.status, refused.json["error"])

    assert 200 == (await rest.post(f"/api/v1/agents/{agent['id']}:resume")).status
    assert 1 == len(revoked(rest))
    assert 200 == (await get_token(rest, agent)).status
    assert 400 == (await get_token(rest, agent, session=session)).status


async def test_revoking_is_final(rest: Rest) -> None:
    agent = await rest.add_agent()
    assert 200 == (await rest.post(f"/api/v1/agents/{agent['id']}:revoke")).status

    assert [(agent["id"],)] == [agents for _, agents, _ in revoked(rest)]
    answer = await get_token(rest, agent)
    assert (401, "invalid_client") == (answer.status, answer.json["error"])
    for verb in ("resume", "suspend", "rotate"):
        assert 409 == (await rest.post(f"/api/v1/agents/{agent['id']}:{verb}")).status


async def test_a_new_secret_leaves_the_older_one_a_week(rest: Rest) -> None:
    agent = await rest.add_agent()
    new = (await rest.post(f"/api/v1/agents/{agent['id']}:rotate")).json
    both = [agent, {**agent, **new}]
    assert [200, 200] == [(await get_token(rest, one)).status for one in both]
    third = await rest.post(f"/api/v1/agents/{agent['id']}:rotate")
    assert (409, "conflict") == (third.status, third.json["code"])

    rest.clock.advance(7 * 24 * 3600 + 1)
    assert [401, 200] == [(await get_token(rest, one)).status for one in both]
    assert 201 == (await rest.post(f"/api/v1/agents/{agent['id']}:rotate")).status


@promise("agents:revocation-is-told")
async def test_deleting_a_secret_ends_its_sessions_and_no_others(rest: Rest) -> None:
    agent = await rest.add_agent()
    new = (await rest.post(f"/api/v1/agents/{agent['id']}:rotate")).json
    old_session = (await get_token(rest, agent)).json["session_id"]
    new_session = (await get_token(rest, {**agent, **new})).json["session_id"]
    before = rest.running.control.signals.changes
    path = f"/api/v1/agents/{agent['id']}/secrets/{agent['secret_id']}"
    assert 204 == (await rest.call("DELETE", path)).status

    assert [(rest.running.tenant.id, (), (old_session,))] == revoked(rest)
    assert rest.running.control.signals.changes > before
    assert 401 == (await get_token(rest, agent)).status
    assert 200 == (await get_token(rest, {**agent, **new}, session=new_session)).status
    assert 404 == (await rest.call("DELETE", path)).status


async def test_agents_are_listed_page_by_page(rest: Rest) -> None:
    made = [(await rest.add_agent(f"agent-{n}"))["id"] for n in range(5)]
    seen, token = [], ""
    while True:
        page = (await rest.get(f"/api/v1/agents?page_size=2&page_token={token}")).json
        seen += [agent["id"] for agent in page["items"]]
        token = page["next_page_token"]
        if not token:
            break

    assert sorted(made) == seen


async def test_a_page_token_fits_its_own_list_alone(rest: Rest) -> None:
    for n in range(3):
        await rest.add_agent(f"agent-{n}")
        await rest.add_role(f"role-{n}", "time:read")
    token = (await rest.get("/api/v1/roles?page_size=1")).json["next_page_token"]
    tampered = altered(token, -2)

    assert 200 == (await rest.get(f"/api/v1/roles?page_token={token}")).status
    for path in (f"agents?page_token={token}", f"roles?page_token={tampered}",
                 "roles?page_token=%00", "roles?page_token=x"):  # fmt: skip
        answer = await rest.get(f"/api/v1/{path}")
        assert (400, "invalid_page_token") == (answer.status, answer.json["code"]), path


async def test_an_unknown_agent_is_not_found_by_any_route(rest: Rest) -> None:
    answers = [
        await rest.get(f"/api/v1/agents/{GONE}"),
        await rest.post(f"/api/v1/agents/{GONE}:suspend"),
        await rest.post(f"/api/v1/agents/{GONE}:rotate"),
        await rest.call("DELETE", f"/api/v1/agents/{GONE}/secrets/{GONE}"),
    ]

    assert [404] * 4 == [answer.status for answer in answers]


async def test_enrolment_makes_one_agent_and_no_more(rest: Rest) -> None:
    await rest.add_role("time:read", "time:read")
    body = {"label": "laptops", "roles": ["time:read"]}
    token = (await rest.post("/api/v1/enrollment-tokens", body)).json["token"]
    made = await rest.post("/api/v1/enroll", {"token": token, "name": "laptop"}, key=None)
    again = await rest.post("/api/v1/enroll", {"token": token, "name": "other"}, key=None)
    unknown = await rest.post("/api/v1/enroll", {"token": "bhv_enr_x", "name": "other"}, key=None)

    assert token.startswith("bhv_enr_")
    assert (201, ["time:read"]) == (made.status, made.json["roles"])
    assert 200 == (await get_token(rest, made.json)).status
    assert [(401, "enrollment_invalid")] * 2 == [
        (answer.status, answer.json["code"]) for answer in (again, unknown)
    ]
    assert token not in await everything_stored(rest)


async def test_an_enrolment_token_expires_and_a_taken_name_does_not_use_it_up(rest: Rest) -> None:
    await rest.add_agent("taken")
    body = {"label": "x", "ttl": 3600}
    token = (await rest.post("/api/v1/enrollment-tokens", body)).json["token"]
    conflict = await rest.post("/api/v1/enroll", {"token": token, "name": "taken"}, key=None)
    made = await rest.post("/api/v1/enroll", {"token": token, "name": "free"}, key=None)
    assert [409, 201] == [conflict.status, made.status]

    late = (await rest.post("/api/v1/enrollment-tokens", body)).json["token"]
    rest.clock.advance(3601)
    answer = await rest.post("/api/v1/enroll", {"token": late, "name": "late"}, key=None)
    assert 401 == answer.status


async def test_a_role_is_replaced_as_a_whole_and_its_change_is_recorded(rest: Rest) -> None:
    await rest.add_role("dev", "git:read")
    tag = (await rest.get("/api/v1/roles/dev")).headers["etag"]
    changed = await rest.put(
        "/api/v1/roles/dev", {"permissions": ["git:read", "git:*"]}, headers={"if-match": tag}
    )
    stale = await rest.put("/api/v1/roles/dev", {"permissions": []}, headers={"if-match": tag})

    assert ["git:read", "git:*"] == changed.json["permissions"]
    assert (412, "stale_revision") == (stale.status, stale.json["code"])
    assert changed.headers["etag"] == stale.headers["etag"]
    last = [r for r in await rest.records() if r["type"].startswith("admin.role.")][-1]
    assert [{"field": "permissions", "old": ["git:read"], "new": ["git:read", "git:*"]}] == (
        last["changes"]
    )
    assert "dev" not in json.dumps((await rest.get("/api/v1/roles/other")).json)
