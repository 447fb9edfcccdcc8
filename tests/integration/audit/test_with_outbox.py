"""The real outbox in front of the real service, which is killed while records come: what the outbox
took is chained exactly once, and the chain verifies.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from services.audit import reading
from services.audit.settings import AuditSettings
from services.audit.verify import Verdict, Verifier
from services.common.clock import SystemClock, micros
from services.common.ids import PlaneId, TenantId
from services.common.outbox.outbox import FileOutbox
from services.common.outbox.parts import make_part
from services.common.outbox.record import Record
from services.common.outbox.running import OutboxOptions, running_outbox
from services.common.outbox.stamp import Origin
from services.common.outbox.transport import GrpcTransport
from services.common.postgres.pool import open_pool
from services.common.rpc.client import dial
from services.common.rpc.peers import Identity
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from tests.fakes.audit import AGENT_CHAIN, audit_settings, stored
from tests.fakes.postgres import Database
from tests.promises import promise

pytestmark = pytest.mark.needs_postgres

KILLS = 4
CALLS_PER_LIFE = 60
PATIENCE_S = 30


class Killable:
    """The service as a process that a test kills as the machine would."""

    def __init__(self, settings: AuditSettings) -> None:
        self._env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "BEHAVRY_STATE_DIR": str(settings.state_dir),
            "BEHAVRY_AUDIT_WRITER_DB_URL": settings.writer_db_url,
            "BEHAVRY_AUDIT_READER_DB_URL": settings.reader_db_url,
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.audit",
            env=self._env,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def _outbox(settings: AuditSettings, counters: Counters) -> AsyncIterator[FileOutbox]:
    identity = Identity("proxy", settings.peers_dir / "proxy.token")
    options = OutboxOptions(
        root=settings.state_dir / "outbox",
        origin=Origin(kind="proxy", plane=PlaneId("dp-local"), version="0"),
    )
    async with AsyncExitStack() as stack:
        link = await stack.enter_async_context(
            dial(f"unix:{settings.run_dir}/audit.sock", identity)
        )
        yield await stack.enter_async_context(
            running_outbox(
                options,
                GrpcTransport(link),
                clock=SystemClock(),
                counters=counters,
                log=get_log("test"),
            )
        )


async def _call(outbox: FileOutbox, tenant: TenantId) -> list[str]:
    """An allowed call: its intent with what was decided, and its outcome."""
    decided = make_part("input", b'{"request":{}}', mode="input")
    now_us = micros(SystemClock().now_ns())
    intent = Record(
        type="call.intent",
        tenant=tenant,
        chain=AGENT_CHAIN,
        at_us=now_us,
        fields={"verdict": "allow", "tool": "now", "input": {"commit": decided.commit}},
    )
    decision = await outbox.put(intent, parts=[decided])
    outcome = Record(
        type="call.outcome",
        tenant=tenant,
        chain=AGENT_CHAIN,
        at_us=now_us,
        fields={"decision": decision, "status": "ok"},
    )
    return [decision, await outbox.put(outcome, durable=False)]


@promise("audit:stored-once")
async def test_records_survive_the_service_being_killed_while_they_come(
    audit_database: Database,
) -> None:
    tenant = TenantId(str(uuid4()))
    counters = Counters()
    taken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bva-") as directory:
        settings = audit_settings(Path(directory), audit_database)
        service = Killable(settings)
        async with _outbox(settings, counters) as outbox:
            for _ in range(KILLS):
                await service.start()
                before = counters.read()["outbox.shipped"]
                async with asyncio.timeout(PATIENCE_S):
                    # At least one batch arrives in each life, and more is on its way at its end.
                    while counters.read()["outbox.shipped"] == before:
                        taken += await _call(outbox, tenant)
                    for _ in range(CALLS_PER_LIFE):
                        taken += await _call(outbox, tenant)
                await service.kill()
            await service.start()
            async with asyncio.timeout(PATIENCE_S):
                await outbox.drained()
        await service.kill()

    rows = await stored(audit_database, tenant)
    chained = [str(row["event_id"]) for row in rows if row["chain"] == AGENT_CHAIN]
    assert sorted(taken) == sorted(chained)
    assert "ok" == (await _verdict(audit_database, tenant)).verdict


async def _verdict(database: Database, tenant: str) -> Verdict:
    async with (
        open_pool(database.dsn("behavry_audit_reader"), max_size=1) as pool,
        reading.snapshot(pool, tenant) as connection,
    ):
        heads = {head.chain: head for head in await reading.heads(connection, tenant)}
        verifier = Verifier(tenant, heads)
        async for group in reading.rows(connection, tenant, None):
            for row, parts in group:
                verifier.add(row, parts)
        return verifier.verdict()
