"""Builds a new bundle when desired state changed, and says so. A bundle that cannot be built keeps
the previous one: nothing that is enforced today is lost by an edit that went wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from joserfc.jwk import ECKey

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import PlaneId, TenantId
from services.common.postgres.connection import Connection
from services.common.postgres.pool import TENANT_SETTING, Pool
from services.common.rego import parse
from services.common.telemetry.logging import Log
from services.control import bundles, desired_state
from services.control.bundles import LIFE_S, Content
from services.control.signals import Signals
from services.control.store import bundles as bundle_store
from services.control.store import desired
from services.control.store.bundles import StoredBundle

#: Edits that come close together make one bundle.
GATHER_S: Final = 0.2
LONGEST_GATHER_S: Final = 1.0
#: How often the age of the newest bundle is looked at, for signing it anew.
LOOK_S: Final = 3600.0
_TENANTS: Final = "SELECT id FROM control.tenants WHERE status <> 'deleted' ORDER BY id"
_SET_TENANT: Final = f"SELECT set_config('{TENANT_SETTING}', $1, true)"

#: The modes of a tenant's features as entitlements last said them; None: nothing is known of it.
Modes = Callable[[TenantId], Mapping[str, str] | None]


@dataclass(slots=True, kw_only=True)
class Publisher:
    pool: Pool
    signals: Signals
    modes: Modes
    plane_id: PlaneId
    environment: str
    key: ECKey = field(repr=False)
    kid: str
    clock: Clock
    log: Log
    #: Compiled once: the same content is not compiled again.
    _compiled: set[str] = field(default_factory=set)

    async def resume(self) -> None:
        """Call before anything changes: signals count from the newest bundle that planes may hold,
        also while none can be built. What stands still is said again: whoever was told so must not
        depend on a process that ended before the planes had heard of it.
        """
        async with self.pool.acquire() as connection, connection.transaction():
            newest = await bundle_store.newest(connection, self.plane_id)
            if newest is not None:
                self.signals.published(newest.serial)
            for row in await connection.fetch(_TENANTS):
                tenant = TenantId(str(row["id"]))
                await connection.execute(_SET_TENANT, tenant)
                self.signals.revoke(tenant, stops=await desired.stops(connection))

    async def run(self) -> None:
        """Builds at the start, then after each change, until cancelled."""
        await self.publish()
        while True:
            try:
                await asyncio.wait_for(self.signals.touched(), LOOK_S)
            except TimeoutError:
                await self.publish()
                continue
            await self._gather()
            await self.publish()

    async def publish(self) -> int:
        """The serial of the newest bundle; a failure to build is logged and changes nothing."""
        self.signals.building = True
        try:
            serial = await self._build()
        except BehavryError as refused:
            # Features that are not known yet are a start's ordinary waiting.
            waiting = refused.reason == "DEPENDENCY_UNAVAILABLE"
            tell = self.log.info if waiting else self.log.error
            tell("bundle_not_built", reason=refused.reason)
            return self.signals.serial
        finally:
            self.signals.building = False
        self.signals.published(serial)
        return serial

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + LONGEST_GATHER_S
        while loop.time() < until:
            try:
                await asyncio.wait_for(self.signals.touched(), GATHER_S)
            except TimeoutError:
                return

    async def _build(self) -> int:
        """1. one builder  2. one snapshot of all tenants  3. unchanged: nothing  4. compile
        5. sign, store.
        """
        now_s = self.clock.now_ns() // 1_000_000_000
        async with self.pool.acquire() as connection, connection.transaction():
            await bundle_store.lock(connection, self.plane_id)  # 1
            newest = await bundle_store.newest(connection, self.plane_id)
            content = await self._content(connection, newest, now_s)  # 2
            serial = newest.serial if newest else 0
            digest = content.digest()
            if newest and newest.content_digest == digest:  # 3
                young = now_s < newest.created_s + LIFE_S // 2
                # A right that was taken and given back leaves no trace in the content, but planes
                # hold the signal until a newer bundle says otherwise.
                if young and not self.signals.pending():
                    return serial
            elif digest not in self._compiled:  # 4
                await self._compile(content)
                self._compiled = {digest}
            bundle = bundles.build(  # 5
                content, serial=serial + 1, created_s=now_s, key=self.key, kid=self.kid
            )
            await bundle_store.insert(connection, self.plane_id, bundle)
        self.log.info("bundle_built", serial=bundle.serial, size_bytes=len(bundle.archive))
        return bundle.serial

    async def _content(
        self, connection: Connection, newest: StoredBundle | None, now_s: int
    ) -> Content:
        tenants = []
        published: Mapping[str, Mapping[str, str]] | None = None
        for row in await connection.fetch(_TENANTS):
            tenant = TenantId(str(row["id"]))
            modes = self.modes(tenant)
            if modes is None:
                # Built from nothing heard, a bundle could take configured features away.
                if newest is None:
                    raise BehavryError(
                        "DEPENDENCY_UNAVAILABLE", "the tenant's features are not known yet"
                    )
                published = published or bundles.modes_of(newest.archive)
                modes = published.get(tenant)
            if modes is None:
                # New, and in no bundle so far: that it is still in none takes nothing from it.
                self.log.info("tenant_waits_for_its_plan", tenant=tenant)
                continue
            await connection.execute(_SET_TENANT, tenant)
            rows = await desired.read(connection, tenant, now_s=now_s)
            tenants.append(desired_state.tenant_content(rows, modes))
        return Content(
            plane_id=self.plane_id,
            environment=self.environment,
            tenants=tenants,
            shipped=desired_state.shipped_modules(),
        )

    async def _compile(self, content: Content) -> None:
        modules = dict(content.shipped)
        for tenant in content.tenants:
            modules |= tenant.modules
        try:
            await asyncio.to_thread(parse.parse, modules)
        except parse.SyntaxRefused as refused:
            raise BehavryError(
                "BUNDLE_COMPILE_FAILED", "the bundle's modules do not compile", file=refused.file
            ) from refused
        except parse.ParserUnavailable:
            # Each policy was checked when it was saved, and the plane's engine compiles again.
            self.log.warning("bundle_not_compiled_here")
