"""Beside every test of control stands a second tenant (neighbour.py): here, that it has of
everything, and that each door through which tests look would find what is seen of it.

The walk of test_two_tenants.py has one more beside it, with what the routes themselves make.
"""

from __future__ import annotations

import asyncio
import smtplib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage
from typing import Any, Final
from uuid import uuid4

import asyncpg
import pytest

from services.common.postgres.connection import SingleConnection
from tests.integration.control import neighbour, neighbour_rows
from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.door import Door
from tests.integration.control.people import entitle
from tests.integration.control.planes import fetch, linked, plan, until_serial
from tests.integration.control.receivers import http_receiver, mail_receiver
from tests.integration.control.samples import LISTS, SAMPLES, World
from tests.integration.control.second_tenant import MARK, Neighbour, moved_in
from tests.integration.control.test_every_route import send, world
from tests.integration.control.test_problems import operations
from tests.promises import promise

__all__ = ["world"]

pytestmark = pytest.mark.needs_regorus

SHOWN: Final = "of another tenant"
#: Sent to whoever is told of the tenant, by what runs beside requests.
MOVING: Final = frozenset({"notification_deliveries", "notification_destinations"})
#: Of which table a path's parameter is.
OF: Final = {
    "agent_id": "agents", "secret_id": "agent_secrets", "switch_id": "kill_switches",
    "destination_id": "notification_destinations", "delivery_id": "notification_deliveries",
    "escalation_id": "escalations", "policy_id": "policies", "user_id": "users",
    "invite_id": "invites", "session_id": "user_sessions", "key_id": "api_keys",
    "factor_id": "user_factors", "job_id": "jobs",
}  # fmt: skip
#: What shows the rows of a table.
LISTED: Final = {
    "agents": "/api/v1/agents", "agent_roles": "/api/v1/roles", "api_keys": "/api/v1/api-keys",
    "escalations": "/api/v1/escalations", "invites": "/api/v1/invites",
    "kill_switches": "/api/v1/kill-switch", "policies": "/api/v1/policies",
    "notification_destinations": "/api/v1/settings/notifications", "servers": "/api/v1/servers",
    "users": "/api/v1/users",
}  # fmt: skip


async def one_of_everything(world: World) -> Neighbour:
    """Each POST is done once, each list has a row; then one more tenant gets the same."""
    for one in await operations(world.rest):
        if one.name in SAMPLES:
            sample = await SAMPLES[one.name](world)
            answer = await send(world, one, sample, str(uuid4()))
            assert answer.status < 300, (one.name, answer.body)
    for name, listed in LISTS.items():
        await listed.path(world)
        await listed.add(world, f"row-of-{name.replace('_', '-')}")
    return await moved_in(world.admin, world.rest.running.tenant.id)


async def test_what_would_be_seen_is_found(world: World) -> None:
    """The twin of the walk: without row-level security on one table it would not pass."""
    await world.agent()
    there = await moved_in(world.admin, world.rest.running.tenant.id)
    assert MARK not in (await world.rest.get("/api/v1/agents")).body.decode()
    async with open_to_all(world.admin, "agents"):
        shown = await world.rest.get("/api/v1/agents", sees_neighbour=True)
    told = shown.body.decode()

    assert MARK in told
    assert [one for one in there.ids["agents"] if one in told]


# What stands beside every test ----------------------------------------------------------------


@asynccontextmanager
async def open_to_all(admin: SingleConnection, *tables: str) -> AsyncIterator[None]:
    """As if somebody had forgotten the tenant."""
    for table in tables:
        await admin.execute(f"ALTER TABLE control.{table} DISABLE ROW LEVEL SECURITY")
    try:
        yield
    finally:
        for table in tables:
            await admin.execute(f"ALTER TABLE control.{table} ENABLE ROW LEVEL SECURITY")


@pytest.fixture
async def admin(rest: Rest) -> AsyncIterator[SingleConnection]:
    connection = await asyncpg.connect(rest.database.admin_dsn)
    yield connection
    await connection.close()


@promise("tenancy:others-are-not-found")
async def test_the_second_tenant_has_rows_in_every_table_that_has_tenants(
    admin: SingleConnection,
) -> None:
    every = await neighbour.tables(admin)
    counts = {
        table: await admin.fetchval(
            f"SELECT count(*) FROM control.{table} WHERE tenant_id = $1", neighbour.TENANT
        )
        for table in every
    }

    assert len(every) >= 30
    assert set(neighbour_rows.UNPLANTED) == {table for table, rows in counts.items() if not rows}
    assert {1, neighbour_rows.ROWS} >= {rows for rows in counts.values() if rows}


