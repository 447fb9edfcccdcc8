"""What people decided reaches its ticket once, and control may forget it exactly when it can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from behavry.control.v1 import plane_link_pb2 as wire
from services.authorizer import approvals as module
from services.authorizer.approvals import Approvals, Signal
from services.authorizer.tickets.local import LocalTicketStore, local_ticket_store
from services.authorizer.tickets.protocol import StoreUnavailable
from services.authorizer.tickets.ticket import State, Ticket
from services.common.ids import TenantId
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from tests.fakes.clock import START_NS, ManualClock
from tests.fakes.control import PLANE, TENANT, FakeControl
from tests.fakes.tickets import opening

NOW_MS = START_NS // 1_000_000


@dataclass(slots=True)
class Desk:
    """The store, who signs, and what was recorded, acknowledged and told."""

    store: LocalTicketStore
    control: FakeControl
    away: int = 0
    recorded: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    told: list[Ticket] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def escalation_refused(self, reason: str, *, tenant: str, escalation: str) -> None:
        assert tenant
        assert escalation
        self.recorded.append(reason)

    def approvals(self) -> Approvals:
        key = self.control.decision_key
        made = Approvals(
            store=self,
            keys={key.thumbprint(): key.as_dict(private=False)},
            plane_id=PLANE,
            journal=self,
            clock=ManualClock(),
            counters=Counters(),
            log=get_log("test"),
        )
        made.acknowledge = self._acknowledge
        made.tell = self.told.append
        return made

    def __getattr__(self, name: str) -> Any:
        if self.away:
            self.away -= 1
            raise StoreUnavailable("away")
        return getattr(self.store, name)

    def _acknowledge(self, signal_id: str) -> None:
        self.acknowledged.append(signal_id)
        self.news.set()

    async def opened(self) -> Ticket:
        return await self.store.open(opening(tenant=TENANT, at_ms=NOW_MS), now_ms=NOW_MS)

    def signal(self, ticket: Ticket, verdict: str = "approve", **changes: Any) -> Signal:
        opened = wire.EscalationOpened(
            id=ticket.id, tenant_id=ticket.tenant, binding=ticket.binding, execute_for_s=900
        )
        signed = self.control.decide(opened, verdict, now_ms=NOW_MS, **changes)
        return Signal(
            signal_id=signed.signal_id,
            tenant=signed.tenant_id,
            escalation=signed.escalation_id,
            token=signed.jws,
        )

    async def state(self, ticket: Ticket) -> State:
        found = await self.store.get(TenantId(ticket.tenant), ticket.id)
        assert found is not None
        return found.state


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with local_ticket_store(tmp_path / "tickets", get_log("test")) as store:
        yield Desk(store, FakeControl(tmp_path))


async def test_a_decision_is_applied_once_and_its_replay_is_forgotten(desk: Desk) -> None:
    ticket, approvals = await desk.opened(), desk.approvals()
    signal = desk.signal(ticket, uses=2)
    first = await approvals.apply(signal)
    await desk.store.consume(
        TenantId(ticket.tenant), ticket.id, binding=ticket.binding, now_ms=NOW_MS
    )
    again = await approvals.apply(signal)

    assert (True, True) == (first, again)
    (stands,) = desk.told
    assert (State.APPROVED, 1) == (stands.state, stands.uses_left)


async def test_a_decision_that_comes_too_late_is_forgotten_and_control_told_how_it_stands(
    desk: Desk,
) -> None:
    ticket, approvals = await desk.opened(), desk.approvals()
    denied = await approvals.apply(desk.signal(ticket, "deny"))
    late = await approvals.apply(desk.signal(ticket))
    unknown = await approvals.apply(desk.signal(opening(tenant=TENANT)))  # type: ignore[arg-type]  # never opened

    assert (True, True, True) == (denied, late, unknown)
    assert State.DENIED is await desk.state(ticket)
    assert [State.DENIED] == [one.state for one in desk.told]
    assert [] == desk.recorded


async def test_a_forged_one_is_kept_by_control_and_recorded_once(desk: Desk) -> None:
    ticket, approvals = await desk.opened(), desk.approvals()
    other = await desk.store.open(
        opening(tenant=TENANT, binding="b1:k:other", subject="b1:s:other", at_ms=NOW_MS),
        now_ms=NOW_MS,
    )
    signals = [
        desk.signal(ticket, binding=other.binding),
        desk.signal(ticket, escalation=other.id),
        desk.signal(ticket, header={"typ": "JWT"}),
    ]
    answers = [await approvals.apply(one) for one in (*signals, *signals)]

    assert {False} == set(answers)
    assert ["binding", "escalation", "header"] == desk.recorded
    assert State.PENDING is await desk.state(ticket)


async def test_a_store_that_is_away_for_a_while_loses_no_decision(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    ticket, approvals = await desk.opened(), desk.approvals()
    desk.away = 3
    signal = desk.signal(ticket)
    approvals.arrived(signal)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(approvals.run())
        await desk.news.wait()
        running.cancel()

    assert [signal.signal_id] == desk.acknowledged
    assert State.APPROVED is await desk.state(ticket)
