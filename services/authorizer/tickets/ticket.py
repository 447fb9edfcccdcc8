"""A call that waits for a person: the states of its ticket and what may follow what (core.md 9).

Pure: each rule takes a ticket and the time and gives the ticket that follows. Which tickets there
are, and that a change is on the disk before anybody hears of it, is the stores' business; what a
state means for a call is escalations.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NewType, assert_never

import msgspec
from msgspec import Struct

from services.common.ids import AgentId, TenantId

#: UUIDv7; the escalation's id everywhere.
TicketId = NewType("TicketId", str)

MAX_USES: Final = 20
MAX_EXECUTE_MS: Final = 24 * 3_600_000
#: A grant, an approval of more than one use, ends sooner.
MAX_GRANT_MS: Final = 3_600_000
#: A clock so far behind what was journalled before says nothing about what is too late.
CLOCK_TOLERANCE_MS: Final = 300_000
PENDING_PER_AGENT: Final = 20
PENDING_PER_TENANT: Final = 500
#: An ended ticket goes on answering its binding, so that a retry is no new question to people.
DENIED_SPEAKS_MS: Final = 300_000
ENDED_SPEAKS_MS: Final = 60_000
#: An ended ticket answers its id this long, and there are at most so many of them.
KEPT_MS: Final = 24 * 3_600_000
KEPT_MAX: Final = 10_000


class State(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    CONSUMED = "consumed"
    DENIED = "denied"
    EXPIRED = "expired"  # nobody decided in time
    LAPSED = "lapsed"  # nobody used the approval in time
    CANCELLED = "cancelled"
    REVOKED = "revoked"
    SUPERSEDED = "superseded"


LIVE: Final = frozenset({State.PENDING, State.APPROVED})


class Opening(Struct, frozen=True, kw_only=True):
    """What is asked, and for how long; nothing of it changes later. Never a payload."""

    id: TicketId
    tenant: TenantId
    agent: AgentId
    agent_name: str
    agent_class: str
    #: Empty without a requester.
    requester_id: str
    requester_verified: bool
    server: str
    tool: str
    method: str
    action: str
    category: str
    resource: str
    resource_kind: str
    #: Sorted; an approval covers these and no other.
    codes: tuple[str, ...]
    reason: str
    policies: tuple[str, ...]
    #: JSON of the envelope's features.
    features: bytes
    finding_tags: tuple[str, ...]
    #: binding.binding and binding.subject of the call.
    binding: str
    subject: str
    policy_revision: str
    #: Empty where nothing is pinned.
    schema_hash: str
    quorum: int
    tier: str
    opened_at_ms: int
    decide_by_ms: int
    execute_for_s: int


class Ticket(Opening, frozen=True, kw_only=True):
    state: State = State.PENDING
    #: Rises by one with each change; 0 is the opening.
    version: int = 0
    changed_at_ms: int
    #: Meaningful once approved.
    execute_by_ms: int = 0
    uses_left: int = 0
    #: Newest versions that control has stored and that the outbox holds a record of; -1: none.
    kept_version: int = -1
    recorded_version: int = -1

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def used(self) -> bool:
        """Whether a use was taken from it last: a grant stays approved while others are left."""
        return self.state is State.CONSUMED or (self.state is State.APPROVED and self.version > 1)

    @property
    def settled(self) -> bool:
        """Whether control and the records know all of it."""
        return min(self.kept_version, self.recorded_version) >= self.version


class Verdict(StrEnum):
    APPROVE = "approve"
    DENY = "deny"
    REVOKE = "revoke"
    CANCEL = "cancel"


class Decided(Struct, frozen=True, kw_only=True):
    """What people decided, its signature checked. Raises ValueError for uses out of bounds."""

    binding: str
    verdict: Verdict
    #: 1 is once; more is a grant. Only an approval has a meaning for these two.
    uses: int = 1
    execute_by_ms: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.uses <= MAX_USES:
            raise ValueError("uses out of bounds")


class Refused(StrEnum):
    """Why nothing was consumed."""

    UNKNOWN = "unknown"  # no such ticket of the tenant, or not of this binding
    NOT_APPROVED = "not_approved"  # pending, ended or used up
    LATE = "late"  # its time to execute is over; it is lapsed now
    CLOCK_SUSPECT = "clock_suspect"  # it stays approved, and counts as expired meanwhile


def opened(opening: Opening) -> Ticket:
    fields = {name: getattr(opening, name) for name in Opening.__struct_fields__}
    return Ticket(**fields, changed_at_ms=opening.opened_at_ms)


def aged(ticket: Ticket, now_ms: int) -> Ticket:
    """The ticket as the clocks have it: unchanged, expired or lapsed."""
    match ticket.state:
        case State.PENDING if now_ms > ticket.decide_by_ms:
            return _next(ticket, State.EXPIRED, now_ms)
        case State.APPROVED if now_ms > ticket.execute_by_ms:
            return _next(ticket, State.LAPSED, now_ms)
        case _:
            return ticket


def decided(ticket: Ticket, decision: Decided, now_ms: int) -> Ticket:
    """Unchanged where the decision comes too late or says nothing new. A refusal ends what lives
    in any case, so that one that overtook its approval is not undone by it.
    """
    current = aged(ticket, now_ms)
    if current.binding != decision.binding or not current.live:
        return current
    match decision.verdict:
        case Verdict.APPROVE:
            return _approved(current, decision, now_ms)
        case Verdict.DENY | Verdict.REVOKE:
            ended = State.DENIED if current.state is State.PENDING else State.REVOKED
        case Verdict.CANCEL:
            ended = State.CANCELLED if current.state is State.PENDING else State.REVOKED
        case _:
            assert_never(decision.verdict)
    return _next(current, ended, now_ms)


def consumed(ticket: Ticket, *, binding: str, now_ms: int, mark_ms: int) -> Ticket | Refused:
    """One use fewer, the last one ends it. `mark_ms` is the newest time of the store's journal.

    1. the binding 2. approved 3. a clock to be believed 4. in time.
    """
    if ticket.binding != binding:  # 1
        return Refused.UNKNOWN
    if ticket.state is not State.APPROVED or ticket.uses_left < 1:  # 2
        return Refused.NOT_APPROVED
    if clock_suspect(now_ms, mark_ms):  # 3
        return Refused.CLOCK_SUSPECT
    if now_ms > ticket.execute_by_ms:  # 4
        return Refused.LATE
    left = ticket.uses_left - 1
    return _next(ticket, State.APPROVED if left else State.CONSUMED, now_ms, uses_left=left)


def cancelled(ticket: Ticket, now_ms: int) -> Ticket:
    """By the agent's side: only while nobody has decided."""
    current = aged(ticket, now_ms)
    if current.state is not State.PENDING:
        return current
    return _next(current, State.CANCELLED, now_ms)


