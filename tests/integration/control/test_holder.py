"""What control holds of plans is what the service says, whatever befalls the stream between them
(E12): cut anywhere, led from one replica to the other, the database put back to an earlier state,
while everything changes. Nothing lower is believed within a database's life.

`make chaos` does it with ten thousand tenants.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import asyncpg
import pytest

from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.common.rpc.client import dial
from services.common.telemetry.counters import Counters
from services.control.clients.entitlements import Plans
from services.control.clients.entitlements_feed import EntitlementsFeed
from services.control.clients.entitlements_wire import entitlements_of
from services.control.features import Entitlements, Features
from tests.fakes.asking import ask_until
from tests.fakes.clock import ManualClock
from tests.fakes.neighbour import TENANT
from tests.fakes.peers import identity
from tests.fakes.postgres import Database
from tests.fakes.relay import Relay, relaying
from tests.integration.entitlements.desk import Desk, issued, serving
from tests.integration.entitlements.filled import fill

LONG = os.environ.get("BEHAVRY_CHAOS") == "long"
TENANTS = 10_000 if LONG else 80
ROUNDS = 8
#: What a list of all of them takes on the wire, roughly.
LIST_BYTES = TENANTS * 1_000
PROMPT_S = 120.0 if LONG else 20.0
PLANS = ("trial", "professional", "enterprise")
_TABLES = ("installation", "directory", "tenants", "overrides", "plan_history",
           "installation_licenses", "licenses", "requests")  # fmt: skip


class Tracked(Features):
    """Remembers what was believed, within each life of the database."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.epochs: list[str] = []
        self.syncs = 0
        self.lower: list[TenantId] = []
        self._newest: dict[TenantId, int] = {}
        self.listen(self._notice)

    def sync(self, epoch: str, revision: int, all: Mapping[TenantId, Entitlements]) -> None:
        self.syncs += 1
        if not self.epochs or self.epochs[-1] != epoch:
            self.epochs.append(epoch)
            self._newest.clear()
        super().sync(epoch, revision, all)

    def _notice(self, tenant: TenantId) -> None:
        held = self.of(tenant)
        if held is not None:
            if held.revision < self._newest.get(tenant, 0):
                self.lower.append(tenant)
            self._newest[tenant] = held.revision

    def holds(self) -> dict[str, Entitlements]:
        """Without the second tenant, at whom desks do not look (fakes/neighbour.py)."""
        return {one.tenant: one for one in self.kept().tenants if one.tenant != TENANT}


@asynccontextmanager
async def feeding(directory: Path, relay: Relay, features: Tracked) -> AsyncIterator[None]:
    """Control's half, as its supervisor runs it: the stream again and again, and all once more."""

    async def again(feed: EntitlementsFeed) -> None:
        while True:
            with contextlib.suppress(BehavryError, TimeoutError):
                await feed.watch()
                await feed.reread()
            await relay.breath()

    async with dial(relay.address, identity(directory / "peers", "control")) as link:
        feed = EntitlementsFeed(link, features, Plans(link, features, Counters()))
        task = asyncio.ensure_future(again(feed))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def change(desks: list[Desk], tenants: list[str], chance: Random) -> None:
    """A few of everything, at either replica; one tenant comes, one goes."""
    for tenant in chance.sample(tenants, 6):
        desk = chance.choice(desks)
        with contextlib.suppress(BehavryError):  # it may be gone, or not be known there yet
            if chance.random() < 0.6:
                await desk.set_plan(tenant, chance.choice(PLANS))
            else:
                await desk.override(tenant, disable=["community_library"])
    tenants.append(await desks[0].tenant())
    request = desks[0].deleting(tenants.pop(chance.randrange(len(tenants))))
    await desks[0].call(desks[0].admin.DeleteTenant, request)


