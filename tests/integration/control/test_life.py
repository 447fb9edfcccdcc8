"""Control's own life: the second start, the lost key, the database that goes away."""

import asyncpg

from services.control import api_keys
from services.control.settings import ControlSettings
from tests.fakes.asking import ask_until
from tests.fakes.clock import ManualClock
from tests.fakes.postgres import Database
from tests.integration.control.conftest import Rest, opened
from tests.integration.control.test_sign_in import sign_in


async def test_a_second_start_changes_nothing(
    settings: ControlSettings, clock: ManualClock, control_database: Database
) -> None:
    async with opened(settings, clock, control_database) as rest:
        agent, tenant = await rest.add_agent("one"), rest.running.tenant.id
        jwks = (await rest.get("/.well-known/jwks.json", key=None)).json
    settings.admin_password_file.write_text("another password entirely")
    async with opened(settings, clock, control_database) as rest:
        assert tenant == rest.running.tenant.id
        assert jwks == (await rest.get("/.well-known/jwks.json", key=None)).json
        token = await rest.token(client_id=agent["id"], client_secret=agent["client_secret"])
        assert 200 == token.status
        assert 401 == (await sign_in(rest)).status


async def test_an_ended_key_stays_ended_and_a_new_file_lets_the_operator_in(
    settings: ControlSettings, clock: ManualClock, control_database: Database
) -> None:
    async with opened(settings, clock, control_database) as rest:
        [key] = (await rest.get("/api/v1/api-keys")).json["items"]
        assert 204 == (await rest.call("DELETE", f"/api/v1/api-keys/{key['id']}")).status
        assert 401 == (await rest.get("/api/v1/me")).status
    async with opened(settings, clock, control_database) as rest:
        assert 401 == (await rest.get("/api/v1/me")).status
    settings.admin_api_key_file.write_text(api_keys.new_key("local").text)
    async with opened(settings, clock, control_database) as rest:
        assert 200 == (await rest.get("/api/v1/me")).status


async def test_an_api_key_ends_with_its_time(rest: Rest) -> None:
    body = {"name": "short", "role": "viewer", "expires_in_days": 1}
    made = (await rest.post("/api/v1/api-keys", body)).json
    assert 200 == (await rest.get("/api/v1/me", key=made["key"])).status

    rest.clock.advance(24 * 3600)
    assert 401 == (await rest.get("/api/v1/me", key=made["key"])).status
    listed = (await rest.get("/api/v1/api-keys")).body.decode()
    assert made["id"] in listed
    assert made["key"] not in listed


async def test_cut_connections_to_the_database_heal(rest: Rest) -> None:
    connection = await asyncpg.connect(rest.database.admin_dsn)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()
    seen = set()

    async def ask() -> int:
        answer = await rest.get("/api/v1/agents")
        seen.add((answer.status, (answer.json or {}).get("code")))
        return answer.status

    assert 200 == await ask_until(ask, lambda status: status == 200)
    assert seen <= {(200, None), (503, "dependency_unavailable")}


async def test_a_text_that_is_no_text_is_refused_and_not_an_error(rest: Rest) -> None:
    for body in (b'{"name": "\\ud800"}', b'{"name": "a", "tags": ["\\udfff"]}'):
        answer = await rest.post(
            "/api/v1/agents", data=body, headers={"content-type": "application/json"}
        )
        assert answer.status in {400, 422}, answer.body
