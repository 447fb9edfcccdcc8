"""Takes in what planes say of their escalations, and knows which decisions wait for a plane.

What is told twice is kept once. A plane is believed for its own tenants and its own escalations
alone; everything else is dropped, and not said to be kept.
"""

from __future__ import annotations

from typing import Final

from services.common.clock import Clock
from services.common.ids import PlaneId
from services.common.postgres.pool import Pool, tenant_tx
from services.common.telemetry.logging import Log
from services.control import escalation_reports as reports
from services.control import escalations as rules
from services.control.escalation_reports import Opened, Reported
from services.control.signals import Signals
from services.control.store import escalations as store
from services.control.store.escalations import Waiting
from services.control.store.moments import moment

_LOG_DROPPED: Final = "escalation_dropped"


class EscalationInbox:
    """`plane`: the one that all tenants belong to so far."""

    def __init__(
        self, *, pool: Pool, clock: Clock, signals: Signals, plane: PlaneId, log: Log
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._signals = signals
        self._plane = plane
        self._log = log

    async def opened(self, plane: PlaneId, told: Opened) -> bool:
        """Whether it is kept: now, or since it was told before."""
        new = reports.opened(told)
        if new is None or plane != self._plane:
            return self._dropped(plane, "unreadable, or not the tenant's plane")
        now = moment(self._clock.now_ns())
        async with tenant_tx(self._pool, new.tenant) as connection:
            added = await store.insert(connection, plane, new, now)
            kept = added or await store.reported(connection, new.id, plane) is not None
        if added:
            self._signals.escalation()
        return kept or self._dropped(plane, "unknown tenant, or another one's id")

    async def changed(self, plane: PlaneId, told: Reported) -> bool:
        """Whether this version, or a later one, is kept."""
        said = reports.reported(told)
        if said is None or plane != self._plane:
            return self._dropped(plane, "unreadable, or not the tenant's plane")
        now = moment(self._clock.now_ns())
        async with tenant_tx(self._pool, said.tenant) as connection:
            held = await store.reported(connection, said.id, plane)
            if held is None:
                return self._dropped(plane, "never opened here")
            state, version = held
            if said.version <= version:
                return True
            state = rules.state_after_plane(state, said.state)
            await store.report(
                connection,
                said.id,
                state=state,
                version=said.version,
                uses_left=said.uses_left,
                now=now,
            )
            if said.state in rules.FINAL:
                await store.overtake(connection, said.id, now)
        self._signals.escalation()
        return True

    async def waiting(self, plane: PlaneId) -> list[Waiting]:
        """Decisions that this plane has not acknowledged, oldest first."""
        async with self._pool.acquire() as connection:
            return await store.waiting(connection, plane)

    async def acknowledged(self, plane: PlaneId, decision: Waiting) -> None:
        now = moment(self._clock.now_ns())
        async with tenant_tx(self._pool, decision.tenant) as connection:
            await store.acknowledge(connection, decision.id, plane, now)

    def _dropped(self, plane: PlaneId, why: str) -> bool:
        self._log.warning(_LOG_DROPPED, plane=plane, why=why)
        return False
