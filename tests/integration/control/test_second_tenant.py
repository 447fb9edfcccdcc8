"""Beside a tenant that has of everything, every route: 0 rows of it seen, 0 changed, its ids as
unknown as any.
"""

from __future__ import annotations

from typing import Final
from uuid import uuid4

import pytest

from tests.integration.control.samples import LISTS, SAMPLES, World
from tests.integration.control.second_tenant import MARK, Neighbour, moved_in, state_of
from tests.integration.control.test_every_route import send, world
from tests.integration.control.test_problems import WHY, operations
from tests.promises import promise

__all__ = ["world"]

pytestmark = pytest.mark.needs_regorus

#: Sent to whoever is told of the tenant, by what runs beside requests.
_MOVING: Final = frozenset({"notification_deliveries", "notification_destinations"})
#: Of which table a path's parameter is.
_OF: Final = {
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


@promise("tenancy:others-are-not-found")
async def test_nothing_of_a_second_tenant_is_seen_or_changed_by_any_route(world: World) -> None:
    rest, there = world.rest, await one_of_everything(world)
    before, seen, done = await state_of(world.admin, there), list[str](), list[str]()
    assert len([table for table, rows in before.items() if rows]) >= 20
    paths = dict[str, str]()
    for one in await operations(rest):
        if one.role is None or "{tenant_id}" in one.path or one.path.endswith("/tenants"):
            continue  # super-admins go there, on record (test_super_admins.py)
        names = {name: (there.ids[table] or [""])[0] for name, table in _OF.items()}
        names |= {"name": f"{MARK}reader", "server": f"{MARK}time", "tool": f"{MARK}now"}
        path = one.path.format_map(_Known(names))
        key = world.person.token if one.human else ""
        headers = one.headers() | WHY | {"if-match": "*"}
        data = b"{}" if one.reads_body else None
        answer = await rest.call(one.method, path, headers=headers, data=data, key=key)
        paths[one.name] = path
        told = answer.body.decode()
        seen += [f"{one.name}: {word}" for word in there.unseen if word in told]
        if "{" in one.path and answer.status < 300:
            done.append(one.name)
        if one.method == "GET" and "{" not in one.path:
            listed = await rest.get(f"{path}?page_size=500", key=key)
            told = listed.body.decode()
            seen += [f"{one.name}: {word}" for word in there.unseen if word in told]
    after = await state_of(world.admin, there)

    assert [] == seen
    assert [] == done
    assert {} == {t: after[t] for t in after if after[t] != before[t] and t not in _MOVING}


class _Known(dict[str, str]):
    """Of what the second tenant has none, an id that nothing has."""

    def __missing__(self, name: str) -> str:
        return "00000000-0000-7000-8000-000000000000"


async def test_what_would_be_seen_is_found(world: World) -> None:
    """The twin: without row-level security on one table the walk above would not pass."""
    await world.agent()
    there = await moved_in(world.admin, world.rest.running.tenant.id)
    assert MARK not in (await world.rest.get("/api/v1/agents")).body.decode()
    await world.admin.execute("ALTER TABLE control.agents DISABLE ROW LEVEL SECURITY")
    told = (await world.rest.get("/api/v1/agents")).body.decode()

    assert MARK in told
    assert [one for one in there.ids["agents"] if one in told]
