"""Audit as a process: what it says at start, how it ends, and what it holds in its hands then."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.rpc.errors import known
from tests.fakes.audit import (
    AGENT_CHAIN,
    PATIENCE_S,
    AuditService,
    Source,
    audit_service,
    audit_settings,
    stored,
)
from tests.fakes.postgres import Database

pytestmark = pytest.mark.needs_postgres


@asynccontextmanager
async def _process(
    directory: Path, env: dict[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.audit",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **env},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _until_serving(address: str) -> None:
    async with asyncio.timeout(4 * PATIENCE_S), grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="")
        while True:
            try:
                answer = await stub.Check(request, wait_for_ready=True)
            except grpc.aio.AioRpcError:
                continue
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return


async def test_a_process_that_is_asked_to_stop_ends_well_and_has_kept_its_records(
    audit_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("a")
    settings = audit_settings(directory, audit_database)
    env = {
        "BEHAVRY_STATE_DIR": str(directory),
        "BEHAVRY_AUDIT_WRITER_DB_URL": settings.writer_db_url,
        "BEHAVRY_AUDIT_READER_DB_URL": settings.reader_db_url,
        "BEHAVRY_AUDIT_GRPC_LISTEN": settings.grpc_listen,
    }
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 10)
    async with _process(directory, env) as process:
        await _until_serving(settings.grpc_listen)

        class Here:
            address = settings.grpc_listen

        audit = AuditService(settings=settings, running=Here())  # type: ignore[arg-type]  # only its address
        async with audit.shipper(source) as shipper:
            await shipper.ship(entries)
            process.send_signal(signal.SIGTERM)
            out, err = await asyncio.wait_for(process.communicate(), 4 * PATIENCE_S)

    assert (0, b"") == (process.returncode, err)
    assert all(line.startswith(b"{") for line in out.splitlines())
    rows = await stored(audit_database, tenant)
    assert 10 == sum(row["chain"] == AGENT_CHAIN for row in rows)
    async with audit_service(audit_database) as again, again.shipper(source) as shipper:
        assert 10 == shipper.position  # saved on the way out


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({}, "BEHAVRY_AUDIT_WRITER_DB_URL"),
        ({"BEHAVRY_AUDIT_WRITER_DB_URL": "postgresql://u@/db"}, "BEHAVRY_AUDIT_READER_DB_URL"),
        ({"BEHAVRY_MODE": "everything"}, "BEHAVRY_MODE"),
    ],
)
async def test_a_setting_that_cannot_be_used_ends_it_with_status_2_and_its_name(
    tmp_path: Path, env: dict[str, str], named: str
) -> None:
    async with _process(tmp_path, {"BEHAVRY_STATE_DIR": str(tmp_path), **env}) as process:
        _, err = await asyncio.wait_for(process.communicate(), 4 * PATIENCE_S)

    assert 2 == process.returncode
    assert named in err.decode()


async def test_in_a_control_plane_events_of_agents_are_refused(audit_database: Database) -> None:
    async with audit_service(audit_database, mode="control_plane") as audit:
        for peer in ("proxy", "authorizer"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async with audit.shipper(Source(), peer=peer):
                    pass
            assert "WRONG_PLANE" == known(refused.value).reason
        async with audit.shipper(Source(), peer="control") as shipper:
            assert 0 == shipper.position
