"""The running service, and a caller that speaks to it as control does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc

from behavry.entitlements.v1 import entitlements_pb2 as wire
from behavry.entitlements.v1 import entitlements_pb2_grpc
from services.common.rpc.client import Link, dial
from services.common.rpc.errors import known
from services.common.settings import load
from services.entitlements.app import running
from services.entitlements.settings import EntitlementsSettings
from tests.fakes import neighbour
from tests.fakes.clock import START_NS, ManualClock
from tests.fakes.licenses import issuers_keys, license_token
from tests.fakes.peers import identity, make_peers
from tests.fakes.postgres import Database

PROMPT_S = 10.0
NOW_S = START_NS // 10**9
DAY_S = 86_400


@dataclass(slots=True)
class Told:
    """A watch's stream. Control is told of every tenant: the second one's own news go aside, and
    nothing else may tell of it.
    """

    stream: Any
    beside: list[wire.TenantEntitlements] = field(default_factory=list)

    async def read(self) -> Any:
        while (message := await self.stream.read()) is not grpc.aio.EOF:
            if message.tenant.tenant_id != neighbour.TENANT:
                neighbour.unseen(message)
                break
            self.beside.append(message.tenant)
        return message

    def cancel(self) -> None:
        self.stream.cancel()


@dataclass(slots=True)
class Watch:
    """What one watcher has heard: the newest of each tenant."""

    stream: Told
    held: dict[str, wire.TenantEntitlements] = field(default_factory=dict)
    synced: wire.Synced | None = None

    async def until(self, done: Any, timeout_s: float = PROMPT_S) -> None:
        """Hears until `done(self)`."""
        async with asyncio.timeout(timeout_s):
            while not done(self):
                message = await self.stream.read()
                if message is grpc.aio.EOF:
                    raise EOFError
                if message.HasField("synced"):
                    self.synced = message.synced
                elif message.HasField("tenant"):
                    told = message.tenant
                    before = self.held.get(told.tenant_id)
                    assert before is None or told.revision >= before.revision
                    self.held[told.tenant_id] = told


@dataclass(slots=True)
class Desk:
    link: Link
    clock: ManualClock

    @property
    def now_s(self) -> int:
        return self.clock.now_ns() // 10**9

    @property
    def reader(self) -> entitlements_pb2_grpc.EntitlementsReaderServiceStub:
        return entitlements_pb2_grpc.EntitlementsReaderServiceStub(self.link.channel)

    @property
    def admin(self) -> entitlements_pb2_grpc.EntitlementsAdminServiceStub:
        return entitlements_pb2_grpc.EntitlementsAdminServiceStub(self.link.channel)

    async def call(self, method: Any, request: Any) -> Any:
        """Raises the BehavryError of the other side. Nobody is told of the second tenant."""
        sent = neighbour.Call(method(request, metadata=self.link.metadata(), timeout=PROMPT_S))
        try:
            return await sent
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from failure

    def cause(self, request_id: str = "", expected: int = 0) -> wire.Cause:
        return wire.Cause(
            actor="user:root",
            reason="because of a test",
            request_id=request_id or str(uuid4()),
            expected_revision=expected,
        )

    async def tenant(self) -> str:
        tenant = str(uuid4())
        await self.call(self.admin.PutTenant, wire.PutTenantRequest(tenant_id=tenant, slug="acme"))
        return tenant

    async def get(self, tenant: str) -> wire.TenantEntitlements:
        request = wire.GetEntitlementsRequest(tenant_id=tenant)
        answer = await self.call(self.reader.GetEntitlements, request)
        assert isinstance(answer, wire.GetEntitlementsResponse)
        return answer.entitlements

    async def set_plan(
        self, tenant: str, plan: str, expires_at: int = 0, **cause: Any
    ) -> wire.TenantEntitlements:
        request = wire.SetPlanRequest(
            tenant_id=tenant, plan=plan, expires_at=expires_at, cause=self.cause(**cause)
        )
        answer = await self.call(self.admin.SetPlan, request)
        assert isinstance(answer, wire.SetPlanResponse)
        return answer.entitlements

    async def override(
        self,
        tenant: str,
        *,
        enable: Sequence[str] = (),
        disable: Sequence[str] = (),
        clear: Sequence[str] = (),
        starts_at: int = 0,
        ends_at: int = 0,
        **cause: Any,
    ) -> wire.TenantEntitlements:
        request = wire.SetOverridesRequest(
            tenant_id=tenant,
            enable=[number(key) for key in enable],
            disable=[number(key) for key in disable],
            clear=[number(key) for key in clear],
            starts_at=starts_at,
            ends_at=ends_at,
            cause=self.cause(**cause),
        )
        answer = await self.call(self.admin.SetOverrides, request)
        assert isinstance(answer, wire.SetOverridesResponse)
        return answer.entitlements

    async def activate(
        self, token: str, tenant: str = "", *, replace: bool = False, **cause: Any
    ) -> wire.ActivateLicenseResponse:
        request = wire.ActivateLicenseRequest(
            tenant_id=tenant, token=token, replace=replace, cause=self.cause(**cause)
        )
        answer = await self.call(self.admin.ActivateLicense, request)
        assert isinstance(answer, wire.ActivateLicenseResponse)
        return answer

    async def remove(self, jti: str, tenant: str = "", **cause: Any) -> None:
        request = wire.RemoveLicenseRequest(tenant_id=tenant, jti=jti, cause=self.cause(**cause))
        await self.call(self.admin.RemoveLicense, request)

    def deleting(self, tenant: str) -> wire.DeleteTenantRequest:
        return wire.DeleteTenantRequest(tenant_id=tenant, cause=self.cause())

    async def history(self, tenant: str, page_size: int = 500) -> list[wire.Override]:
        found: list[wire.Override] = []
        token = ""
        while True:
            request = wire.ListOverridesRequest(
                tenant_id=tenant, page_size=page_size, page_token=token
            )
            page = await self.call(self.reader.ListOverrides, request)
            found += page.overrides
            token = page.next_page_token
            if not token:
                return found

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[Watch]:
        request = wire.WatchEntitlementsRequest()
        stream = Told(self.reader.WatchEntitlements(request, metadata=self.link.metadata()))
        try:
            yield Watch(stream)
        finally:
            stream.cancel()

    async def until(self, tenant: str, done: Any) -> wire.TenantEntitlements:
        """The first answer for the tenant, as a watcher hears it, that is as wished."""
        async with self.watch() as heard:
            await heard.until(lambda w: tenant in w.held and done(w.held[tenant]))
            return heard.held[tenant]


def issued(**said: Any) -> str:
    """A licence by the issuer of the tests, in force since the clock's start."""
    return license_token(**{"now_s": NOW_S, "key": "issuer", **said})


