"""What happens to tickets without anybody asking, and what a crash or a lost message leaves undone
is done later: over a real journal, with a clock that tests move.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.authorizer import escalation_watch as module
from services.authorizer.active import ActivePolicy
from services.authorizer.escalation_notices import EscalationNotices
from services.authorizer.escalation_watch import EscalationWatch
from services.authorizer.plane_state import Plane, PlaneState, Tenant
from services.authorizer.tickets.local import LocalTicketStore, local_ticket_store
from services.authorizer.tickets.ticket import Opening, State, Ticket
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from tests.fakes.clock import START_NS, ManualClock
from tests.fakes.tickets import HOUR_MS, TENANT, another, approval, opening

START_MS = START_NS // 1_000_000


@dataclass(slots=True)
class Desk:
    """A store, a watch over it, and whom the watch tells."""

    store: LocalTicketStore
    active: ActivePolicy
    clock: ManualClock
    watch: EscalationWatch
    notices: EscalationNotices
    told: list[tuple[str, str]] = field(default_factory=list)
    recorded: list[tuple[str, str, int]] = field(default_factory=list)
    sent: list[tuple[str, int]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def ticket_changed(self, *, tenant: str, escalation: str, state: str) -> None:
        assert tenant
        self.told.append((escalation, state))
        self._news.set()

    async def escalation(self, ticket: Ticket) -> None:
        self.recorded.append((ticket.id, ticket.state.value, ticket.version))
        self._news.set()

    def send(self, ticket: Ticket) -> None:
        self.sent.append((ticket.id, ticket.version))
        self._news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():
                self._news.clear()
                await self._news.wait()

    @property
    def now_ms(self) -> int:
        return self.clock.now_ns() // 1_000_000

    async def open(self, made: Opening) -> Ticket:
        return await self.store.open(made, now_ms=self.now_ms)

    def publish(self, **revisions: str) -> None:
        """A bundle with these tenants is active now."""
        tenants = {
            tenant: Tenant(slug="acme", policy_revision=revision)
            for tenant, revision in revisions.items()
        }
        state = PlaneState(plane=Plane(id="dp", environment="t"), serial=1, tenants=tenants)
        self.active.bundle = SimpleNamespace(state=state, serial=1)  # type: ignore[assignment]  # as much of one as is read
        self.active.changed()


@asynccontextmanager
async def watching(directory: Path, clock: ManualClock) -> AsyncIterator[Desk]:
    """The watch is there, none of its tasks runs yet: see `running`."""
    log = get_log("test")
    async with local_ticket_store(directory, log) as store:
        active = ActivePolicy(clock=clock, expire_after_s=86_400)
        notices = EscalationNotices(store)
        desk = Desk(store, active, clock, None, notices)  # type: ignore[arg-type]  # filled in below
        desk.watch = EscalationWatch(
            store=store,
            active=active,
            proxies=desk,
            notices=notices,
            journal=desk,
            clock=clock,
            counters=Counters(),
            log=log,
        )
        notices.send = desk.send
        yield desk


@asynccontextmanager
async def running(*tasks: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    async with Supervisor(get_log("test")) as supervisor:
        for task in tasks:
            supervisor.spawn("task", task)
        yield


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with watching(tmp_path, ManualClock()) as made:
        yield made


async def test_each_change_is_told_recorded_and_sent_in_order(desk: Desk) -> None:
    async with running(desk.watch.run_records):
        ticket = await desk.open(opening())
        await desk.store.decide(
            TENANT, ticket.id, approval(ticket, at_ms=START_MS, uses=2), now_ms=START_MS
        )
        for _ in range(2):
            await desk.store.consume(TENANT, ticket.id, binding=ticket.binding, now_ms=START_MS)
        await desk.until(lambda: len(desk.recorded) == 4)

    assert [(ticket.id, state) for state in ("approved", "consumed", "consumed")] == desk.told
    assert [(ticket.id, version) for version in range(4)] == desk.sent
    assert [0, 1, 2, 3] == [version for _, _, version in desk.recorded]
    (unsettled,) = await desk.store.unsettled()
    assert (3, -1) == (unsettled.recorded_version, unsettled.kept_version)


async def test_the_nearest_clock_is_kept_though_a_later_one_was_there_before(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 3600.0)
    async with running(desk.watch.run_clocks):
        await desk.open(another(decide_in_ms=24 * HOUR_MS))
        soon = await desk.open(another(decide_in_ms=50))
        desk.clock.advance(0.051)
        await desk.until(lambda: bool(desk.told))

    assert [(soon.id, "expired")] == desk.told


async def test_clocks_that_ran_out_while_nobody_ran_end_what_they_end(tmp_path: Path) -> None:
    clock = ManualClock()
    async with watching(tmp_path, clock) as before:
        ticket = await before.open(opening())
    clock.advance(3601)
    async with watching(tmp_path, clock) as after, running(after.watch.run_clocks):
        await after.until(lambda: bool(after.told))

    assert [(ticket.id, "expired")] == after.told


async def test_another_policy_of_a_tenant_ends_its_tickets_and_no_other_tenants(
    desk: Desk,
) -> None:
    other_tenant = "0192aaaa-0000-7000-8000-000000000009"
    async with running(desk.watch.run_policies):
        desk.publish(**{TENANT: "r1", other_tenant: "r1"})
        mine = await desk.open(opening())
        theirs = await desk.open(another(tenant=other_tenant))
        desk.publish(**{TENANT: "r1", other_tenant: "r1"})
        desk.publish(**{TENANT: "r2", other_tenant: "r1"})
        await desk.until(lambda: (mine.id, "superseded") in desk.told)
        desk.publish(**{TENANT: "r2"})
        await desk.until(lambda: (theirs.id, "superseded") in desk.told)

    assert [(mine.id, "superseded"), (theirs.id, "superseded")] == desk.told


async def test_a_policy_that_changed_while_nobody_ran_ends_them_too(tmp_path: Path) -> None:
    async with watching(tmp_path, ManualClock()) as before:
        ticket = await before.open(opening())
    async with watching(tmp_path, ManualClock()) as after, running(after.watch.run_policies):
        assert [State.PENDING] == [one.state for one in await after.store.live()]
        after.publish(**{TENANT: "r2"})
        await after.until(lambda: bool(after.told))

    assert [(ticket.id, "superseded")] == after.told


async def test_a_record_that_a_crash_prevented_is_made_up_for_once(tmp_path: Path) -> None:
    clock = ManualClock()
    async with watching(tmp_path, clock) as before:  # its records are never written
        ticket = await before.open(opening())
    clock.advance(11)
    async with watching(tmp_path, clock) as after:
        async with running(after.watch.run_again):
            await after.until(lambda: bool(after.recorded))
        async with running(after.watch.run_again, after.watch.run_records):
            younger = await after.open(another(at_ms=after.now_ms))
            await after.until(lambda: len(after.recorded) == 2)

    assert [(ticket.id, "pending", 0), (younger.id, "pending", 0)] == after.recorded


async def kept(desk: Desk, ticket: Ticket, version: int) -> None:
    async with asyncio.timeout(5):
        while True:
            found = await desk.store.get(TENANT, ticket.id)
            if found is not None and found.kept_version >= version:
                return
            await asyncio.sleep(0)


async def test_what_control_does_not_keep_is_said_again_until_it_does(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.01)
    ticket = await desk.open(opening())
    await desk.until(lambda: bool(desk.sent))
    desk.clock.advance(11)
    async with running(desk.watch.run_again, desk.notices.run):
        await desk.until(lambda: len(desk.sent) >= 3)
        desk.notices.kept(ticket.id, 0)
        await kept(desk, ticket, 0)
        heard = len(desk.sent)
        await desk.store.cancel(TENANT, ticket.id, agent=ticket.agent, now_ms=desk.now_ms)
        await desk.until(lambda: (ticket.id, 1) in desk.sent)

    assert {(ticket.id, 0)} == set(desk.sent[:heard])
    assert [1] == [version for _, version in desk.sent[heard:]]
