"""What a person does to an escalation, whichever door they came through: REST or the approval page.

Each act: 1. the row, locked  2. the rules  3. the vote or the end  4. where that settles it, the
signed decision that its plane will get  5. the record. All in one transaction; after it, links and
whoever tells people hear of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from services.common.ids import PlaneId
from services.control import escalations as rules
from services.control.api.context import Call, Change
from services.control.audit_records import change as changed
from services.control.escalations import Rule, Ticket, Verdict, Vote
from services.control.problems import not_found
from services.control.signed_decisions import Decision
from services.control.store import escalations as store
from services.control.store import users


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the approver gives. `execute_for_s` None: as long as the plane asked for."""

    uses: int = 1
    execute_for_s: int | None = None


async def look(call: Call, escalation: str) -> dict[str, Any]:
    """Raises NOT_FOUND."""
    async with call.read() as connection:
        row = await store.get(connection, escalation, call.now)
    if row is None:
        raise not_found("escalation")
    return row


async def approve(call: Call, escalation: str, grant: Grant, *, reason: str) -> dict[str, Any]:
    """The row after the vote: approved, or still pending while more people are needed."""
    now, user = call.now, call.principal.id
    async with call.change(desired=False) as change:
        row = await _locked(change, escalation, now)  # 1
        ticket = ticket_of(row)
        rule = rules.rule_of(ticket, row["circle"])
        rules.check_approval(ticket, rule, user=user, stepped_up=call.stepped_up)  # 2
        vote = Vote(
            user=user,
            verdict="approve",
            uses=grant.uses,
            execute_for_s=grant.execute_for_s or ticket.execute_for_s,
        )
        await _vote(call, change, escalation, vote, reason)  # 3
        votes = [*(v for v in votes_of(row) if v.user != user), vote]
        agreed = rules.approvers(votes, rule)
        if rules.settled(votes, rule) == "approve":
            terms = rules.terms(votes, rule)
            execute_by = now + timedelta(seconds=terms.execute_for_s)
            await store.approve(
                change.connection, escalation, uses=terms.uses, execute_by=execute_by, now=now
            )
            decision = _decision(
                call, row, "approve", agreed, uses=terms.uses, execute_by=execute_by
            )
            await _decide(call, change, decision, reason)  # 4
        after = await store.get(change.connection, escalation, now) or {}
        await _record(  # 5
            call,
            change,
            (row, after),
            "approve",
            reason,
            more={"votes": len(agreed), "quorum": rule.quorum, "uses": vote.uses,
                  "execute_for_s": vote.execute_for_s, "flags": list(rule.flags) or None},
        )  # fmt: skip
    call.control.signals.escalation()
    return after


async def end(call: Call, escalation: str, verdict: Verdict, *, reason: str) -> dict[str, Any]:
    """Denies or cancels what waits, revokes what was approved and is not used up."""
    now, user = call.now, call.principal.id
    async with call.change(desired=False) as change:
        row = await _locked(change, escalation, now)  # 1
        rules.check_ending(ticket_of(row), verdict)  # 2
        if verdict == "deny":
            vote = Vote(user=user, verdict="deny", uses=0, execute_for_s=0)
            await _vote(call, change, escalation, vote, reason)  # 3
        await store.end(change.connection, escalation, state=rules.state_after(verdict), now=now)
        await _decide(call, change, _decision(call, row, verdict, [user]), reason)  # 4
        after = await store.get(change.connection, escalation, now) or {}
        await _record(call, change, (row, after), verdict, reason)  # 5
    call.control.signals.escalation()
    return after


async def take_back(call: Call, change: Change, user: str) -> None:
    """Revokes what this person approved and nobody has used up, in somebody else's transaction."""
    now = call.now
    for escalation in await users.approved_by(change.connection, user, now):
        row = await _locked(change, escalation, now)
        if row["state"] != "approved":
            continue
        await store.end(change.connection, escalation, state=rules.state_after("revoke"), now=now)
        words = "Who approved it may not any more."
        await _decide(call, change, _decision(call, row, "revoke", [user]), words)
        after = await store.get(change.connection, escalation, now) or {}
        await _record(call, change, (row, after), "revoke", words)


def ticket_of(row: Mapping[str, Any]) -> Ticket:
    return Ticket(
        state=row["state"],
        quorum=row["quorum"],
        tier=row["tier"],
        requester=row["requester_id"],
        requester_verified=row["requester_verified"],
        owner=row["owner"],
        execute_for_s=row["execute_for_s"],
    )


def votes_of(row: Mapping[str, Any]) -> list[Vote]:
    return [
        Vote(
            user=vote["user_id"],
            verdict=vote["verdict"],
            uses=vote["uses"],
            execute_for_s=vote["execute_for_s"],
        )
        for vote in row["votes"]
    ]


def rule_of(row: Mapping[str, Any]) -> Rule:
    return rules.rule_of(ticket_of(row), row["circle"])


async def _locked(change: Change, escalation: str, now: datetime) -> dict[str, Any]:
    row = await store.get(change.connection, escalation, now, lock=True)
    if row is None:
        raise not_found("escalation")
    return row


async def _vote(call: Call, change: Change, escalation: str, vote: Vote, reason: str) -> None:
    await store.vote(
        change.connection,
        call.tenant,
        escalation,
        vote,
        reason=reason,
        step_up=call.stepped_up,
        now=call.now,
    )


def _decision(
    call: Call, row: Mapping[str, Any], verdict: Verdict, approvers: Sequence[str], **worth: Any
) -> Decision:
    """`worth`: an approval's uses and its end."""
    return Decision(
        plane=PlaneId(row["plane_id"]),
        tenant=call.tenant,
        escalation=row["id"],
        binding=row["binding"],
        verdict=verdict,
        decided_at=call.now,
        approvers=approvers,
        **worth,
    )


async def _decide(call: Call, change: Change, decision: Decision, reason: str) -> None:
    await store.decide(
        change.connection,
        call.tenant,
        id=call.control.new_id(),
        escalation=decision.escalation,
        plane=decision.plane,
        verdict=decision.verdict,
        approvers=decision.approvers,
        reason=reason,
        jws=call.control.decision_key.sign(decision),
        now=call.now,
    )


async def _record(
    call: Call,
    change: Change,
    rows: tuple[Mapping[str, Any], Mapping[str, Any]],
    verdict: Verdict,
    reason: str,
    *,
    more: Mapping[str, Any] | None = None,
) -> None:
    before, after = rows
    changes = [changed(name, None, value) for name, value in (more or {}).items() if value]
    if after["state"] != before["state"]:
        changes.insert(0, changed("state", before["state"], after["state"]))
    await change.record(
        f"admin.escalation.{verdict}",
        resource="escalation",
        resource_id=before["id"],
        changes=changes,
        reason=reason,
        step_up=call.stepped_up,
    )