async def test_each_table_that_would_show_its_rows_is_found_out_at_either_door(
    rest: Rest, admin: SingleConnection
) -> None:
    entitle(rest, bundles=False)  # one that is built meanwhile would hold what is shown
    door, key = Door(rest), {"authorization": f"Bearer {rest.key}"}
    for table, path in LISTED.items():
        assert (200, 200) == (
            (await rest.get(path)).status,
            (await door.ask("GET", path, key)).status,
        )
        async with open_to_all(admin, table):
            with pytest.raises(AssertionError, match=SHOWN):
                await rest.get(path)
            with pytest.raises(AssertionError, match=SHOWN):
                await door.ask("GET", path, key)
            assert 200 == (await rest.get(path, sees_neighbour=True)).status, table


async def test_what_is_in_an_answers_head_is_found_too() -> None:
    for name in (neighbour.name_of("name"), neighbour.TENANT, neighbour.id_of("agents").upper()):
        bare: dict[str, Any] = {"status": 200, "headers": {}, "body": b"", "json": None}
        Answered(**bare).looked_at("nothing")
        for part in ({"headers": {"location": f"/{name}"}}, {"cookies": [name]}):
            with pytest.raises(AssertionError, match=SHOWN):
                Answered(**bare | part).looked_at("an answer")


async def test_a_bundle_that_holds_anothers_rows_is_found_out(
    rest: Rest, admin: SingleConnection
) -> None:
    """In the part of ours; in its own part they have their place."""
    plan(rest)
    await rest.add_role("r")
    await until_serial(rest, 1)
    assert 200 == (await fetch(rest)).status
    parts = (("agents",), ("agent_roles",), ("servers",), ("policies", "policy_versions"))
    for number, tables in enumerate(parts):
        async with open_to_all(admin, *tables):
            had = rest.running.control.signals.serial
            await rest.add_role(f"r-{number}")
            await until_serial(rest, had + 1)
            with pytest.raises(AssertionError, match=SHOWN):
                await fetch(rest)
    found = await neighbour.found(admin)
    await admin.execute("DELETE FROM control.bundles")
    with pytest.raises(AssertionError, match=SHOWN):
        neighbour.untouched(found, found)


async def test_a_decision_that_goes_down_the_link_is_found_out(
    rest: Rest, admin: SingleConnection
) -> None:
    due = "UPDATE control.escalation_decisions SET done_at = $2 WHERE tenant_id = $1"
    before = await neighbour.found(admin)
    done_at = await admin.fetchval(
        "SELECT done_at FROM control.escalation_decisions WHERE tenant_id = $1", neighbour.TENANT
    )
    await admin.execute(due, neighbour.TENANT, None)
    async with linked(rest) as plane:
        with pytest.raises(AssertionError, match=SHOWN):
            await plane.next("escalation_decision")
    changed = await neighbour.found(admin)
    await admin.execute(due, neighbour.TENANT, done_at)

    with pytest.raises(AssertionError, match=r"changed in \[.escalation_decisions"):
        neighbour.untouched(before, changed)
    neighbour.untouched(before, await neighbour.found(admin))


async def test_a_record_that_names_anothers_is_found_out(
    rest: Rest, admin: SingleConnection
) -> None:
    """What was done to somebody else's agent is in our chain, and the agent is not as it was."""
    agent, before = neighbour.id_of("agents"), await neighbour.found(admin)
    was = await admin.fetchrow("SELECT status, revision FROM control.agents WHERE id = $1", agent)
    assert was
    assert 404 == (await rest.post(f"/api/v1/agents/{agent}:suspend", sees_neighbour=True)).status
    await rest.records()
    async with open_to_all(admin, "agents", "agent_sessions"):
        await rest.post(f"/api/v1/agents/{agent}:suspend", sees_neighbour=True)
    with pytest.raises(AssertionError, match=SHOWN):
        await rest.records()
    after = await neighbour.found(admin)
    await admin.execute("DELETE FROM control.outbox WHERE tenant_id = $1", rest.running.tenant.id)
    await admin.execute(
        "UPDATE control.agents SET status = $2, revision = $3 WHERE id = $1", agent, *was.values()
    )
    await admin.execute(
        "UPDATE control.agent_sessions SET ended_at = NULL WHERE agent_id = $1", agent
    )

    assert {"outbox"} == set(after.shown)
    with pytest.raises(AssertionError, match=r"changed in .*'agents'"):
        neighbour.untouched(before, after)


async def test_what_is_sent_out_is_found_out(rest: Rest) -> None:
    told = neighbour.name_of("name")
    with pytest.raises(AssertionError, match=SHOWN):
        async with http_receiver() as receiver:
            await rest.http.post(receiver.url, data=told)
    letter = EmailMessage()
    letter["From"] = letter["To"] = "a@example.org"
    letter.set_content(f"Grüße, {told}", cte="base64")
    with pytest.raises(AssertionError, match=SHOWN):
        async with mail_receiver() as receiver:
            await asyncio.to_thread(sent, receiver.port, letter)


def sent(port: int, letter: EmailMessage) -> None:
    with smtplib.SMTP("127.0.0.1", port) as server:
        server.send_message(letter)
