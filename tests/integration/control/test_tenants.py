"""Two tenants side by side: neither sees, changes or guesses anything of the other."""

from typing import Any

import asyncpg
import pytest

from services.common.ids import ServerSlug
from services.common.postgres.pool import open_pool
from services.control.store import agents, people, servers
from tests.integration.control.conftest import Rest
from tests.promises import promise

HASH = "sha256:" + "a" * 64


@promise("tenancy:others-are-not-found")
async def test_one_tenants_resources_do_not_exist_for_the_other(rest: Rest, other_key: str) -> None:
    await rest.add_role("r", "time:read")
    agent, server = await rest.add_agent("one"), await rest.add_server("time")
    tenant = rest.running.tenant.id
    await rest.running.tool_inbox.tools_seen(tenant, ServerSlug("time"), [("now", HASH, b"{}")])
    own_key = (await rest.get("/api/v1/api-keys")).json["items"][0]["id"]
    calls: list[tuple[str, str, Any]] = [
        ("GET", f"agents/{agent['id']}", None),
        ("POST", f"agents/{agent['id']}:suspend", {}),
        ("POST", f"agents/{agent['id']}:rotate", {}),
        ("DELETE", f"agents/{agent['id']}/secrets/{agent['secret_id']}", None),
        ("GET", "roles/r", None),
        ("GET", "servers/time", None),
        ("GET", f"servers/{server['id']}", None),
        ("PATCH", "servers/time", {"trust": "trusted"}),
        ("DELETE", "servers/time", None),
        ("GET", "servers/time/tools", None),
        ("PUT", f"servers/{server['id']}/tools/now", {"action": "read"}),
        ("DELETE", f"api-keys/{own_key}", None),
    ]
    for method, path, body in calls:
        answer = await rest.call(method, f"/api/v1/{path}", body, key=other_key)
        assert (404, "not_found") == (answer.status, answer.json["code"]), (method, path)

    for path in ("agents", "roles", "servers"):
        assert [] == (await rest.get(f"/api/v1/{path}", key=other_key)).json["items"], path
        assert 1 == len((await rest.get(f"/api/v1/{path}")).json["items"]), path


async def test_the_same_names_may_be_used_by_both(rest: Rest, other_key: str) -> None:
    await rest.add_agent("one")
    await rest.add_server("time")
    body = {"slug": "time", "transport": "stdio", "stdio": "time"}

    assert 201 == (await rest.post("/api/v1/agents", {"name": "one"}, key=other_key)).status
    assert 201 == (await rest.post("/api/v1/servers", body, key=other_key)).status


async def test_a_page_token_does_not_travel(rest: Rest, other_key: str) -> None:
    for n in range(2):
        await rest.add_agent(f"agent-{n}")
    token = (await rest.get("/api/v1/agents?page_size=1")).json["next_page_token"]
    answer = await rest.get(f"/api/v1/agents?page_token={token}", key=other_key)

    assert (400, "invalid_page_token") == (answer.status, answer.json["code"])


async def test_another_tenants_role_cannot_be_given(rest: Rest, other_key: str) -> None:
    await rest.add_role("r", "time:read")
    answer = await rest.post("/api/v1/agents", {"name": "x", "roles": ["r"]}, key=other_key)

    assert 422 == answer.status


async def test_a_suspended_tenant_is_let_in_nowhere(rest: Rest) -> None:
    agent = await rest.add_agent("one")
    connection = await asyncpg.connect(rest.database.admin_dsn)
    await connection.execute(
        "UPDATE control.tenants SET status = 'suspended' WHERE id = $1", rest.running.tenant.id
    )
    await connection.close()
    token = await rest.token(client_id=agent["id"], client_secret=agent["client_secret"])

    assert 401 == (await rest.get("/api/v1/me")).status
    assert (401, "invalid_client") == (token.status, token.json["error"])


async def test_the_services_role_finds_credentials_by_exact_key_and_nothing_else(
    rest: Rest,
) -> None:
    agent = await rest.add_agent("one")
    async with (
        open_pool(rest.database.dsn("behavry_control")) as pool,
        pool.acquire() as connection,
    ):
        assert 0 == await connection.fetchval("SELECT count(*) FROM control.agents")
        assert 0 == await connection.fetchval("SELECT count(*) FROM control.users")
        assert await agents.candidate(connection, agent["id"]) is not None
        assert await people.find_account(connection, "admin") is not None
        assert await people.find_account(connection, "%") is None
        assert await servers.get(connection, "time") is None
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("SET ROLE behavry_control_owner")
