"""The ticket store of a plane with one authorizer: a book in memory, a journal file behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from services.authorizer.tickets.book import Book, Key
from services.authorizer.tickets.durable_book import DurableBook
from services.authorizer.tickets.opening import plan
from services.authorizer.tickets.protocol import Listener, StoreUnavailable
from services.authorizer.tickets.ticket import (
    KEPT_MAX,
    Decided,
    Opening,
    Refused,
    Ticket,
    TicketId,
    aged,
    cancelled,
    consumed,
    decided,
    forgotten,
    marked,
    speaks,
    superseded,
)
from services.common.ids import AgentId, TenantId
from services.common.outbox.files import DiskFiles, Files
from services.common.supervisor import Supervisor
from services.common.telemetry.logging import Log

_FORGET_EVERY_MS: Final = 60_000
_ROOM: Final = 1_000


class LocalTicketStore:
    """Made by local_ticket_store."""

    def __init__(self, book: DurableBook) -> None:
        self._book = book
        self._forget_at_ms = 0

    @property
    def broken(self) -> str | None:
        """Why it takes nothing now; None while it does."""
        return self._book.broken

    def on_change(self, listener: Listener) -> None:
        self._book.on_change(listener)

    async def open(self, opening: Opening, *, now_ms: int) -> Ticket:
        def decide(book: Book) -> tuple[Ticket, list[Ticket]]:
            planned = plan(opening, book.around(opening), now_ms)
            return planned.answer, planned.writes

        return await self._book.change(decide)

    async def get(self, tenant: TenantId, id: TicketId) -> Ticket | None:
        return await self._book.read(lambda book: book.get((tenant, id)))

    async def by_binding(self, tenant: TenantId, binding: str, *, now_ms: int) -> Ticket | None:
        found = await self._book.read(lambda book: book.by_binding(tenant, binding))
        return found if found is not None and speaks(found, now_ms) else None

    async def decide(
        self, tenant: TenantId, id: TicketId, decision: Decided, *, now_ms: int
    ) -> Ticket | None:
        def follow(ticket: Ticket) -> Ticket | None:
            known = ticket.binding == decision.binding
            return decided(ticket, decision, now_ms) if known else None

        return await self._follow((tenant, id), follow)

    async def consume(
        self, tenant: TenantId, id: TicketId, *, binding: str, now_ms: int
    ) -> Ticket | Refused:
        def decide(book: Book) -> tuple[Ticket | Refused, list[Ticket]]:
            ticket = book.get((tenant, id))
            if ticket is None:
                return Refused.UNKNOWN, []
            taken = consumed(ticket, binding=binding, now_ms=now_ms, mark_ms=book.mark_ms)
            if isinstance(taken, Ticket):
                return taken, [taken]
            return taken, [aged(ticket, now_ms)] if taken is Refused.LATE else []

        return await self._book.change(decide)

    async def cancel(
        self, tenant: TenantId, id: TicketId, *, agent: AgentId, now_ms: int
    ) -> Ticket | None:
        def follow(ticket: Ticket) -> Ticket | None:
            return cancelled(ticket, now_ms) if ticket.agent == agent else None

        return await self._follow((tenant, id), follow)

    async def supersede(self, tenant: TenantId, *, keep_revision: str, now_ms: int) -> list[Ticket]:
        def decide(book: Book) -> tuple[list[Ticket], list[Ticket]]:
            ended = [
                superseded(ticket, now_ms)
                for ticket in book.live()
                if ticket.tenant == tenant and ticket.policy_revision != keep_revision
            ]
            return ended, ended

        return await self._book.change(decide)

    async def expire(self, *, now_ms: int) -> list[Ticket]:
        def decide(book: Book) -> tuple[list[Ticket], list[Ticket]]:
            clocked = ((ticket, aged(ticket, now_ms)) for ticket in book.live())
            late = [after for before, after in clocked if after is not before]
            return late, late

        late = await self._book.change(decide)
        if now_ms >= self._forget_at_ms or len(self._book) > KEPT_MAX + _ROOM:
            self._forget_at_ms = now_ms + _FORGET_EVERY_MS
            self._book.forget(lambda ended: forgotten(ended, now_ms))
        return late

    async def live(self) -> list[Ticket]:
        return await self._book.read(lambda book: book.live())

    async def unsettled(self) -> list[Ticket]:
        return await self._book.read(lambda book: [ticket for ticket in book if not ticket.settled])

    async def settle(
        self,
        tenant: TenantId,
        id: TicketId,
        *,
        kept: int | None = None,
        recorded: int | None = None,
    ) -> None:
        def decide(book: Book) -> Ticket | None:
            ticket = book.get((tenant, id))
            after = None if ticket is None else marked(ticket, kept=kept, recorded=recorded)
            return after if after != ticket else None

        await self._book.mark(decide)

    async def _follow(self, key: Key, follow: Callable[[Ticket], Ticket | None]) -> Ticket | None:
        def decide(book: Book) -> tuple[Ticket | None, list[Ticket]]:
            ticket = book.get(key)
            after = None if ticket is None else follow(ticket)
            return after, [] if after is None or after is ticket else [after]

        return await self._book.change(decide)


@asynccontextmanager
async def local_ticket_store(
    directory: Path, log: Log, *, files: Files | None = None
) -> AsyncIterator[LocalTicketStore]:
    """Opens the journal in `directory` (made 0700). One that is damaged, or another process's, is
    logged and refused: the store then raises StoreUnavailable from each method, and tries again.
    """
    book = DurableBook(directory, files or DiskFiles(), log)
    with suppress(StoreUnavailable):
        await book.healthy()
    try:
        async with Supervisor(log) as tasks:
            tasks.spawn("ticket_writer", book.write_forever)
            yield LocalTicketStore(book)
    finally:
        await book.close()