async def keep(database: Database, *, back: bool) -> None:
    """Puts the service's tables aside, or as they were when that was done."""
    connection = await asyncpg.connect(database.admin_dsn)
    async with connection.transaction():
        if back:
            await connection.execute(f"TRUNCATE {', '.join(map(_named, _TABLES))} CASCADE")
        else:
            await connection.execute("CREATE SCHEMA aside")
        for table in _TABLES:
            await connection.execute(
                f"INSERT INTO {_named(table)} OVERRIDING SYSTEM VALUE TABLE aside.{table}"
                if back
                else f"CREATE TABLE aside.{table} AS TABLE {_named(table)}"
            )
    await connection.close()


def _named(table: str) -> str:
    return f"entitlements.{table}"


async def listed(desk: Desk) -> dict[str, Entitlements]:
    """All that a replica says, as control would hold it; nothing while it begins anew."""
    async with desk.watch() as heard:
        with contextlib.suppress(EOFError):
            await heard.until(lambda w: w.synced, PROMPT_S)
            return {tenant: entitlements_of(one) for tenant, one in heard.held.items()}
    return {}


@pytest.mark.chaos
async def test_the_holder_is_the_service_whatever_befalls_the_stream(
    tmp_path: Path, entitlements_database: Database, clock: ManualClock
) -> None:
    chance, features = Random(612), Tracked(clock)
    await fill(entitlements_database, TENANTS)
    async with (
        serving(tmp_path, entitlements_database, clock, name="one") as one,
        serving(tmp_path, entitlements_database, clock, name="two") as two,
        relaying(tmp_path / "relay.sock", tmp_path / "one.sock", tmp_path / "two.sock") as relay,
        feeding(tmp_path, relay, features),
    ):
        desks = [one, two]
        await one.activate(issued(plan="enterprise", exp=one.now_s + 10**9))
        tenants, then = list(await listed(one)), features.holds()

        async def same() -> bool:
            replicas = [await listed(desk) for desk in desks]
            return replicas[0] == replicas[1] == features.holds()

        for turn in range(ROUNDS):
            relay.cut_after = lambda: chance.randrange(LIST_BYTES * 4 // 3)
            if turn == 2:
                relay.cut_after = lambda: None
                await ask_until(same, bool, PROMPT_S)
                await keep(entitlements_database, back=False)
                then = features.holds()
            if turn == ROUNDS - 3:
                await keep(entitlements_database, back=True)
                await ask_until(two_lives(desks, features.epochs[0]), bool, PROMPT_S)
                relay.cut_after = lambda: None
                relay.cut()
                await ask_until(same, bool, PROMPT_S)
                tenants = list(features.holds())
                assert then.keys() == features.holds().keys()
            await change(desks, tenants, chance)
            relay.cut()
            await led(relay, relay.connections + 2)
            clock.advance(chance.randrange(0, 40_000))
        relay.cut_after = lambda: None
        relay.cut()
        began = time.monotonic()
        await ask_until(same, bool, PROMPT_S)
        sys.stderr.write(
            f"{relay.connections} connections, {relay.cuts} cut while they spoke, {features.syncs}"
            f" syncs, equal {time.monotonic() - began:.2f} s after the last\n"
        )

    assert [] == features.lower
    assert 2 == len(features.epochs)
    assert relay.connections >= ROUNDS
    assert len(features.holds()) == len(tenants) >= TENANTS - ROUNDS


async def led(relay: Relay, connections: int) -> None:
    async def enough() -> int:
        if relay.connections < connections:
            relay.cut()  # one that was led through whole waits for news
        return relay.connections

    await ask_until(enough, lambda now: now >= connections, PROMPT_S)


def two_lives(desks: list[Desk], first: str) -> Callable[[], Awaitable[bool]]:
    """Whether both replicas know that the database is another one."""

    async def changed() -> bool:
        epochs = {first}
        with contextlib.suppress(EOFError):
            epochs = {await epoch_of(desk) for desk in desks}
        return len(epochs) == 1 and first not in epochs

    return changed


async def epoch_of(desk: Desk) -> str:
    async with desk.watch() as heard:
        await heard.until(lambda w: w.synced, PROMPT_S)
        return heard.synced.epoch if heard.synced else ""
