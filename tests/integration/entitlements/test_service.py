"""The entitlements service over a real channel and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from behavry.entitlements.v1 import entitlements_pb2 as wire
from behavry.entitlements.v1 import entitlements_pb2_grpc
from services.common.postgres.pool import open_pool, tenant_tx
from services.common.rpc.client import Link, dial
from services.common.rpc.errors import known
from services.common.settings import load
from services.entitlements.app import running
from services.entitlements.settings import EntitlementsSettings
from tests.fakes.clock import ManualClock
from tests.fakes.neighbour import Answers
from tests.fakes.peers import identity, make_peers
from tests.fakes.postgres import Database
from tests.integration.entitlements.desk import Told

PROMPT_S = 5.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def control(
    tmp_path: Path, entitlements_database: Database, clock: ManualClock
) -> AsyncIterator[Link]:
    """A channel to the running service, as control calls it."""
    peers = make_peers(tmp_path / "peers")
    env = {
        "BEHAVRY_STATE_DIR": str(tmp_path),
        "BEHAVRY_ENTITLEMENTS_GRPC_LISTEN": f"unix:{tmp_path}/e.sock",
        "BEHAVRY_ENTITLEMENTS_DB_URL": entitlements_database.dsn("behavry_entitlements"),
    }
    settings = load(EntitlementsSettings, env)
    async with (
        running(settings, clock=clock) as serving,
        dial(serving.address, identity(peers, "control")) as link,
    ):
        yield link


def reader(link: Link) -> Any:
    return Answers(entitlements_pb2_grpc.EntitlementsReaderServiceStub(link.channel))


async def put(link: Link, tenant: str) -> wire.TenantEntitlements:
    stub = Answers(entitlements_pb2_grpc.EntitlementsAdminServiceStub(link.channel))
    request = wire.PutTenantRequest(tenant_id=tenant, slug="acme", request_id=str(uuid4()))
    response = await stub.PutTenant(request, metadata=link.metadata(), timeout=PROMPT_S)
    entitlements: wire.TenantEntitlements = response.entitlements
    return entitlements


async def test_a_new_tenant_is_on_trial_for_thirty_days(control: Link, clock: ManualClock) -> None:
    entitlements = await put(control, str(uuid4()))

    assert ("trial", "EXPIRING", 17) == (
        entitlements.plan,
        entitlements.status,
        len(entitlements.features),
    )
    assert clock.now_ns() // 10**9 + 30 * 86_400 == entitlements.plan_expires_at
    assert 3 == sum(answer.allowed for answer in entitlements.features)


async def test_a_tenant_put_twice_is_not_changed(control: Link, clock: ManualClock) -> None:
    tenant = str(uuid4())
    first = await put(control, tenant)
    clock.advance(86_400)

    assert first == await put(control, tenant)


async def test_an_unknown_tenant_is_refused(control: Link) -> None:
    request = wire.GetEntitlementsRequest(tenant_id=str(uuid4()))

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await reader(control).GetEntitlements(
            request, metadata=control.metadata(), timeout=PROMPT_S
        )

    assert "TENANT_UNKNOWN" == known(refused.value).reason


async def test_a_watcher_hears_of_every_tenant_and_of_the_end_of_a_trial(
    control: Link, clock: ManualClock
) -> None:
    tenant = str(uuid4())
    await put(control, tenant)
    stub = entitlements_pb2_grpc.EntitlementsReaderServiceStub(control.channel)
    watch = Told(
        stub.WatchEntitlements(wire.WatchEntitlementsRequest(), metadata=control.metadata())
    )

    async def next_tenant() -> wire.TenantEntitlements:
        while True:
            message = await watch.read()
            if message.HasField("tenant"):
                tenant: wire.TenantEntitlements = message.tenant
                return tenant

    first = await asyncio.wait_for(next_tenant(), PROMPT_S)
    clock.advance(30 * 86_400)
    lapsed = await asyncio.wait_for(next_tenant(), PROMPT_S)
    watch.cancel()

    assert (tenant, tenant) == (first.tenant_id, lapsed.tenant_id)
    assert ("EXPIRING", "EXPIRED") == (first.status, lapsed.status)
    assert not any(answer.allowed for answer in lapsed.features)


async def test_a_tenants_row_is_unseen_and_unwritable_without_its_tenant(
    control: Link, entitlements_database: Database
) -> None:
    mine, other = str(uuid4()), str(uuid4())
    await put(control, mine)
    await put(control, other)
    count = "SELECT count(*) FROM entitlements.tenants"
    change = "UPDATE entitlements.tenants SET plan = 'enterprise'"

    async with open_pool(entitlements_database.dsn("behavry_entitlements")) as pool:
        async with pool.acquire() as connection:
            unset = await connection.fetchval(count), await connection.execute(change)
        async with tenant_tx(pool, mine) as connection:
            seen = await connection.fetchval(count)

    assert ((0, "UPDATE 0"), 1) == (unset, seen)
