"""Who may decide an escalation, when it is decided, what an approval is worth (core.md 9). Pure.

Decides: who is eligible, the quorum that holds now, whether the password must be given again, what
votes add up to. Storing votes and signing what they settle are left to others. Refusals are raised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from services.control.problems import Refusal

Verdict = Literal["approve", "deny", "revoke", "cancel"]
#: How long a sign-in or step-up counts (control.md 4).
STEP_UP: Final = timedelta(minutes=5)
MAX_USES: Final = 20
MAX_MINUTES: Final = 60
MAX_QUORUM: Final = 5
SEVERE_TIERS: Final = frozenset({"high", "critical"})
#: What is noted with an approval that an exception made possible.
SOLE_OPERATOR: Final = "sole_operator"
QUORUM_REDUCED: Final = "quorum_reduced"
#: A plane's last word on a ticket.
FINAL: Final = frozenset(
    {"denied", "cancelled", "expired", "superseded", "consumed", "lapsed", "revoked"}
)
STATES: Final = frozenset({"pending", "approved"}) | FINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What the rules look at. `state` as it is now: a clock that has run out counts."""

    state: str
    quorum: int
    tier: str
    requester: str
    requester_verified: bool
    owner: str | None
    execute_for_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Circle:
    """The tenant's active people from analyst up, and whether a lone one may approve their own
    agent's calls.
    """

    people: Sequence[Person]
    sole_operator: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    user: str
    verdict: str
    uses: int
    execute_for_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an approval is worth: so many uses, for so long."""

    uses: int
    execute_for_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one ticket can be approved at this moment."""

    eligible: frozenset[str]
    quorum: int
    #: Exceptions in force; each demands a step-up and is recorded.
    flags: tuple[str, ...]
    step_up: bool


def rule_of(ticket: Ticket, circle: Circle) -> Rule:
    """1. never the verified requester  2. never the agent's owner, unless alone and the tenant
    allows it  3. the quorum, which a lone eligible person reaches alone.
    """
    others = {person.id for person in circle.people if not _is_requester(ticket, person)}  # 1
    eligible, flags = others - {ticket.owner}, []  # 2
    if others != eligible and len(circle.people) == 1 and circle.sole_operator:
        eligible = others
        flags.append(SOLE_OPERATOR)
    quorum = ticket.quorum  # 3
    if quorum > 1 and len(eligible) == 1:
        quorum = 1
        flags.append(QUORUM_REDUCED)
    return Rule(
        eligible=frozenset(eligible),
        quorum=quorum,
        flags=tuple(flags),
        step_up=bool(flags) or ticket.tier in SEVERE_TIERS,
    )


def check_approval(ticket: Ticket, rule: Rule, *, user: str, stepped_up: bool) -> None:
    """Raises ESCALATION_CLOSED, SELF_APPROVAL_FORBIDDEN or STEP_UP_REQUIRED, in this order."""
    _check_state(ticket, "pending")
    if user not in rule.eligible:
        raise Refusal(
            "SELF_APPROVAL_FORBIDDEN", "Who asked for a call, or owns its agent, cannot approve it."
        )
    if rule.step_up and not stepped_up:
        raise Refusal("STEP_UP_REQUIRED", "Give your password again first, then approve.")


def check_ending(ticket: Ticket, verdict: Verdict) -> None:
    """Denying and cancelling end what waits, revoking what was approved. Nobody is barred from
    saying no. Raises ESCALATION_CLOSED.
    """
    _check_state(ticket, "approved" if verdict == "revoke" else "pending")


def settled(votes: Sequence[Vote], rule: Rule) -> Literal["approve", "deny"] | None:
    """One deny ends it. Votes count while their givers may still give them."""
    if any(vote.verdict == "deny" for vote in votes):
        return "deny"
    approvals = [vote for vote in votes if vote.user in rule.eligible]
    return "approve" if len(approvals) >= rule.quorum else None


def approvers(votes: Sequence[Vote], rule: Rule) -> list[str]:
    return sorted(v.user for v in votes if v.verdict == "approve" and v.user in rule.eligible)


def terms(votes: Sequence[Vote], rule: Rule) -> Terms:
    """The narrowest of what the approvers granted."""
    counted = [v for v in votes if v.verdict == "approve" and v.user in rule.eligible]
    return Terms(
        uses=min(vote.uses for vote in counted),
        execute_for_s=min(vote.execute_for_s for vote in counted),
    )


def is_stepped_up(proven_at: datetime | None, now: datetime) -> bool:
    """Whether the password was given lately. A moment that lies ahead proves nothing."""
    return proven_at is not None and timedelta() <= now - proven_at <= STEP_UP


def state_after_plane(state: str, said: str) -> str:
    """What the plane said is what happened, except that it may not yet know of a decision that
    ended what it calls approved.
    """
    if said in FINAL:
        return said
    return said if (state, said) == ("pending", "approved") else state


def state_after(verdict: Verdict) -> str:
    return _AFTER[verdict]


_AFTER: Final[Mapping[Verdict, str]] = {
    "approve": "approved",
    "deny": "denied",
    "revoke": "revoked",
    "cancel": "cancelled",
}


def _is_requester(ticket: Ticket, person: Person) -> bool:
    wanted = ticket.requester.strip().casefold()
    named = {person.id.casefold(), person.name.casefold()}
    return ticket.requester_verified and wanted in named


def _check_state(ticket: Ticket, wanted: str) -> None:
    if ticket.state != wanted:
        raise Refusal("ESCALATION_CLOSED", f"It is {ticket.state}.", state=ticket.state)
