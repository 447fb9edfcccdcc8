"""Entitlements is away, and time goes over the end of a plan: answers stay as they were, and every
bundle that is built meanwhile enforces what the one before it did (E10, E11).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from services.common.ids import TenantId
from services.control.features import Entitlements
from tests.fakes.asking import ask_until
from tests.fakes.clock import ManualClock
from tests.fakes.licenses import DAY_S
from tests.fakes.postgres import Database
from tests.integration.control.planes import BUNDLE, opened, plane_token
from tests.integration.control.plans import LICENSE, SUMMARY, Plans
from tests.integration.control.terms import EDGES, World, done, fresh, standing, until_edges
from tests.integration.control.test_problems import check
from tests.integration.control.test_timeline import configure
from tests.promises import promise

pytestmark = pytest.mark.needs_regorus

#: What a tenant's part of a bundle enforces by: none of it may get smaller.
ENFORCING: Final = ("policies", "stops", "tools", "revoked_sessions", "restricted_sessions")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    serial: int
    state: Mapping[str, Any]
    modules: Mapping[str, bytes]


@pytest.fixture
def world(state: Path, database: Database, clock: ManualClock) -> World:
    return World(state=state, database=database, clock=clock)


async def bundle(plans: Plans) -> Bundle | None:
    rest = plans.rest
    headers = {"authorization": f"Bearer {plane_token(rest)}"}
    answer = await rest.get(BUNDLE, key=None, headers=headers)
    if answer.status != 200:
        return None
    files = opened(answer.body)
    state = json.loads(files["data.json"])["behavry"]["state"]
    return Bundle(
        serial=state["serial"],
        state=state["tenants"][plans.tenant],
        modules={name: body for name, body in files.items() if name.endswith(".rego")},
    )


async def next_bundle(plans: Plans, after: int) -> Bundle:
    async def ask() -> Bundle | None:
        return await bundle(plans)

    found = await ask_until(ask, lambda one: one is not None and one.serial > after)
    assert found is not None
    return found


def enforces_no_less(before: Bundle, now: Bundle) -> bool:
    """Each module that there was, as it was or with more in it; each rule, stop and mode."""
    same_mode = before.state["modes"] == now.state["modes"]
    modules = all(
        set(source.splitlines()) <= set(now.modules[name].splitlines())
        for name, source in before.modules.items()
    )
    rules = all(all(one in now.state[name] for one in before.state[name]) for name in ENFORCING)
    return same_mode and modules and rules


def changes(agent: str, server: str) -> list[tuple[str, str, dict[str, Any]]]:
    """What people do while nobody knows what their plan says."""
    stop = {"scope": "server", "subject": server, "reason": "nobody calls it for now"}
    return [
        ("PUT", "roles/another", {"permissions": ["git:write"]}),
        ("POST", "agents", {"name": "built-while-away"}),
        ("POST", f"agents/{agent}:revoke", {}),
        ("POST", "kill-switch", stop),
    ]


@promise("plans:outage-changes-nothing")
async def test_without_a_snapshot_no_bundle_of_any_change_enforces_less(world: World) -> None:
    async with world.entitlements(), world.control() as plans:
        await fresh(plans)
        await done(lambda: plans.plan(plan="enterprise"))
        await configure(plans)
        await done(lambda: plans.plan(plan="professional"))
        await done(lambda: plans.features(disable=["inbound_rules"]))
        agent = (await plans.rest.add_agent("two"))["id"]

        async def both() -> Bundle | None:
            return await bundle(plans)

        published = await ask_until(
            both,
            lambda one: (
                one is not None
                and agent in one.state["agents"]
                and one.state["modes"]["inbound_rules"] == "frozen"
            ),
        )
    assert published is not None
    assert {"on", "kept", "frozen", "tightened", "stopped"} == set(
        published.state["modes"].values()
    )
    assert published.state["policies"]
    before, built = published, 0
    for part in range(2):  # and once more, by a control that never heard anything either
        (world.state / "control.copy").unlink(missing_ok=True)
        async with world.control() as plans:
            check(await plans.rest.get(LICENSE), 503, "dependency_unavailable")
            check(await plans.rest.get(SUMMARY), 403, "feature_not_included")
            for method, path, body in changes(agent, "time")[2 * part : 2 * part + 2]:
                key = {"idempotency-key": str(uuid4())}
                answer = await plans.rest.call(method, f"/api/v1/{path}", body, headers=key)
                assert answer.status < 300, answer.body
                now = await next_bundle(plans, before.serial)
                assert enforces_no_less(before, now)
                before, built = now, built + 1
    assert 4 == built
    assert published.state["modes"] == before.state["modes"]
    assert 1 == len(before.state["stops"])


@promise("plans:outage-changes-nothing")
async def test_a_plan_that_ends_while_entitlements_is_away_ends_when_it_is_back(
    world: World,
) -> None:
    """Away for a day, control restarted meanwhile: the same answers, all stale; and one stream
    brings what time has made of it.
    """
    async with world.entitlements(), world.control() as plans:
        await fresh(plans)
        await done(lambda: plans.plan(plan="trial", expires_at="2026-01-01T12:00:00Z"))
        said = await standing(plans, "EXPIRING")
        modes = [one["mode"] for one in said["features"]]
    for _ in range(3):
        world.clock.advance(DAY_S / 3)
        async with world.control() as plans:
            silent = await plans.license()
            assert silent["stale"]
            assert modes == [one["mode"] for one in silent["features"]]
            assert ("EXPIRING", said["revision"]) == (silent["status"], silent["revision"])
    async with AsyncExitStack() as until_the_end, world.control() as plans:
        features = plans.rest.running.control.features
        synced: list[int] = []
        sync = features.sync

        def counted(epoch: str, revision: int, all: Mapping[TenantId, Entitlements]) -> None:
            synced.append(revision)
            sync(epoch, revision, all)

        features.sync = counted  # type: ignore[method-assign]  # what it does stays
        await until_the_end.enter_async_context(world.entitlements())
        lapsed = await standing(plans, "EXPIRED")
        assert not lapsed["stale"]
        assert len(synced) <= 1
        *_, last = await until_edges(plans.rest, 2)

    assert EDGES[2] == last["type"]
    assert lapsed["revision"] > said["revision"]
    assert "on" not in {one["mode"] for one in lapsed["features"][:3]}
