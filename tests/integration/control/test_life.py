"""Control's own life: the second start, the lost key, the database that goes away, the end."""

import asyncio

import aiohttp
import asyncpg
import pytest
from fastapi import FastAPI

from services.common.supervisor import Supervisor
from services.common.telemetry.logging import get_log
from services.control import api_keys
from services.control.api import web
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


async def test_whoever_is_being_answered_holds_up_the_end_and_who_only_listens_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web, "DRAIN_S", 600)
    asked, stop, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    application = FastAPI()

    @application.get("/slow")
    async def slow() -> str:
        asked.set()
        await go_on.wait()
        return "done"

    async def serve(told: asyncio.Future[str]) -> None:
        async with (
            Supervisor(get_log("control")) as supervisor,
            web.serving(application, "127.0.0.1:0", supervisor) as address,
        ):
            told.set_result(address)
            await stop.wait()

    bound = asyncio.get_running_loop().create_future()
    async with (
        asyncio.timeout(60),
        aiohttp.ClientSession() as http,
        aiohttp.ClientSession() as listener,
        asyncio.TaskGroup() as group,
    ):
        serving = group.create_task(serve(bound))
        base = f"http://{await bound}"
        async with listener.get(f"{base}/nothing") as idle:  # its connection is kept
            assert 404 == idle.status
        answer = group.create_task(_answer(http, f"{base}/slow"))
        await asked.wait()
        stop.set()
        await ask_until(lambda: _refused(base), bool)
        assert not serving.done()
        assert not answer.done()
        go_on.set()

    assert '"done"' == answer.result()


async def _answer(http: aiohttp.ClientSession, url: str) -> str:
    async with http.get(url) as answer:
        return await answer.text()


async def _refused(base: str) -> bool:
    host, _, port = base.removeprefix("http://").partition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return True
    writer.close()
    return False
