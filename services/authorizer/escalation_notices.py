"""Which tickets control has to hear of, until it says that it has kept what it heard.

Each opening and each change goes up until control says that it is kept: at once, on every new
stream, and again after a while. What is unkept survives in the ticket store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from services.authorizer.tickets.protocol import StoreUnavailable, TicketStore
from services.authorizer.tickets.ticket import Ticket

#: What control has not kept by then is said again, and so is what another replica did not get told.
AGAIN_AFTER_MS: Final = 10_000


class EscalationNotices:
    """`send` puts a ticket on the living link, or loses it: `unkept` has it still."""

    def __init__(self, store: TicketStore) -> None:
        self._store = store
        #: The newest of each that was told and not kept, or lives.
        self._told: dict[str, Ticket] = {}
        self._kept: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.send: Callable[[Ticket], None] = _nobody

    def changed(self, ticket: Ticket) -> None:
        """Tells control of the newest change."""
        self._told[ticket.id] = ticket
        self.send(ticket)

    async def unkept(self) -> list[Ticket]:
        """For a new stream: all that control has not said it kept. Raises StoreUnavailable."""
        waiting = [
            ticket
            for ticket in await self._store.unsettled()
            if ticket.kept_version < ticket.version
        ]
        self._told |= {ticket.id: ticket for ticket in waiting}
        return waiting

    def again(self, unsettled: list[Ticket], *, now_ms: int) -> None:
        """Says once more what has waited for long."""
        for ticket in unsettled:
            late = now_ms - ticket.changed_at_ms > AGAIN_AFTER_MS
            if late and ticket.kept_version < ticket.version:
                self.changed(ticket)

    def kept(self, escalation: str, version: int) -> None:
        """Control has stored it."""
        self._kept.put_nowait((escalation, version))

    async def run(self) -> None:
        """Marks what is kept. A mark that is lost only means that it will be told again."""
        while True:
            escalation, version = await self._kept.get()
            told = self._told.get(escalation)
            if told is None:  # never told, or settled
                continue
            with suppress(StoreUnavailable):
                await self._store.settle(told.tenant, told.id, kept=version)
            if version >= told.version and not told.live and self._told.get(escalation) is told:
                del self._told[escalation]


def _nobody(_: object) -> None:
    """Where no link is open yet."""
