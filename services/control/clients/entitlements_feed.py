"""Follows what entitlements tells of every tenant, from one stream into features.py."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

import grpc

from behavry.entitlements.v1 import entitlements_pb2 as ent
from behavry.entitlements.v1 import entitlements_pb2_grpc
from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.common.rpc.client import Link
from services.common.rpc.errors import known
from services.control.clients.entitlements import Plans
from services.control.clients.entitlements_wire import entitlements_of
from services.control.features import Entitlements, Features

#: Silence of the watch after which it is opened anew (Alive comes every 15 s).
WATCH_SILENCE_S: Final = 45.0
#: Between a stream that ended and the next.
RETRY_S: Final = 0.5


@dataclass(slots=True)
class EntitlementsFeed:
    """Keeps Features fed. Each call is one stream; away or silent, dial again."""

    link: Link
    features: Features
    plans: Plans

    async def watch(self) -> None:
        """Until the stream ends or is silent. Raises DEPENDENCY_UNAVAILABLE and its kin."""
        await self._follow(all_the_way=True)

    async def reread(self) -> None:
        """Everything once more: what a stream lost would else be lost for ever."""
        await self._follow(all_the_way=False)

    async def _follow(self, *, all_the_way: bool) -> None:
        stub = entitlements_pb2_grpc.EntitlementsReaderServiceStub(self.link.channel)
        stream = stub.WatchEntitlements(
            ent.WatchEntitlementsRequest(takes_lists=True), metadata=self.link.metadata()
        )
        #: What is told before Synced counts together with it, since only that names the epoch.
        listed: dict[TenantId, Entitlements] | None = {}
        try:
            while True:
                async with asyncio.timeout(WATCH_SILENCE_S):
                    message = await stream.read()
                if not isinstance(message, ent.WatchEntitlementsResponse):  # the stream's end
                    return
                if message.HasField("synced"):
                    with contextlib.suppress(BehavryError):  # names are not worth a stream
                        self.features.catalogue = await self.plans.ask_catalogue()
                    self.features.sync(message.synced.epoch, message.synced.revision, listed or {})
                    listed = None
                    if not all_the_way:
                        return
                elif message.HasField("tenant"):
                    self._told(message.tenant, listed)
                elif message.HasField("tenants"):
                    for tenant in message.tenants.tenants:
                        self._told(tenant, listed)
                elif listed is None:
                    self.features.heard()
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from failure
        finally:
            stream.cancel()

    def _told(
        self, tenant: ent.TenantEntitlements, listed: dict[TenantId, Entitlements] | None
    ) -> None:
        named = TenantId(tenant.tenant_id)
        if listed is None and tenant.deleted:
            self.features.forget(named, tenant.revision)
        elif listed is None:
            self.features.update(entitlements_of(tenant))
        elif not tenant.deleted:
            held, before = entitlements_of(tenant), self.features.of(named)
            # The same is held once, however often all is read again.
            listed[named] = before if before is not None and before == held else held
