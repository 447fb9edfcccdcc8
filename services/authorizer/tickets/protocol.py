"""What a store of tickets promises, whether its journal is a file or a Valkey.

Every change is durable before the call that made it returns, and made by compare-and-set: of
several that ask at once, in one process or in several, one gets the ticket that follows. Raises
StoreUnavailable where it cannot promise that; then nothing may be taken as opened, decided or
consumed (a consumption whose answer was lost is spent, and was not used). Times are Unix
milliseconds of the caller's wall clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from services.authorizer.tickets.ticket import Decided, Opening, Refused, Ticket, TicketId
from services.common.ids import AgentId, TenantId


class StoreUnavailable(Exception):
    """The journal cannot be written or believed. The message never holds a ticket's content."""


class TooManyPending(Exception):
    def __init__(self, scope: Literal["agent", "tenant"]) -> None:
        super().__init__(f"too many escalations of the {scope} are pending")
        self.scope = scope


#: Told of each opening and change soon after it is durable, never before; must not block nor
#: raise. `here` is whether this process made it: who made it writes the record, everybody wakes.
#: After a crash some may be missing: `unsettled` has them.
Listener = Callable[[Ticket, bool], None]


class TicketStore(Protocol):
    def on_change(self, listener: Listener) -> None: ...

    async def open(self, opening: Opening, *, now_ms: int) -> Ticket:
        """The ticket that speaks for the binding (by_binding), else a new one. Live ones of the
        subject under another policy or tool definition are superseded by the new one. Raises
        TooManyPending.
        """

    async def get(self, tenant: TenantId, id: TicketId) -> Ticket | None:
        """As it was last written: its clocks may have passed since `expire`."""

    async def by_binding(self, tenant: TenantId, binding: str, *, now_ms: int) -> Ticket | None:
        """The newest of the binding while it speaks: live, or ended not long ago."""

    async def decide(
        self, tenant: TenantId, id: TicketId, decision: Decided, *, now_ms: int
    ) -> Ticket | None:
        """The ticket now, changed or not; None where it is unknown or of another binding. Deciding
        again what is decided changes nothing.
        """

    async def consume(
        self, tenant: TenantId, id: TicketId, *, binding: str, now_ms: int
    ) -> Ticket | Refused:
        """The ticket after one use was taken from it, durably: who gets it may execute once."""

    async def cancel(
        self, tenant: TenantId, id: TicketId, *, agent: AgentId, now_ms: int
    ) -> Ticket | None:
        """The ticket now: cancelled if it was pending. None where it is not this agent's."""

    async def supersede(self, tenant: TenantId, *, keep_revision: str, now_ms: int) -> list[Ticket]:
        """Ends the tenant's live tickets of other policy revisions; answers those it ended."""

    async def expire(self, *, now_ms: int) -> list[Ticket]:
        """Ends what is too late in all tenants and answers it; forgets what ended long ago. To be
        called every second or so; also how a store that broke finds out that it works again.
        """

    async def live(self) -> list[Ticket]:
        """Pending and approved, of all tenants."""

    async def unsettled(self) -> list[Ticket]:
        """Live or ended, with a version that control has not kept or no record tells of."""

    async def settle(
        self,
        tenant: TenantId,
        id: TicketId,
        *,
        kept: int | None = None,
        recorded: int | None = None,
    ) -> None:
        """Control has stored version `kept`, the outbox holds a record of `recorded`. May be lost
        by a crash, which only makes both be told again.
        """
