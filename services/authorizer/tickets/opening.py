"""What asking people changes: the ticket that answers, and those that end by it. Pure; both stores
make the plan of what they hold and then write it as one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from services.authorizer.tickets.protocol import TooManyPending
from services.authorizer.tickets.ticket import (
    PENDING_PER_AGENT,
    PENDING_PER_TENANT,
    Opening,
    State,
    Ticket,
    aged,
    opened,
    speaks,
    stale,
    superseded,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a store holds around a binding."""

    #: Of this very binding.
    newest: Ticket | None
    #: Live ones of its subject, the newest perhaps among them.
    of_subject: Collection[Ticket]
    pending_of_agent: int
    pending_of_tenant: int


@dataclass(frozen=True, slots=True)
class Plan:
    answer: Ticket
    #: In order; holds the answer where that is new or changed.
    writes: list[Ticket]


def plan(opening: Opening, held: Held, now_ms: int) -> Plan:
    """1. the one that speaks for the binding 2. who ends by the new one 3. room 4. the new one.

    Raises TooManyPending.
    """
    newest = None if held.newest is None else aged(held.newest, now_ms)
    changed = [newest] if newest is not None and newest is not held.newest else []
    if newest is not None and speaks(newest, now_ms):  # 1
        return Plan(newest, changed)
    changed += [  # 2
        superseded(ticket, now_ms)
        for ticket in held.of_subject
        if stale(ticket, opening) and ticket.binding != opening.binding
    ]
    before = [ticket for ticket in (*held.of_subject, held.newest) if ticket is not None]
    pending = {ticket.id for ticket in before if ticket.state is State.PENDING}
    freed = len(pending.intersection(ticket.id for ticket in changed))
    if held.pending_of_agent - freed >= PENDING_PER_AGENT:  # 3
        raise TooManyPending("agent")
    if held.pending_of_tenant - freed >= PENDING_PER_TENANT:
        raise TooManyPending("tenant")
    new = opened(opening)  # 4
    return Plan(new, [*changed, new])