def number(key: str) -> wire.Feature.ValueType:
    return wire.Feature.Value(f"FEATURE_{key.upper()}")


def allowed(told: wire.TenantEntitlements) -> int:
    return sum(answer.allowed for answer in told.features)


def mode(told: wire.TenantEntitlements, key: str) -> str:
    (found,) = (one for one in told.features if one.feature == number(key))
    return wire.Mode.Name(found.mode).removeprefix("MODE_").lower()


def source(told: wire.TenantEntitlements, key: str) -> str:
    (found,) = (one for one in told.features if one.feature == number(key))
    return wire.Source.Name(found.source).removeprefix("SOURCE_").lower()


def changes_at(told: wire.TenantEntitlements, key: str) -> int:
    (found,) = (one for one in told.features if one.feature == number(key))
    return found.changes_at


@asynccontextmanager
async def serving(
    directory: Path,
    database: Database,
    clock: ManualClock,
    *,
    name: str = "e",
    development: bool = False,
    env: dict[str, str] | None = None,
) -> AsyncIterator[Desk]:
    """One replica; in production unless told, with the issuer's key of the tests."""
    peers = make_peers(directory / "peers")
    settings = load(
        EntitlementsSettings,
        {
            "BEHAVRY_STATE_DIR": str(directory),
            "BEHAVRY_ENTITLEMENTS_GRPC_LISTEN": f"unix:{directory}/{name}.sock",
            "BEHAVRY_ENTITLEMENTS_DB_URL": database.dsn("behavry_entitlements"),
            "BEHAVRY_ENV": "development" if development else "production",
            **(env or {}),
        },
    )
    async with (
        running(settings, clock=clock, keys=issuers_keys(development=development)) as service,
        dial(service.address, identity(peers, "control")) as link,
    ):
        yield Desk(link, clock)
