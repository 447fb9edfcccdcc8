"""One replica with a clock that stands still, and an Enterprise licence as ceiling where asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.clock import ManualClock
from tests.fakes.planted import moved_out
from tests.fakes.postgres import Database
from tests.integration.entitlements.desk import Desk, issued, serving


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def alone(entitlements_database: Database) -> None:
    """No second tenant: for what is said of an installation's only one."""
    await moved_out(entitlements_database)


@pytest.fixture
async def desk(
    tmp_path: Path, entitlements_database: Database, clock: ManualClock
) -> AsyncIterator[Desk]:
    async with serving(tmp_path, entitlements_database, clock) as running:
        yield running


@pytest.fixture
async def enterprise(desk: Desk) -> Desk:
    """The installation may have everything, for many years."""
    await desk.activate(issued(plan="enterprise", jti="ceiling", exp=desk.now_s + 10**9))
    return desk
