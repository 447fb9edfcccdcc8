"""Control beside the real entitlements and audit services: plans, traces, heads, verification, and
control's own records in the chain.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from services.audit import app as audit
from services.audit.settings import AuditSettings
from services.common.clock import SystemClock
from services.common.settings import load
from services.control import app
from services.control.settings import ControlSettings
from services.entitlements import app as entitlements
from services.entitlements.settings import EntitlementsSettings
from tests.fakes.asking import ask_until
from tests.fakes.clock import ManualClock
from tests.fakes.postgres import Database
from tests.integration.control.conftest import PUBLIC, Rest


@pytest.fixture
async def whole(state: Path, database: Database) -> AsyncIterator[Rest]:
    """Control with both of its neighbours."""
    common = {
        "BEHAVRY_STATE_DIR": str(state),
        "BEHAVRY_ENV": "development",
        "BEHAVRY_CONTROL_HTTP_LISTEN": "127.0.0.1:0",
        "BEHAVRY_CONTROL_PUBLIC_URL": PUBLIC,
        "BEHAVRY_CONTROL_DB_URL": database.dsn("behavry_control"),
        "BEHAVRY_ENTITLEMENTS_DB_URL": database.dsn("behavry_entitlements"),
        "BEHAVRY_AUDIT_WRITER_DB_URL": database.dsn("behavry_audit_writer"),
        "BEHAVRY_AUDIT_READER_DB_URL": database.dsn("behavry_audit_reader"),
    }
    settings = load(ControlSettings, common)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(audit.running(load(AuditSettings, common)))
        await stack.enter_async_context(entitlements.running(load(EntitlementsSettings, common)))
        running = await stack.enter_async_context(app.running(settings, clock=SystemClock()))
        http = await stack.enter_async_context(
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        )
        yield Rest(
            base=f"http://{running.http_address}",
            key=settings.admin_api_key_file.read_text().strip(),
            clock=ManualClock(),
            running=running,
            database=database,
            state=state,
            http=http,
        )


async def test_the_first_tenant_gets_the_trial_plan(whole: Rest) -> None:
    answer = await ask_until(lambda: whole.get("/api/v1/license"), lambda a: a.status == 200)

    assert ("trial", False) == (answer.json["plan"], answer.json["stale"])
    modes = {feature["key"]: feature["mode"] for feature in answer.json["features"]}
    assert 17 == len(modes)
    assert ("on", "off") == (modes["community_library"], modes["saml_sso"])


async def test_the_catalogue_is_served_with_its_tag(whole: Rest) -> None:
    first = await whole.get("/api/v1/plan-features")
    again = await whole.get(
        "/api/v1/plan-features", headers={"if-none-match": first.headers["etag"]}
    )

    assert (200, 17, 304) == (first.status, len(first.json["features"]), again.status)


async def test_what_an_admin_did_is_in_the_chain_and_the_chain_verifies(whole: Rest) -> None:
    made = await whole.add_agent("one")
    heads = await ask_until(
        lambda: whole.get("/api/v1/audit/heads"),
        lambda a: any(head["chain"] == "admin" for head in a.json["items"]),
    )
    [admin] = [head for head in heads.json["items"] if head["chain"] == "admin"]
    assert admin["position"] >= 1

    started = await whole.post("/api/v1/audit/verify", {})
    assert 202 == started.status
    job = await ask_until(
        lambda: whole.get(started.headers["location"]), lambda a: a.json["state"] != "running"
    )
    assert ("succeeded", "ok") == (job.json["state"], job.json["result"]["verdict"])
    assert made["client_secret"] not in heads.body.decode() + job.body.decode()


async def test_a_verification_is_started_once_per_key(whole: Rest) -> None:
    await whole.add_agent("one")
    await ask_until(lambda: whole.get("/api/v1/audit/heads"), lambda a: bool(a.json["items"]))
    key = {"idempotency-key": "k1"}
    answers = await asyncio.gather(
        *(whole.post("/api/v1/audit/verify", {}, headers=key) for _ in range(5))
    )
    again = await whole.post("/api/v1/audit/verify", {}, headers=key)
    other = await whole.post("/api/v1/audit/verify", {"chain": "admin"}, headers=key)
    connection = await asyncpg.connect(whole.database.admin_dsn)
    jobs = await connection.fetchval(
        "SELECT count(*) FROM control.jobs WHERE tenant_id = $1", whole.running.tenant.id
    )
    await connection.close()

    assert 1 == jobs
    assert {202} <= {a.status for a in answers} <= {202, 409}
    assert [again.json] * len([a for a in answers if a.status == 202]) == [
        a.json for a in answers if a.status == 202
    ]
    assert (422, "idempotency_mismatch") == (other.status, other.json["code"])


async def test_a_chain_that_is_none_is_refused(whole: Rest) -> None:
    answer = await whole.post("/api/v1/audit/verify", {"chain": "nonsense"})

    assert 400 == answer.status


async def test_a_trace_that_does_not_exist_is_not_found(whole: Rest) -> None:
    answer = await whole.get("/api/v1/traces/00000000-0000-7000-8000-000000000000")
    listed = await whole.get("/api/v1/traces")

    assert (404, "not_found") == (answer.status, answer.json["code"])
    assert {"items": [], "next_page_token": ""} == listed.json


async def test_a_filter_is_checked_and_not_told_back(whole: Rest) -> None:
    answer = await whole.get("/api/v1/traces?filter=planted-7f3a91:1")

    assert (400, "invalid_filter") == (answer.status, answer.json["code"])
    assert "planted" not in answer.body.decode()


async def test_without_its_neighbours_control_says_so_and_goes_on(rest: Rest) -> None:
    for path in ("license", "plan-features", "traces", "audit/heads"):
        answer = await rest.get(f"/api/v1/{path}")
        assert (503, "dependency_unavailable") == (answer.status, answer.json["code"]), path

    await rest.add_agent("one")
    assert 204 == (await rest.get("/readyz", key=None)).status
