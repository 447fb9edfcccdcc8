"""Takes what people decided about an escalation to its ticket.

Decides whether control may forget a decision: one that was applied or can never be applied any
more is acknowledged, one that was not really made by people is not. Whether it was is
signed_decision.py's question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from services.authorizer.signed_decision import (
    DecisionRefused,
    Expected,
    SignedDecision,
    verify,
)
from services.authorizer.tickets.protocol import StoreUnavailable, TicketStore
from services.authorizer.tickets.ticket import Decided, Ticket, TicketId, Verdict
from services.common.clock import Clock
from services.common.ids import PlaneId, TenantId, is_uuid
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log

RETRY_S: Final = 1.0
MAX_WAITING: Final = 10_000
#: Refused signals that are remembered, so that a replay is not recorded again and again.
MAX_REMEMBERED: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """As it came over the link: nothing of it is believed yet."""

    signal_id: str
    tenant: str
    escalation: str
    token: str


class Journal(Protocol):
    async def escalation_refused(self, reason: str, *, tenant: str, escalation: str) -> None:
        """Records that something that looked like a decision was none."""


class Approvals:
    """`acknowledge` and `tell` are the link's: control forgets the signal; control hears how the
    ticket stands, where that is not what was decided.
    """

    def __init__(
        self,
        *,
        store: TicketStore,
        keys: Mapping[str, dict[str, Any]],
        plane_id: PlaneId,
        journal: Journal,
        clock: Clock,
        counters: Counters,
        log: Log,
    ) -> None:
        self._store = store
        self._keys = keys
        self._plane_id = plane_id
        self._journal = journal
        self._clock = clock
        self._log = log
        self._refused = counters.counter("authorizer.escalations.refused")
        self._waiting: asyncio.Queue[Signal] = asyncio.Queue(MAX_WAITING)
        self._remembered: dict[str, None] = {}
        self.acknowledge: Callable[[str], None] = _nobody
        self.tell: Callable[[Ticket], None] = _nobody

    def arrived(self, signal: Signal) -> None:
        """Never waits: more than fit are left to control's replay."""
        if not self._waiting.full():
            self._waiting.put_nowait(signal)

    async def run(self) -> None:
        """One after the other, in the order in which control sent them."""
        while True:
            signal = await self._waiting.get()
            if await self._applied(signal):
                self.acknowledge(signal.signal_id)

    async def apply(self, signal: Signal) -> bool:
        """Whether control may forget it. Raises StoreUnavailable; then it is to be tried again.

        1. made by people, for this escalation  2. of a ticket that there is  3. of its binding
        4. by the ticket's own rules.
        """
        now_ms = self._clock.now_ns() // 1_000_000
        try:
            said = self._verified(signal, now_ms)  # 1
        except DecisionRefused as refused:
            await self._refuse(signal, refused.reason)
            return False
        tenant, ticket = TenantId(said.tenant), TicketId(said.escalation)
        before = await self._store.get(tenant, ticket)
        if before is None:  # 2
            self._log.warning("escalation_decision_late", escalation=ticket, state="unknown")
            return True
        if before.binding != said.binding:  # 3
            await self._refuse(signal, "binding")
            return False
        after = await self._store.decide(tenant, ticket, _decided(said), now_ms=now_ms)  # 4
        if after is not None and after.version == before.version:
            self._log.info("escalation_decision_late", escalation=ticket, state=after.state.value)
            self.tell(after)
        return True

    async def _applied(self, signal: Signal) -> bool:
        while True:
            try:
                return await self.apply(signal)
            except StoreUnavailable:
                await asyncio.sleep(RETRY_S)

    def _verified(self, signal: Signal, now_ms: int) -> SignedDecision:
        if not is_uuid(signal.tenant) or not is_uuid(signal.escalation):
            raise DecisionRefused("malformed")
        expected = Expected(
            plane=self._plane_id, tenant=signal.tenant, escalation=signal.escalation
        )
        return verify(signal.token, expected, keys=self._keys, now_ms=now_ms)

    async def _refuse(self, signal: Signal, reason: str) -> None:
        if signal.signal_id in self._remembered:
            return
        self._remembered[signal.signal_id] = None
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._refused.value += 1
        self._log.error("escalation_decision_refused", reason=reason)
        await self._journal.escalation_refused(
            reason, tenant=signal.tenant, escalation=signal.escalation
        )


def _nobody(_: object) -> None:
    """Where no link listens yet."""


def _decided(said: SignedDecision) -> Decided:
    return Decided(
        binding=said.binding,
        verdict=Verdict(said.verdict),
        uses=max(1, said.uses),
        execute_by_ms=said.execute_by_ms,
    )
