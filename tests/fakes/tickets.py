"""Openings, decisions and listeners for tests of what waits for people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec

from services.authorizer.tickets.ticket import Decided, Opening, Ticket, TicketId, Verdict
from services.common.ids import AgentId, TenantId, uuid7

TENANT = TenantId("0192aaaa-0000-7000-8000-000000000001")
OTHER_TENANT = TenantId("0192aaaa-0000-7000-8000-000000000002")
AGENT = AgentId("0192bbbb-0000-7000-8000-000000000001")
OTHER_AGENT = AgentId("0192bbbb-0000-7000-8000-000000000002")
#: 2026-01-01T00:00:00Z
START_MS = 1_767_225_600_000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS

_OPENING = Opening(
    id=TicketId(""),
    tenant=TENANT,
    agent=AGENT,
    agent_name="builder",
    agent_class="standard",
    requester_id="",
    requester_verified=False,
    server="git",
    tool="git_commit",
    method="tools/call",
    action="write",
    category="",
    resource="/repo",
    resource_kind="path",
    codes=("policy",),
    reason="commits are looked at",
    policies=("behavry.tenant.commits",),
    features=b'{"leaf_count":1}',
    finding_tags=(),
    binding="b1:k:one",
    subject="b1:s:one",
    policy_revision="r1",
    schema_hash="sha256:aa",
    quorum=1,
    tier="low",
    opened_at_ms=START_MS,
    decide_by_ms=START_MS + HOUR_MS,
    execute_for_s=900,
)


def opening(*, at_ms: int = START_MS, decide_in_ms: int = HOUR_MS, **changed: Any) -> Opening:
    """A new question each time; the same binding unless told otherwise."""
    changed = {
        "id": TicketId(uuid7(at_ms * 1_000_000)),
        "opened_at_ms": at_ms,
        "decide_by_ms": at_ms + decide_in_ms,
    } | changed
    return msgspec.structs.replace(_OPENING, **changed)


_numbers = count()


def another(**changed: Any) -> Opening:
    """An opening of a binding and subject that no other has."""
    number = next(_numbers)
    return opening(**{"binding": f"b1:k:{number}", "subject": f"b1:s:{number}"} | changed)


def approval(
    ticket: Ticket, *, at_ms: int = START_MS, uses: int = 1, execute_in_ms: int = 15 * MINUTE_MS
) -> Decided:
    return Decided(
        binding=ticket.binding,
        verdict=Verdict.APPROVE,
        uses=uses,
        execute_by_ms=at_ms + execute_in_ms,
    )


def refusal(ticket: Ticket, verdict: Verdict = Verdict.DENY) -> Decided:
    return Decided(binding=ticket.binding, verdict=verdict)


@dataclass(slots=True)
class Heard:
    """A listener that keeps what it was told."""

    changes: list[tuple[Ticket, bool]] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, ticket: Ticket, here: bool) -> None:
        self.changes.append((ticket, here))
        self._more.set()

    def states(self) -> list[str]:
        return [ticket.state.value for ticket, _ in self.changes]

    async def until(self, happened: Callable[[list[tuple[Ticket, bool]]], bool]) -> None:
        async with asyncio.timeout(5):
            while not happened(self.changes):
                self._more.clear()
                await self._more.wait()

    async def hear(self, *states: str) -> list[Ticket]:
        """Waits for as many changes as there are states, and tells the tickets; in order."""
        await self.until(lambda changes: len(changes) >= len(states))
        assert list(states) == self.states()
        return [ticket for ticket, _ in self.changes]
