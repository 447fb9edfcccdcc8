"""What every route is walked beside (test_two_tenants.py): a tenant that has of everything. Here:
that such a walk would find what is seen.
"""

from __future__ import annotations

from typing import Final
from uuid import uuid4

import pytest

from tests.integration.control.samples import LISTS, SAMPLES, World
from tests.integration.control.second_tenant import MARK, Neighbour, moved_in
from tests.integration.control.test_every_route import send, world
from tests.integration.control.test_problems import operations

__all__ = ["world"]

pytestmark = pytest.mark.needs_regorus

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


async def one_of_everything(world: World) -> Neighbour:
    """Each POST is done once, each list has a row; then the second tenant gets the same."""
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
    """The twin: without row-level security on one table the walk above would not pass."""
    await world.agent()
    there = await moved_in(world.admin, world.rest.running.tenant.id)
    assert MARK not in (await world.rest.get("/api/v1/agents")).body.decode()
    await world.admin.execute("ALTER TABLE control.agents DISABLE ROW LEVEL SECURITY")
    told = (await world.rest.get("/api/v1/agents")).body.decode()

    assert MARK in told
    assert [one for one in there.ids["agents"] if one in told]
