"""Each store of tickets, and a second one on the same journal where the store can have one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.authorizer.tickets.local import local_ticket_store
from services.authorizer.tickets.protocol import TicketStore
from services.common.telemetry.logging import get_log


@pytest.fixture(params=["local"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TicketStore]:
    async with local_ticket_store(tmp_path / "tickets", get_log("test")) as local:
        yield local
