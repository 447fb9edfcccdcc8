"""Whoever runs the installation goes into tenants by name, with a reason, on record; nobody else
sees that there is another one.
"""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from services.common.postgres.pool import open_pool, tenant_tx
from tests.integration.control.conftest import Rest
from tests.integration.control.escalated import signed_in
from tests.integration.control.neighbour import SLUG as NEIGHBOUR
from tests.integration.control.people import TENANTS, WHY, entitle, operator
from tests.integration.control.test_problems import GONE, check
from tests.promises import promise


async def made(rest: Rest, token: str, slug: str = "other") -> str:
    answer = await rest.post(TENANTS, {"slug": slug, "name": "Other"}, key=token)
    assert 201 == answer.status, answer.body
    return str(answer.json["id"])


async def accesses(rest: Rest, tenant: str) -> list[dict[str, Any]]:
    return [
        record
        for record in await rest.records()
        if record["type"] == "admin.superadmin.access" and record["tenant"] == tenant
    ]


async def test_tenants_are_made_listed_suspended_and_resumed(rest: Rest) -> None:
    boss = await operator(rest)
    tenant = await made(rest, boss.token)
    every = await rest.get(TENANTS, key=boss.token, sees_neighbour=True)
    assert {"default", "other", NEIGHBOUR} == {one["slug"] for one in every.json["items"]}
    agents = f"{TENANTS}/{tenant}/agents"
    assert 201 == (await rest.post(agents, {"name": "one"}, key=boss.token, headers=WHY)).status
    suspended = await rest.post(f"{TENANTS}/{tenant}:suspend", key=boss.token, headers=WHY)
    assert "suspended" == suspended.json["status"]
    resumed = await rest.post(f"{TENANTS}/{tenant}:resume", key=boss.token, headers=WHY)

    assert "active" == resumed.json["status"]
    own = rest.running.tenant.id
    mine = await rest.post(f"{TENANTS}/{own}:suspend", key=boss.token, headers=WHY)
    check(mine, 409, "conflict")


@promise("tenancy:super-admin-on-record")
async def test_each_request_inside_a_tenant_leaves_one_record_there_with_its_reason(
    rest: Rest,
) -> None:
    boss = await operator(rest)
    tenant = await made(rest, boss.token)
    paths = ["agents", "servers", "policies", "api-keys", "roles"]
    for path in paths:
        answer = await rest.get(f"{TENANTS}/{tenant}/{path}", key=boss.token, headers=WHY)
        assert (200, []) == (answer.status, answer.json["items"]), path
    found = await accesses(rest, tenant)

    assert [f"GET /api/v1/{path}" for path in paths] == [one["route"] for one in found]
    assert {WHY["x-behavry-reason"]} == {one["reason"] for one in found}
    assert {boss.id} == {one["actor"]["id"] for one in found}


@promise("tenancy:super-admin-on-record")
@pytest.mark.parametrize("reason", [None, "", "short", "x" * 501, " " * 20])
async def test_without_a_reason_nothing_is_done_and_nothing_read(
    rest: Rest, reason: str | None
) -> None:
    boss = await operator(rest)
    tenant = await made(rest, boss.token)
    headers = {} if reason is None else {"x-behavry-reason": reason}
    for path in (f"{TENANTS}/{tenant}", f"{TENANTS}/{tenant}/agents"):
        check(await rest.get(path, key=boss.token, headers=headers), 400, "reason_required")

    assert [] == await accesses(rest, tenant)


@promise("tenancy:others-are-not-found")
async def test_for_everybody_else_another_tenant_is_not_there(rest: Rest, other_key: str) -> None:
    boss = await operator(rest)
    tenant = await made(rest, boss.token)
    for path in (f"{TENANTS}/{tenant}", f"{TENANTS}/{tenant}/agents", f"{TENANTS}/{GONE}"):
        check(await rest.get(path, headers=WHY), 404, "not_found")
        check(await rest.get(path, headers=WHY, key=other_key), 404, "not_found")
        check(await rest.get(path, key=None), 401, "unauthenticated")
    own = rest.running.tenant.id
    for path in (TENANTS, f"{TENANTS}/{own}", f"{TENANTS}/{own}/agents"):
        answer = await rest.get(path, headers=WHY)
        check(answer, 403, "role_required")
        assert "super_admin" == answer.json["required_role"]
    gone = await rest.get(f"{TENANTS}/{GONE}/agents", headers=WHY, key=boss.token)
    check(gone, 404, "not_found")


async def test_inside_a_tenant_nobody_from_elsewhere_is_one_of_its_people(rest: Rest) -> None:
    boss = await operator(rest)
    tenant = await made(rest, boss.token)
    entitle(rest, tenant)
    escalation = f"{TENANTS}/{tenant}/escalations/{GONE}:approve"
    headers = WHY | {"idempotency-key": "k"}
    check(await rest.post(escalation, {}, key=boss.token, headers=headers), 403, "human_required")
    lasting = f"{TENANTS}/{tenant}/api-keys"
    key = {"name": "mine", "role": "viewer"}
    check(await rest.post(lasting, key, key=boss.token, headers=WHY), 403, "human_required")
    for path in ("me", "me/sessions", "auth/login"):
        check(
            await rest.get(f"{TENANTS}/{tenant}/{path}", key=boss.token, headers=WHY),
            404,
            "not_found",
        )
    body = {"email": "first@example.org", "role": "admin"}
    invite = await rest.post(f"{TENANTS}/{tenant}/invites", body, key=boss.token, headers=headers)
    said = {"token": invite.json["token"], "password": "twelve letters"}
    assert 201 == (await rest.post("/api/v1/invites:accept", said, key=None)).status
    first = await signed_in(rest, "first@example.org", "twelve letters")
    me = (await rest.get("/api/v1/me", key=first.token)).json

    assert (tenant, "admin") == (me["tenant"]["id"], me["role"])


@promise("people:super-admin-by-the-host")
async def test_no_statement_of_controls_makes_a_super_admin(rest: Rest) -> None:
    tenant = rest.running.tenant.id
    async with open_pool(rest.database.dsn("behavry_control")) as pool:
        for statement in (
            "UPDATE control.users SET is_super_admin = true",
            (
                "INSERT INTO control.users (id, tenant_id, username, role, status, created_at,"
                " is_super_admin) VALUES (gen_random_uuid(), current_setting('behavry.tenant_id')"
                "::uuid, 'x', 'viewer', 'active', now(), true)"
            ),
            "DELETE FROM control.users",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with tenant_tx(pool, tenant) as connection:
                    await connection.execute(statement)
