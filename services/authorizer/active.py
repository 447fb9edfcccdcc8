"""The bundle that decisions are made under right now, and who must hear when it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.authorizer import kill_switch
from services.authorizer.bundles import VerifiedBundle
from services.authorizer.kill_switch import KillSwitch, Switch
from services.authorizer.plane_state import Tenant
from services.authorizer.revocations import Revocations
from services.authorizer.staleness import Freshness, freshness
from services.common.clock import Clock


@dataclass(slots=True, kw_only=True)
class ActivePolicy:
    """Changed by the bundle feed and the link only; read on every decision."""

    clock: Clock
    expire_after_s: int
    bundle: VerifiedBundle | None = None
    confirmed_s: int = 0
    mark_s: int = 0
    revocations: Revocations = field(default_factory=Revocations)
    kill_switch: KillSwitch = field(default_factory=KillSwitch)
    #: Rises with every change that a snapshot's reader must hear of.
    version: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    #: Cleared while the engine may already answer for a bundle that is not `bundle` yet.
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._settled.set()

    @property
    def serial(self) -> int:
        return self.bundle.serial if self.bundle else 0

    def tenant(self, tenant_id: str) -> Tenant | None:
        return self.bundle.state.tenants.get(tenant_id) if self.bundle else None

    def age(self) -> Freshness:
        """The present policy state; `expired` where there is no bundle."""
        if self.bundle is None:
            return Freshness("expired", 0)
        now_s = self.clock.now_ns() // 1_000_000_000
        age = freshness(
            confirmed_s=self.confirmed_s,
            now_s=now_s,
            mark_s=self.mark_s,
            not_after_s=self.bundle.not_after_s,
            expire_after_s=self.expire_after_s,
        )
        self.mark_s = max(self.mark_s, now_s)
        return age

    def activated(self, *, oldest_serial: int) -> None:
        """`bundle` is another one; a restart could fall back to none older than `oldest_serial`."""
        self.revocations.settle(self.serial, oldest_serial=oldest_serial)
        self.changed()

    def stopped_here(self, switches: Iterable[Switch]) -> None:
        """What this machine's own file stops now."""
        if self.kill_switch.set("file", switches):
            self.changed()

    def begin_switch(self) -> None:
        self._settled.clear()

    def end_switch(self) -> None:
        self._settled.set()

    async def settled(self) -> None:
        """Returns at once unless a switch of bundles is under way."""
        await self._settled.wait()

    def changed(self) -> None:
        """Wakes everybody who waits for the next version. What is stopped follows first."""
        bundled = kill_switch.of_bundle(self.bundle.state) if self.bundle else ()
        self.kill_switch.set_all({"link": self.revocations.stops(), "bundle": bundled})
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def next_version(self, known: int) -> int:
        while self.version == known:
            await self._changed.wait()
        return self.version
