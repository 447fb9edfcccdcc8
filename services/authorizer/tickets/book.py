"""Tickets in memory, found by id, binding and subject, and counted. Knows no rule and no disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from services.authorizer.tickets.opening import Held
from services.authorizer.tickets.ticket import Opening, State, Ticket, TicketId
from services.common.ids import AgentId, TenantId

Key = tuple[TenantId, TicketId]
_Group = TypeVar("_Group")


def key_of(ticket: Ticket) -> Key:
    return ticket.tenant, ticket.id


class Book:
    __slots__ = ("_all", "_live", "_newest", "_of_agent", "_of_subject", "_of_tenant", "mark_ms")

    def __init__(self) -> None:
        self._all: dict[Key, Ticket] = {}  # in the order of opening
        self._live: set[Key] = set()
        self._newest: dict[tuple[TenantId, str], Key] = {}
        self._of_subject: defaultdict[tuple[TenantId, str], set[Key]] = defaultdict(set)
        self._of_agent: defaultdict[tuple[TenantId, AgentId], set[Key]] = defaultdict(set)
        self._of_tenant: defaultdict[TenantId, set[Key]] = defaultdict(set)
        #: The newest time that anything in it was changed at.
        self.mark_ms = 0

    @classmethod
    def of(cls, tickets: Iterable[Ticket], *, mark_ms: int) -> Self:
        """`tickets` in the order of opening."""
        book = cls()
        for ticket in tickets:
            book.put(ticket)
        book.mark_ms = max(book.mark_ms, mark_ms)
        return book

    def put(self, ticket: Ticket) -> None:
        """A new one, or another version of one that is here."""
        key = key_of(ticket)
        if key not in self._all:
            self._newest[ticket.tenant, ticket.binding] = key
        self._all[key] = ticket
        self.mark_ms = max(self.mark_ms, ticket.changed_at_ms)
        if ticket.live:
            self._live.add(key)
        else:
            self._live.discard(key)
        _belongs(self._of_subject, (ticket.tenant, ticket.subject), key, member=ticket.live)
        pending = ticket.state is State.PENDING
        _belongs(self._of_agent, (ticket.tenant, ticket.agent), key, member=pending)
        _belongs(self._of_tenant, ticket.tenant, key, member=pending)

    def forget(self, key: Key) -> None:
        """An ended one."""
        ticket = self._all.pop(key)
        if self._newest.get((ticket.tenant, ticket.binding)) == key:
            del self._newest[ticket.tenant, ticket.binding]

    def get(self, key: Key) -> Ticket | None:
        return self._all.get(key)

    def by_binding(self, tenant: TenantId, binding: str) -> Ticket | None:
        key = self._newest.get((tenant, binding))
        return None if key is None else self._all[key]

    def around(self, opening: Opening) -> Held:
        tenant = opening.tenant
        of_subject = self._of_subject.get((tenant, opening.subject), set())
        return Held(
            newest=self.by_binding(tenant, opening.binding),
            of_subject=[self._all[key] for key in of_subject],
            pending_of_agent=len(self._of_agent.get((tenant, opening.agent), ())),
            pending_of_tenant=len(self._of_tenant.get(tenant, ())),
        )

    def live(self) -> list[Ticket]:
        return [self._all[key] for key in self._live]

    def ended(self) -> Iterator[Ticket]:
        return (ticket for ticket in self._all.values() if not ticket.live)

    def __iter__(self) -> Iterator[Ticket]:
        """In the order of opening."""
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)


def _belongs(sets: defaultdict[_Group, set[Key]], group: _Group, key: Key, *, member: bool) -> None:
    if member:
        sets[group].add(key)
    elif group in sets:
        sets[group].discard(key)
        if not sets[group]:
            del sets[group]
