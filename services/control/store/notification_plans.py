"""Plans notices in the transaction of what they tell, so that neither is without the other.

Decides who is told of what: each enabled destination that asked for the event, and of an alert each
one. A notice that
something waits is dropped once nothing waits any more. `pg_notify` wakes the worker at the commit.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from services.common.ids import TenantId, uuid7
from services.common.postgres.connection import Connection
from services.control.notifications import notices
from services.control.notifications.notices import (
    ALERTS,
    Alert,
    Escalation,
    Event,
    Facts,
    SignIn,
    Stop,
)

CHANNEL: Final = "behavry_notifications"
GIVE_UP_AFTER: Final = timedelta(hours=24)
KEPT: Final = timedelta(days=7)
_WAITING_EVENTS: Final = ["escalation.opened", "escalation.half_time"]
_SUBSCRIBED: Final = """
SELECT d.id FROM control.notification_destinations d
WHERE d.enabled AND ($1 = ANY(d.events) OR $4)
  -- Nobody is told of the end of what they were never told of.
  AND NOT EXISTS (
      SELECT 1 FROM control.notification_deliveries n
      WHERE n.destination_id = d.id AND n.subject_id = $2 AND n.event = $3 AND n.attempts = 0)
ORDER BY d.id"""
_PLAN: Final = """
INSERT INTO control.notification_deliveries
    (id, tenant_id, destination_id, event, subject_id, content, state, attempts, planned_at,
     next_at, give_up_at, last_error)
SELECT u.id, $3, u.destination_id, $4, $5, $6, 'queued', 0, $7, $8, $9, ''
FROM unnest($1::uuid[], $2::uuid[]) AS u (id, destination_id)
ON CONFLICT DO NOTHING"""
_DROP: Final = """
UPDATE control.notification_deliveries SET state = 'dropped'
WHERE subject_id = $1 AND event = ANY($2) AND state = 'queued'"""
_FORGET: Final = """
DELETE FROM control.notification_deliveries WHERE planned_at < $1 AND state <> 'queued'"""
_NOTIFY: Final = "SELECT pg_notify($1, '')"
_ESCALATION: Final = """
SELECT id, tenant_id, agent_id, agent_name, server, tool, method, action, codes, tier, quorum,
       opened_at, decide_by
FROM control.escalations WHERE id = $1"""


async def plan(
    connection: Connection,
    tenant: TenantId,
    event: Event | Alert,
    facts: Facts,
    *,
    now: datetime,
) -> None:
    """Tells the enabled destinations that asked for it, after the commit. Twice is once.

    Of something that waits: at once and at half of its time, while it waits.
    """
    match event, facts:
        case "escalation.opened", Escalation():
            if facts.decide_by <= now:
                return
            over = min(now + GIVE_UP_AFTER, facts.decide_by)
            await _add(connection, tenant, event, facts, now=now, due=now, over=over)
            due = facts.half_time
            if due > now:
                over = min(due + GIVE_UP_AFTER, facts.decide_by)
                await _add(
                    connection, tenant, "escalation.half_time", facts, now=now, due=due, over=over
                )
        case "escalation.settled", Escalation():
            await connection.execute(_DROP, facts.id, _WAITING_EVENTS)
            over = now + GIVE_UP_AFTER
            await _add(connection, tenant, event, facts, now=now, due=now, over=over)
        case _:
            over = now + GIVE_UP_AFTER
            await _add(connection, tenant, event, facts, now=now, due=now, over=over)


async def opened(connection: Connection, id: str, now: datetime) -> None:
    """An escalation was kept, in this transaction."""
    row = await connection.fetchrow(_ESCALATION, id)
    if row is not None:
        facts = _facts(row, state="pending")
        await plan(connection, _tenant(row), "escalation.opened", facts, now=now)


async def settled(connection: Connection, id: str, *, state: str, now: datetime) -> None:
    """An escalation does not wait any more, as of this transaction."""
    row = await connection.fetchrow(_ESCALATION, id)
    if row is not None:
        facts = _facts(row, state=state)
        await plan(connection, _tenant(row), "escalation.settled", facts, now=now)


async def kill_switch(
    connection: Connection, tenant: TenantId, stop: Stop, *, on: bool, now: datetime
) -> None:
    await plan(connection, tenant, "kill_switch.on" if on else "kill_switch.off", stop, now=now)


async def broken_glass(
    connection: Connection, tenant: TenantId, one: SignIn, *, now: datetime
) -> None:
    """Somebody signed in by the password that is there for the day that the provider is away."""
    await plan(connection, tenant, "sign_in.break_glass", one, now=now)


async def _add(
    connection: Connection,
    tenant: TenantId,
    event: Event | Alert,
    facts: Facts,
    *,
    now: datetime,
    due: datetime,
    over: datetime,
) -> None:
    first = "escalation.opened" if event == "escalation.settled" else ""
    rows = await connection.fetch(_SUBSCRIBED, event, facts.id, first, event in ALERTS)
    if not rows:
        return
    now_ns = round(now.timestamp() * 1_000_000) * 1_000
    ids = [uuid7(now_ns) for _ in rows]
    destinations = [row["id"] for row in rows]
    content = notices.encode(facts)
    await connection.execute(_FORGET, now - KEPT)
    await connection.execute(
        _PLAN, ids, destinations, tenant, event, facts.id, content, now, due, over
    )
    await connection.execute(_NOTIFY, CHANNEL)


def _tenant(row: Any) -> TenantId:
    return TenantId(str(row["tenant_id"]))


def _facts(row: Any, *, state: str) -> Escalation:
    return notices.escalation(
        id=str(row["id"]),
        agent_id=str(row["agent_id"]),
        agent=row["agent_name"],
        server=row["server"],
        tool=row["tool"] or row["method"],
        action=row["action"],
        codes=row["codes"],
        tier=row["tier"],
        quorum=row["quorum"],
        opened_at=row["opened_at"],
        decide_by=row["decide_by"],
        state=state,
    )
