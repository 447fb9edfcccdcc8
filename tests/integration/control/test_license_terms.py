"""The end of a term as it is told: each edge one record, each step one notice, whatever restarts,
however many controls there are, whoever holds an older word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.fakes.asking import ask_until
from tests.fakes.clock import ManualClock
from tests.fakes.licenses import DAY_S, revocations_token
from tests.fakes.postgres import Database
from tests.integration.control.plans import Plans
from tests.integration.control.receivers import http_receiver
from tests.integration.control.terms import (
    EDGES,
    NOW_S,
    World,
    activated,
    done,
    edges,
    fresh,
    notices,
    standing,
    told_to,
    until_edges,
    until_notices,
)
from tests.promises import promise


@pytest.fixture
def world(state: Path, database: Database, clock: ManualClock) -> World:
    return World(state=state, database=database, clock=clock)


async def ends_in(plans: Plans, days: int, plan: str = "enterprise") -> dict[str, Any]:
    """A tenant's plan that ends in so many days after the clock's start, set by a person."""
    ends = f"2026-{1 + days // 31:02}-{1 + days % 31:02}T00:00:00Z"
    answer = await done(lambda: plans.plan(plan=plan, expires_at=ends))
    said: dict[str, Any] = answer.json
    return said


async def noted(plans: Plans) -> tuple[str, int]:
    connection = await asyncpg.connect(plans.rest.database.admin_dsn)
    try:
        row = await connection.fetchrow(
            "SELECT event, step FROM control.license_terms WHERE tenant_id = $1", plans.tenant
        )
    finally:
        await connection.close()
    return (row["event"], row["step"]) if row else ("", -1)


async def until_noted(plans: Plans, event: str, step: int) -> None:
    await ask_until(lambda: noted(plans), lambda found: found == (event, step))


@promise("plans:ends-are-told")
async def test_a_trial_that_begins_is_no_news_and_its_end_is_one_record_and_one_notice_each(
    world: World,
) -> None:
    async with world.entitlements(), world.control() as plans, http_receiver() as receiver:
        await told_to(plans.rest, receiver)
        await fresh(plans)
        await until_noted(plans, "license.expiring", 1)
        assert ([], []) == (await edges(plans.rest), notices(receiver))
        for step, days in ((2, 15), (3, 23), (4, 29)):
            world.go_to(days)
            await until_notices(receiver, step - 1)
        assert [] == await edges(plans.rest)  # it was so from the beginning
        world.go_to(30)
        found = await until_notices(receiver, 4)
        (record,) = await until_edges(plans.rest, 1)
        changed = [one for one in await plans.rest.records() if one["type"] == "entitlement.lapsed"]

    assert ["license.expiring"] * 3 + ["license.lapsed"] == [one["event"] for one in found]
    assert ("license.lapsed", "plan", "trial", "EXPIRED") == (
        record["type"], record["resource"], record["plan"], record["status"],
    )  # fmt: skip
    assert {"kind": "service", "name": "control"} == record["actor"]
    assert "2026-01-31T00:00:00.000Z" == record["ends_at"]
    assert [
        ("behavioral_baselines", "on", "stopped"),
        ("community_library", "on", "stopped"),
        ("custom_dlp_patterns", "on", "frozen"),
    ] == sorted(
        (one["feature"], change["old"], change["new"])
        for one in changed
        for change in one["changes"]
    )
    assert {one["revision"] for one in changed} == {record["revision"]}
    assert sorted(one["feature"] for one in changed) == sorted(found[-1]["license"]["changed"])


@promise("plans:ends-are-told")
async def test_restarted_at_every_step_or_away_for_some_nothing_is_told_twice(
    world: World,
) -> None:
    """Control is away while the seventh day comes, and during four days of grace."""
    async with world.entitlements(), http_receiver() as receiver:
        async with world.control() as plans:
            await told_to(plans.rest, receiver)
            await ends_in(plans, 45)
            await until_noted(plans, "", 0)
        for days, status, so_far in (
            (10, "VALID", 0),
            (15, "EXPIRING", 1),
            (32, "EXPIRING", 2),
            (44, "EXPIRING", 3),  # of two days that passed, the later one
            (45, "GRACE", 4),
            (50, "GRACE", 5),
            (50, "GRACE", 5),
            (59, "EXPIRED", 6),
        ):
            world.go_to(days)
            async with world.control() as plans:
                await standing(plans, status)
                await until_notices(receiver, so_far)
        async with world.control() as plans:
            await fresh(plans)
            records = [one["type"] for one in await edges(plans.rest)]

    assert list(EDGES) == records
    assert 6 == len(notices(receiver))  # each may arrive twice, under its own id
    states = [one["license"]["state"] for one in notices(receiver)]
    assert ["EXPIRING"] * 3 + ["GRACE"] * 2 + ["EXPIRED"] == states
    assert 1 == len({one["license"]["term"] for one in notices(receiver)})


@promise("plans:ends-are-told")
async def test_of_two_controls_one_tells_and_one_that_holds_an_older_word_tells_nothing(
    world: World,
) -> None:
    async with http_receiver() as receiver:
        async with world.entitlements(), world.control() as plans, world.control("second") as other:
            await told_to(plans.rest, receiver)
            await ends_in(plans, 45)
            await standing(other, "VALID")
            for days, status, so_far in ((15, "EXPIRING", 1), (45, "GRACE", 2), (59, "EXPIRED", 3)):
                world.go_to(days)
                await standing(plans, status)
                await standing(other, status)
                await until_notices(receiver, so_far)
            copy = (world.state / "second.copy").read_bytes()
        # One that comes back with what it held, entitlements being away.
        async with world.control("second") as other:
            assert "EXPIRED" == (await other.license())["status"]
            records = [one["type"] for one in await edges(other.rest)]
        assert copy

    assert list(EDGES) == records
    assert 3 == len(notices(receiver))


async def test_a_revoked_licence_lapses_at_once_and_a_new_one_begins_anew(world: World) -> None:
    async with world.entitlements(), world.control() as plans, http_receiver() as receiver:
        await told_to(plans.rest, receiver)
        await fresh(plans)
        own = plans.token(tenant=plans.tenant, plan="enterprise", exp=NOW_S + 90 * DAY_S)
        await activated(plans, own)
        listed = revocations_token(now_s=NOW_S, serial=1, revoked=["licence-1"], key="issuer")
        await activated(plans, listed)
        await standing(plans, "REVOKED")
        (lapsed,) = await until_notices(receiver, 1)
        world.go_to(1)
        new = plans.token(
            tenant=plans.tenant, plan="enterprise", jti="licence-2", exp=NOW_S + 21 * DAY_S
        )
        await activated(plans, new)
        _, soon = await until_notices(receiver, 2)
        records = await until_edges(plans.rest, 2)

    assert ("license.lapsed", "REVOKED") == (lapsed["event"], lapsed["license"]["state"])
    assert 17 == len(lapsed["license"]["changed"])
    assert [("license.lapsed", "licence-1"), ("license.expiring", "licence-2")] == [
        (one["type"], one["resource_id"]) for one in records
    ]
    assert "2026-01-22T00:00:00.000Z" == soon["license"]["ends_at"]
    assert lapsed["license"]["term"] != soon["license"]["term"]


async def test_entitlements_away_the_days_are_told_and_no_state_begins(world: World) -> None:
    """What time has made of the plan, only entitlements says."""
    async with http_receiver() as receiver:
        async with world.entitlements(), world.control() as plans:
            await told_to(plans.rest, receiver)
            await fresh(plans)
            await ends_in(plans, 45)
            world.go_to(40)
            await standing(plans, "EXPIRING")
            await until_notices(receiver, 1)
        async with world.control() as plans:
            world.go_to(44)
            await until_notices(receiver, 2)
            world.go_to(80)
            silent = await plans.license()
            await until_noted(plans, "license.expiring", 4)
            assert list(EDGES[:1]) == [one["type"] for one in await edges(plans.rest)]
        async with world.entitlements(), world.control() as plans:
            await standing(plans, "EXPIRED")
            records = await until_edges(plans.rest, 2)

    assert ("EXPIRING", True) == (silent["status"], silent["stale"])
    assert ["license.expiring", "license.lapsed"] == [one["type"] for one in records]
