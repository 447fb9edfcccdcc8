"""What happens to tickets without anybody asking: their clocks run out, a new policy ends them,
proxies and control hear of each change, each change is recorded.

Decides when, and by whom; the rules of the states are tickets/ticket.py's.
"""

from __future__ import annotations

import asyncio
import heapq
from contextlib import suppress
from typing import Final, Protocol

from services.authorizer.active import ActivePolicy
from services.authorizer.escalation_notices import EscalationNotices
from services.authorizer.tickets.protocol import StoreUnavailable, TicketStore
from services.authorizer.tickets.ticket import State, Ticket
from services.common.clock import Clock
from services.common.ids import TenantId
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log

#: The longest time between two looks at the clocks: the wall clock may jump.
LOOK_S: Final = 1.0
#: How often what control or the records do not have is looked for.
AGAIN_S: Final = 15.0
#: What is younger is still being recorded by whoever changed it.
RECORD_AGAIN_MS: Final = 10_000


class Journal(Protocol):
    async def escalation(self, ticket: Ticket) -> None:
        """Records that the ticket came into the state that it has."""


class Proxies(Protocol):
    def ticket_changed(self, *, tenant: str, escalation: str, state: str) -> None: ...


class EscalationWatch:
    def __init__(
        self,
        *,
        store: TicketStore,
        active: ActivePolicy,
        proxies: Proxies,
        notices: EscalationNotices,
        journal: Journal,
        clock: Clock,
        counters: Counters,
        log: Log,
    ) -> None:
        self._store = store
        self._active = active
        self._proxies = proxies
        self._notices = notices
        self._journal = journal
        self._clock = clock
        self._opened = counters.counter("authorizer.escalations.opened")
        self._log = log
        self._due: list[tuple[int, str]] = []
        self._sooner = asyncio.Event()
        self._unrecorded: asyncio.Queue[Ticket] = asyncio.Queue()
        store.on_change(self._changed)

    async def run_clocks(self) -> None:
        """Ends what is too late at its time. A store that is away is asked again and again."""
        down = False
        for ticket in await self._restored():
            self._note_clock(ticket)
        while True:
            self._sooner.clear()
            now_ms = self._now_ms()
            try:
                await self._store.expire(now_ms=now_ms)
                if down:
                    self._log.info("escalation_store", up=True)
                down = False
            except StoreUnavailable:
                if not down:
                    self._log.error("escalation_store", up=False, alert="high")
                down = True
            while self._due and self._due[0][0] < now_ms:
                heapq.heappop(self._due)
            try:
                await asyncio.wait_for(self._sooner.wait(), self._pause_s())
            except TimeoutError:
                continue

    async def run_policies(self) -> None:
        """A tenant's other policy ends what was asked under the one before, at once."""
        version, known = -1, dict[str, str]()
        while True:
            version = await self._active.next_version(version)
            bundle = self._active.bundle
            if bundle is None:
                continue
            tenants = bundle.state.tenants
            revisions = {name: tenant.policy_revision for name, tenant in tenants.items()}
            gone = dict.fromkeys(known.keys() - revisions.keys(), "")
            for tenant, revision in (revisions | gone).items():
                if known.get(tenant) != revision:
                    await self._supersede(TenantId(tenant), revision)
            known = revisions

    async def run_records(self) -> None:
        """Records each change that this process made, in order."""
        while True:
            ticket = await self._unrecorded.get()
            await self._record(ticket)

    async def run_again(self) -> None:
        """What a crash, a lost message or a store that was away has left behind."""
        while True:
            with suppress(StoreUnavailable):  # run_clocks says that it is away
                unsettled = await self._store.unsettled()
                now_ms = self._now_ms()
                for ticket in unsettled:
                    late = now_ms - ticket.changed_at_ms > RECORD_AGAIN_MS
                    if late and ticket.recorded_version < ticket.version:
                        await self._record(ticket)
                self._notices.again(unsettled, now_ms=now_ms)
            await asyncio.sleep(AGAIN_S)

    def _changed(self, ticket: Ticket, here: bool) -> None:  # noqa: FBT001  # Listener
        if ticket.version > 0:
            state = State.CONSUMED if ticket.used else ticket.state
            self._proxies.ticket_changed(
                tenant=ticket.tenant, escalation=ticket.id, state=state.value
            )
        self._note_clock(ticket)
        if here:
            self._opened.value += ticket.version == 0
            self._notices.changed(ticket)
            self._unrecorded.put_nowait(ticket)

    def _note_clock(self, ticket: Ticket) -> None:
        match ticket.state:
            case State.PENDING:
                due = ticket.decide_by_ms
            case State.APPROVED:
                due = ticket.execute_by_ms
            case _:
                return
        heapq.heappush(self._due, (due, ticket.id))
        if self._due[0][0] == due:
            self._sooner.set()

    def _pause_s(self) -> float:
        if not self._due:
            return LOOK_S
        # One more: a clock has passed once it is after its time, not at it.
        return min(LOOK_S, max(0.0, (self._due[0][0] + 1 - self._now_ms()) / 1000))

    async def _restored(self) -> list[Ticket]:
        while True:
            try:
                return await self._store.live()
            except StoreUnavailable:
                await asyncio.sleep(LOOK_S)

    async def _supersede(self, tenant: TenantId, revision: str) -> None:
        while True:
            try:
                await self._store.supersede(tenant, keep_revision=revision, now_ms=self._now_ms())
                return
            except StoreUnavailable:
                # Nothing is opened or used up meanwhile, so nothing of the old policy runs.
                await asyncio.sleep(LOOK_S)

    async def _record(self, ticket: Ticket) -> None:
        await self._journal.escalation(ticket)
        try:
            await self._store.settle(ticket.tenant, ticket.id, recorded=ticket.version)
        except StoreUnavailable:
            self._log.warning("escalation_mark_lost")  # it is recorded twice at worst

    def _now_ms(self) -> int:
        return self._clock.now_ns() // 1_000_000
