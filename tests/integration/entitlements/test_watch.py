"""The watch: whole, in order, at the size of an installation, over replicas and restored databases
(E12).
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from random import Random

import pytest

from services.common.clock import SystemClock
from services.common.postgres.pool import open_pool
from services.common.telemetry.logging import get_log
from services.entitlements import publishing
from services.entitlements.beliefs import Beliefs
from services.entitlements.license_keys import Keys
from services.entitlements.publishing import Board
from services.entitlements.sources import Sources
from services.entitlements.store.tables import Store
from tests.fakes.clock import ManualClock
from tests.fakes.postgres import Database
from tests.integration.entitlements.desk import (
    DAY_S,
    NOW_S,
    PROMPT_S,
    Desk,
    allowed,
    issued,
    serving,
)
from tests.integration.entitlements.filled import as_admin, fill


async def test_two_replicas_tell_each_others_changes_and_those_of_time(
    tmp_path: Path, entitlements_database: Database, clock: ManualClock
) -> None:
    async with (
        serving(tmp_path, entitlements_database, clock, name="one") as one,
        serving(tmp_path, entitlements_database, clock, name="two") as two,
    ):
        await one.activate(issued(plan="enterprise"))
        tenant = await one.tenant()
        async with one.watch() as first, two.watch() as second:
            for heard in (first, second):
                await heard.until(lambda w: w.synced and tenant in w.held)
            told = await two.set_plan(tenant, "professional", expires_at=NOW_S + 5 * DAY_S)
            began = time.monotonic()
            for heard in (first, second):
                await heard.until(lambda w: w.held[tenant].plan == "professional")
            took = [time.monotonic() - began]
            clock.advance(5 * DAY_S)
            began = time.monotonic()
            for heard in (first, second):
                await heard.until(lambda w: w.held[tenant].status == "GRACE")
            took.append(time.monotonic() - began)

            assert first.held[tenant].revision > told.revision
            assert (await one.get(tenant)) == (await two.get(tenant))
            sys.stderr.write(f"told after {took[0]:.2f} s, by time {took[1]:.2f} s\n")
            assert max(took) < PROMPT_S / 2  # 2 s on a machine that has nothing else to do


async def test_a_watch_cut_at_random_points_ends_with_what_the_service_holds(
    enterprise: Desk,
) -> None:
    chance = Random(12)
    tenants = [await enterprise.tenant() for _ in range(6)]
    held: dict[str, object] = {}
    for _ in range(12):
        async with enterprise.watch() as heard:
            cut = chance.randrange(1, 12)
            changes = asyncio.ensure_future(change_some(enterprise, tenants, chance))
            await heard.until(lambda w, n=cut: w.synced or len(w.held) >= min(n, len(tenants)))
            await changes
            held.update(heard.held)
    async with enterprise.watch() as heard:
        await heard.until(lambda w: w.synced)
        held.update(heard.held)

    assert {tenant: await enterprise.get(tenant) for tenant in tenants} == held


async def change_some(desk: Desk, tenants: list[str], chance: Random) -> None:
    for tenant in chance.sample(tenants, 3):
        await desk.set_plan(tenant, chance.choice(["trial", "professional", "enterprise"]))


@pytest.mark.parametrize(
    "restored",
    [
        "UPDATE entitlements.installation SET server = 'another one'",
        "UPDATE entitlements.installation SET revision = 1, base_revision = 0",
    ],
    ids=["on another server", "to an earlier revision"],
)
async def test_a_restored_database_is_a_new_epoch_and_every_watch_begins_anew(
    enterprise: Desk, entitlements_database: Database, restored: str
) -> None:
    tenant = await enterprise.tenant()
    await enterprise.set_plan(tenant, "professional")
    async with enterprise.watch() as heard:
        await heard.until(lambda w: w.synced)
        assert heard.synced is not None
        before = heard.synced.epoch
        await as_admin(entitlements_database, restored)
        with pytest.raises(EOFError):
            await heard.until(lambda _: False)
    async with enterprise.watch() as anew:
        await anew.until(lambda w: w.synced)
        assert anew.synced is not None

        assert before != anew.synced.epoch
        assert ("professional", 10) == (anew.held[tenant].plan, allowed(anew.held[tenant]))


async def test_a_quiet_watch_hears_that_the_service_is_there(
    enterprise: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "ALIVE_S", 0.05)
    async with enterprise.watch() as heard:
        await heard.until(lambda w: w.synced)
        async with asyncio.timeout(PROMPT_S):
            message = await heard.stream.read()

    assert message.HasField("alive")


async def test_a_service_that_looks_does_one_statement_however_many_tenants_there_are(
    enterprise: Desk, entitlements_database: Database
) -> None:
    await fill(entitlements_database, 200, ends_s=NOW_S + 10**9)
    async with open_pool(entitlements_database.dsn("behavry_entitlements")) as pool:
        beliefs = Beliefs(
            clock=SystemClock(),
            log=get_log("test"),
            keys=Keys({}),
            sources=Sources(),
            development=True,
        )
        board = Board(store=Store(pool), clock=SystemClock(), beliefs=beliefs)
        for _ in range(3):  # until all is settled
            await board.look()
        before = pool.counters.statements
        for _ in range(10):
            await board.look()

    assert 10 == pool.counters.statements - before