def superseded(ticket: Ticket, now_ms: int) -> Ticket:
    current = aged(ticket, now_ms)
    return _next(current, State.SUPERSEDED, now_ms) if current.live else current


def lapsed(ticket: Ticket, now_ms: int) -> Ticket:
    """An approval that cannot be relied on any more, whatever its clock says."""
    return _next(ticket, State.LAPSED, now_ms) if ticket.state is State.APPROVED else ticket


def clock_suspect(now_ms: int, mark_ms: int) -> bool:
    return mark_ms - now_ms > CLOCK_TOLERANCE_MS


def speaks(ticket: Ticket, now_ms: int) -> bool:
    """Whether a call of this binding is answered by this ticket, and opens no other."""
    match ticket.state:
        case State.PENDING | State.APPROVED:
            return True
        case State.DENIED:
            until = max(ticket.decide_by_ms, ticket.changed_at_ms + DENIED_SPEAKS_MS)
            return now_ms <= until
        case State.EXPIRED | State.LAPSED | State.CANCELLED | State.REVOKED:
            return now_ms <= ticket.changed_at_ms + ENDED_SPEAKS_MS
        case State.CONSUMED | State.SUPERSEDED:
            return False
        case _:
            assert_never(ticket.state)


def stale(ticket: Ticket, opening: Opening) -> bool:
    """Whether `opening`, of the same subject, asks under another policy or tool definition."""
    return ticket.live and (
        ticket.policy_revision != opening.policy_revision
        or ticket.schema_hash != opening.schema_hash
    )


def forgotten(ended: Iterable[Ticket], now_ms: int) -> list[Ticket]:
    """Which of the ended tickets need not be kept: old, silent and told; beyond the bound, the
    oldest in any case, and those that answer nothing any more before those that do: a denial is
    not made forgotten by asking and giving up again and again.
    """
    newest = sorted(
        ended,
        key=lambda ticket: (speaks(ticket, now_ms), ticket.changed_at_ms),
        reverse=True,
    )
    return newest[KEPT_MAX:] + [
        ticket
        for ticket in newest[:KEPT_MAX]
        if now_ms > ticket.changed_at_ms + KEPT_MS and ticket.settled and not speaks(ticket, now_ms)
    ]


def marked(ticket: Ticket, *, kept: int | None, recorded: int | None) -> Ticket:
    """Not a change of the ticket: its version stays. A mark never goes back nor ahead."""
    return msgspec.structs.replace(
        ticket,
        kept_version=_forward(ticket.kept_version, kept, ticket.version),
        recorded_version=_forward(ticket.recorded_version, recorded, ticket.version),
    )


def _forward(held: int, told: int | None, version: int) -> int:
    return held if told is None else max(held, min(told, version))


def _approved(ticket: Ticket, decision: Decided, now_ms: int) -> Ticket:
    """Only what is pending; the time to execute is bounded by our clock, whatever was signed."""
    if ticket.state is not State.PENDING:
        return ticket
    longest = MAX_GRANT_MS if decision.uses > 1 else MAX_EXECUTE_MS
    execute_by = min(decision.execute_by_ms, now_ms + longest)
    return _next(ticket, State.APPROVED, now_ms, uses_left=decision.uses, execute_by_ms=execute_by)


def _next(ticket: Ticket, state: State, now_ms: int, **changed: int) -> Ticket:
    return msgspec.structs.replace(
        ticket,
        state=state,
        version=ticket.version + 1,
        changed_at_ms=now_ms,
        **({"uses_left": 0} | changed if state not in LIVE else changed),
    )
