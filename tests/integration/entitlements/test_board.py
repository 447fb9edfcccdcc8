"""What a replica knows is what the database says, however often the database fails it in the middle
of looking (E12): a look that was cut short is made up for by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest

from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.common.postgres.pool import Pool, open_pool
from services.common.telemetry.logging import get_log
from services.entitlements import publishing
from services.entitlements.beliefs import Beliefs
from services.entitlements.overrides import Effect
from services.entitlements.publishing import Board
from services.entitlements.sources import Sources
from services.entitlements.store.tables import Store
from services.entitlements.watching import Synced
from services.entitlements.writer import Cause, Change, Writer
from tests.fakes.clock import ManualClock
from tests.fakes.licenses import issuers_keys
from tests.fakes.postgres import Database
from tests.integration.entitlements.desk import DAY_S, NOW_S, issued

PLANS = ("trial", "professional", "enterprise")
KEYS = ("saml_sso", "context_gate", "community_library")


class Flaky(Store):
    """Any statement may fail, before it is done or after."""

    def __init__(self, pool: Pool, chance: Random) -> None:
        super().__init__(pool)
        self.chance = chance
        self.share = 0.0
        self.failed = Counter[str]()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in READ_OR_WRITTEN:
            return found

        async def failing(*arguments: object) -> object:
            if self.chance.random() < self.share:
                self.failed[name] += 1
                raise BehavryError("DEPENDENCY_UNAVAILABLE", "planted before")
            answer = await found(*arguments)
            if self.chance.random() < self.share / 3:
                self.failed[name] += 1
                raise BehavryError("DEPENDENCY_UNAVAILABLE", "planted after")
            return answer

        return failing


READ_OR_WRITTEN = frozenset({
    "installation", "see_server", "new_epoch", "tenants", "changed_since", "states", "settle",
    "new_ceiling", "mark", "tokens", "revocation_lists",
})  # fmt: skip


def board(store: Store, clock: ManualClock, file: Path) -> Board:
    beliefs = Beliefs(
        clock=clock,
        log=get_log("test"),
        keys=issuers_keys(),
        sources=Sources(license_file=file),
        development=False,
    )
    return Board(store=store, clock=clock, beliefs=beliefs)


async def known(of: Board) -> dict[TenantId, object]:
    """All that a watcher is told, once nothing waits any more."""
    told: dict[TenantId, object] = {}
    watch = of.watch()
    async for news in watch:
        if isinstance(news, Synced):
            break
        assert isinstance(news, list)
        told |= {one.tenant: (one.view, one.revision) for one in news}
    await watch.aclose()
    return told


async def follow(of: Board, heard: dict[TenantId, object]) -> None:
    """Hears every change from the beginning, as a control does that is never cut off."""
    async for news in of.watch():
        for one in news if isinstance(news, list) else ():
            if one.view is None:
                heard.pop(one.tenant, None)
            else:
                heard[one.tenant] = (one.view, one.revision)


async def settled(of: Board) -> None:
    for _ in range(60):
        await of.look()


async def change(writer: Writer, tenants: list[TenantId], chance: Random) -> None:
    """One thing that another replica does."""
    tenant = chance.choice(tenants)
    cause = Cause(actor="user:root", reason="a test", request_id=str(uuid4()))
    asked = Change(tenant=tenant, cause=cause, asked=b"", encode=lambda *_: b"")
    match chance.randrange(6):
        case 0:
            tenants.append(TenantId(str(uuid4())))
            await writer.put_tenant(tenants[-1], "new")
        case 1 if len(tenants) > 4:
            await writer.delete_tenant(tenant, cause)
            tenants.remove(tenant)
        case 2 | 3:
            effects = [(key, chance.choice([*Effect])) for key in chance.sample(KEYS, 2)]
            with contextlib.suppress(BehavryError):  # above the ceiling of the moment
                await writer.set_overrides(asked, effects, starts_at_s=None, ends_at_s=None)
        case _:
            ends = chance.choice([None, NOW_S + chance.randrange(1, 90) * DAY_S])
            await writer.set_plan(asked, chance.choice(PLANS), ends)


@pytest.mark.parametrize("seed", range(2))
async def test_a_look_that_fails_anywhere_loses_nothing(
    entitlements_database: Database,
    clock: ManualClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setattr(publishing, "PORTION", 3)
    chance, file = Random(seed), tmp_path / "license"
    async with open_pool(entitlements_database.dsn("behavry_entitlements")) as pool:
        sound = board(Store(pool), clock, file)
        flaky = Flaky(pool, chance)
        tried = board(flaky, clock, file)
        for one in (sound, tried):
            await one.look()
        writer = Writer(Store(pool), sound.beliefs, tenants=sound.count)
        tenants = [TenantId(str(uuid4())) for _ in range(8)]
        for tenant in tenants:
            await writer.put_tenant(tenant, "one of eight")
        heard: dict[TenantId, object] = {}
        following = asyncio.ensure_future(follow(tried, heard))
        for turn in range(25):
            flaky.share = 0.25
            for _ in range(chance.randrange(1, 6)):
                await change(writer, tenants, chance)
            if chance.random() < 0.3:
                plan = chance.choice(PLANS)
                file.write_text(issued(plan=plan, jti=f"l{turn}", exp=NOW_S + 10**8))
            clock.advance(chance.choice([1, 1, 40 * DAY_S, 3 * DAY_S]))
            for _ in range(8):
                with contextlib.suppress(BehavryError):
                    await tried.look()
            await sound.look()
            if turn % 5 == 4:
                flaky.share = 0.0
                await settled(tried)
                await settled(sound)
                fresh = board(Store(pool), clock, file)
                await settled(fresh)
                now = await known(fresh)
                assert now == await known(tried) == await known(sound)
                assert now == heard
        following.cancel()

    assert flaky.failed.total() > 10
