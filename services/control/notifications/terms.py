"""The worker that records and tells how far each tenant's term is: once per step, over restarts and
replicas. What there is to tell, license_terms.py decides.

It follows what control holds of entitlements and asks nobody. What is noted, recorded and planned
for people is one transaction, so that none of it is without the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from services.common.clock import Clock
from services.common.ids import TenantId
from services.common.outbox.table import TableOutbox
from services.common.postgres.connection import Connection
from services.common.postgres.pool import Pool, tenant_tx
from services.common.telemetry.logging import Log
from services.control import audit_records, license_terms
from services.control.features import Entitlements, Features
from services.control.license_terms import News, Noted, Standing
from services.control.notifications import notices
from services.control.store import license_terms as store
from services.control.store import notification_plans
from services.control.store.moments import moment

#: The clock may be moved: a step that is due is found by then.
LOOK_S: Final = 1.0


@dataclass(slots=True, kw_only=True)
class TermNotices:
    """`run` under a supervisor."""

    pool: Pool
    features: Features
    clock: Clock
    recorder: TableOutbox
    log: Log
    _changed: dict[TenantId, None] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    #: What this process knows to be noted, the modes as their hash: the same again needs no
    #: question, and ten thousand tenants need little room.
    _noted: dict[TenantId, tuple[str, Standing, int]] = field(default_factory=dict)
    #: The next step of each, soonest first; one that moved stands in it twice.
    _due: list[tuple[int, TenantId]] = field(default_factory=list)
    _due_of: dict[TenantId, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.features.listen(self._hear)

    def _hear(self, tenant: TenantId) -> None:
        self._changed[tenant] = None
        self._news.set()

    async def run(self) -> None:
        """1. all of them, after a failure too  2. who changed, and whose step is due."""
        self._changed.update(dict.fromkeys(self.features.tenants()))  # 1
        while True:
            for tenant in self._next():  # 2
                await self._look_at(tenant)
                await asyncio.sleep(0)  # ten thousand of them hold up nobody
            self._news.clear()
            if not self._changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._news.wait()

    def _next(self) -> Iterator[TenantId]:
        now_s = self._now_s()
        while self._due and self._due[0][0] <= now_s:
            _, tenant = heapq.heappop(self._due)
            self._due_of.pop(tenant, None)
            self._changed[tenant] = None
        while self._changed:
            tenant = next(iter(self._changed))
            del self._changed[tenant]
            yield tenant

    def _now_s(self) -> int:
        return self.clock.now_ns() // 1_000_000_000

    async def _look_at(self, tenant: TenantId) -> None:
        held = self.features.of(tenant)
        if held is None:
            self._noted.pop(tenant, None)
            return
        now = license_terms.standing(held, self._now_s())
        if now is None:
            return
        if now.next_s is not None and self._due_of.get(tenant) != now.next_s:
            self._due_of[tenant] = now.next_s
            heapq.heappush(self._due, (now.next_s, tenant))
        known = (self.features.epoch, now, hash(tuple(one.mode for one in held.features)))
        if self._noted.get(tenant) != known:
            await self._tell(held, now)
            self._noted[tenant] = known

    async def _tell(self, held: Entitlements, now: Standing) -> None:
        """1. one at a time  2. what is new in it  3. records  4. people  5. the note."""
        tenant, epoch, now_ns = held.tenant, self.features.epoch, self.clock.now_ns()
        async with tenant_tx(self.pool, tenant) as connection:
            if not await store.lock(connection, tenant):  # 1
                return
            new = license_terms.news(await store.get(connection), held, epoch, now)  # 2
            if new.edge:
                await self._record(connection, held, now, new, now_ns)  # 3
            if new.told:
                await self._plan(connection, held, now, new, now_ns)  # 4
            if new.note:
                await store.put(connection, tenant, _noted(held, epoch, now))  # 5
        if new.edge:
            self.recorder.wake()
        if new.told:
            self.log.info("license_step", tenant=tenant, notice=now.event, step=now.step)

    async def _record(
        self, connection: Connection, held: Entitlements, now: Standing, new: News, now_ns: int
    ) -> None:
        """The edge, and one for each feature whose mode the lapse changed."""
        came = audit_records.Circumstances(
            actor={"kind": "service", "name": "control"},
            route="license",
            request_id="",
            client_ip="",
            now_ns=now_ns,
        )
        assert now.event is not None  # noqa: S101  # an edge leads somewhere
        common = {
            "resource": "plan" if now.term == license_terms.BY_PLAN else "license",
            "resource_id": now.term,
            "status": held.status,
            "plan": held.plan,
            "revision": held.revision,
        }
        ends = {"ends_at": _time(now.ends_at_s), "lapses_at": _time(now.lapses_at_s)}
        said = common | {name: value for name, value in ends.items() if value}
        await self.recorder.put(
            connection, audit_records.other(now.event, held.tenant, came, **said)
        )
        for key, old, mode in new.changed:
            record = audit_records.other(
                "entitlement.lapsed",
                held.tenant,
                came,
                feature=key,
                changes=[audit_records.change(f"modes.{key}", old, mode)],
                **common,
            )
            await self.recorder.put(connection, record)

    async def _plan(
        self, connection: Connection, held: Entitlements, now: Standing, new: News, now_ns: int
    ) -> None:
        assert now.event is not None  # noqa: S101  # as above
        at = moment(now_ns)
        facts = notices.term(
            id=now.notice_id(held.tenant),
            term=now.term_id(held.tenant),
            plan=held.plan,
            state=held.status,
            at=at,
            ends_at=_moment(now.ends_at_s),
            lapses_at=_moment(now.lapses_at_s),
            changed=[key for key, _, _ in new.changed],
        )
        await notification_plans.plan(connection, held.tenant, now.event, facts, now=at)


def _noted(held: Entitlements, epoch: str, now: Standing) -> Noted:
    return Noted(
        epoch=epoch,
        revision=held.revision,
        event=now.event,
        term=now.term,
        ends_at_s=now.ends_at_s,
        step=now.step,
        modes=held.modes(),
    )


def _moment(at_s: int | None) -> datetime | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC)


def _time(at_s: int | None) -> str | None:
    at = _moment(at_s)
    return None if at is None else notices.z(at)
