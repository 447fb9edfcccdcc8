"""Of those who expect the same revision exactly one wins (E15). The test holds the row that every
writer raises, lets them queue up one by one at two replicas, and lets go: whoever the database made
wait first is the one, and nothing is left to chance.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from behavry.entitlements.v1 import entitlements_pb2 as wire
from services.common.errors import BehavryError
from tests.fakes.asking import ask_until
from tests.fakes.clock import ManualClock
from tests.fakes.postgres import Database
from tests.integration.entitlements.desk import Desk, issued, serving

WRITERS = 6
_HOLD = "SELECT 1 FROM entitlements.installation FOR UPDATE"
_NOW = """
SELECT greatest(i.base_revision, d.revision)
FROM entitlements.installation i, entitlements.directory d WHERE d.id = $1
"""
_IN_LINE = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
  AND query LIKE '%SET revision = revision + 1 RETURNING%'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Two replicas, and the row that their writers wait for."""

    desks: tuple[Desk, Desk]
    tenant: str
    database: Database

    async def outcomes(self, expects: bool) -> list[str]:
        """Of each writer, in the order in which they stood: done, or why not."""
        holder = await asyncpg.connect(self.database.admin_dsn)
        watcher = await asyncpg.connect(self.database.admin_dsn)
        try:
            async with asyncio.TaskGroup() as group, holder.transaction():
                await holder.execute(_HOLD)
                revision = int(await watcher.fetchval(_NOW, self.tenant))
                for desk in self.desks:  # what was written before is known to both
                    await desk.until(self.tenant, lambda told: told.revision == revision)
                writers = []
                for number in range(WRITERS):
                    expected = revision if expects else 0
                    writers.append(group.create_task(self._write(number, expected)))
                    await _stand_in_line(watcher, number + 1)
            return [writer.result() for writer in writers]
        finally:
            await holder.close()
            await watcher.close()

    async def _write(self, number: int, expected: int) -> str:
        desk, key = self.desks[number % 2], ("saml_sso", "context_gate")[number % 2]
        try:
            await desk.override(
                self.tenant, enable=[key], request_id=str(number), expected=expected
            )
        except BehavryError as refused:
            return refused.reason
        return "done"

    async def history(self) -> list[wire.Override]:
        return await self.desks[0].history(self.tenant)


async def _stand_in_line(watcher: asyncpg.Connection, count: int) -> None:
    def there(found: int) -> bool:
        return found == count

    await ask_until(lambda: watcher.fetchval(_IN_LINE), there)


@pytest.fixture
async def line(
    tmp_path: Path, entitlements_database: Database, clock: ManualClock
) -> AsyncIterator[Line]:
    async with (
        serving(tmp_path, entitlements_database, clock, name="one") as one,
        serving(tmp_path, entitlements_database, clock, name="two") as two,
    ):
        await one.activate(issued(plan="enterprise", exp=one.now_s + 10**9))
        tenant = await one.tenant()
        await one.override(tenant, disable=["saml_sso"])
        await two.until(tenant, lambda told: told.HasField("installation_license"))
        yield Line(desks=(one, two), tenant=tenant, database=entitlements_database)


async def test_of_those_who_expect_the_same_revision_the_first_in_line_wins(line: Line) -> None:
    outcomes = await line.outcomes(expects=True)

    assert ["done", *["STALE_REVISION"] * (WRITERS - 1)] == outcomes
    assert ["0"] == [row.request_id for row in await line.history()][:-1]


async def test_whoever_expects_nothing_is_written_after_the_others(line: Line) -> None:
    """The innocent twin: the line itself refuses nobody. Behind the first one its order is the
    database's.
    """
    outcomes = await line.outcomes(expects=False)
    *later, first, _ = [row.request_id for row in await line.history()]

    assert ["done"] * WRITERS == outcomes
    assert ("0", {str(number) for number in range(1, WRITERS)}) == (first, set(later))
