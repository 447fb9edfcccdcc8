"""Escalations, people's votes on them, and the signed decisions that wait for their plane.

Rows are read with both clocks applied: what the plane has not reported yet, but must have happened,
is not shown as open. For whoever tells people of escalations (notifications): `open_now` lists what
waits with its clocks, `changed_since` what has moved; `Signals.escalations` rises, and listeners
wake, after each change here has been committed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from services.common.ids import PlaneId, TenantId
from services.common.postgres.connection import Connection
from services.common.postgres.windows import WINDOW, Page, page_of
from services.control.escalation_filters import STATE_NOW, Where
from services.control.escalation_reports import Opened
from services.control.escalations import Circle, Person, Vote
from services.control.roles import Role
from services.control.store import notification_plans
from services.control.store.moments import moment

_COLUMNS: Final = (
    "id, plane_id, agent_id, agent_name, agent_class, requester_id, requester_verified, server, "
    "tool, method, action, category, resource, resource_kind, codes, reason, policies, features, "
    "finding_tags, binding, policy_revision, quorum, tier, opened_at, decide_by, execute_for_s, "
    "version, uses, uses_left, execute_by, kept_at, changed_at"
)
_VOTES: Final = """
(SELECT coalesce(json_agg(json_build_object(
            'user_id', v.user_id, 'name', u.username, 'verdict', v.verdict, 'reason', v.reason,
            'uses', v.uses, 'execute_for_s', v.execute_for_s, 'step_up', v.step_up,
            'voted_at', v.voted_at) ORDER BY v.voted_at, v.user_id), '[]')
 FROM control.escalation_votes v
 LEFT JOIN control.users u ON u.tenant_id = v.tenant_id AND u.id = v.user_id
 WHERE v.tenant_id = e.tenant_id AND v.escalation_id = e.id) AS votes"""
#: $1 is now, in this and the following ones.
_SHOWN: Final = f"SELECT {_COLUMNS}, {STATE_NOW} AS state, {_VOTES} FROM control.escalations e"  # noqa: S608  # constants
_GET: Final = f"""
SELECT {_COLUMNS}, {STATE_NOW} AS state, {_VOTES},
       (SELECT a.owner FROM control.agents a WHERE a.id = e.agent_id) AS owner,
       (SELECT t.sole_operator FROM control.tenants t WHERE t.id = e.tenant_id) AS sole_operator,
       (SELECT coalesce(json_agg(json_build_object('id', u.id, 'name', u.username)), '[]')
        FROM control.users u WHERE u.status = 'active' AND u.role = ANY($3)) AS people
FROM control.escalations e WHERE e.id = $2"""  # noqa: S608  # constants
_LOCK: Final = "SELECT 1 FROM control.escalations WHERE id = $1 FOR UPDATE"
_OPEN_NOW: Final = f"""
{_SHOWN} WHERE e.state = 'pending' AND e.decide_by > $1 ORDER BY e.decide_by, e.id"""
_CHANGED_SINCE: Final = f"""
{_SHOWN} WHERE e.changed_at >= $2 ORDER BY e.changed_at, e.id LIMIT $3"""
#: Rows are looked at in the index's order, and no more of them than a window has.
_PAGE: Final = f"""
SELECT {_COLUMNS}, {STATE_NOW} AS state, {_VOTES}, kept, place = $4 AS edge
FROM (SELECT {_COLUMNS}, tenant_id, state, {{kept}} AS kept,
             row_number() OVER (ORDER BY id DESC) AS place
      FROM control.escalations e
      WHERE id < $2{{found}}
      ORDER BY id DESC LIMIT $4) e
WHERE kept OR place = $4
ORDER BY id DESC LIMIT $3"""  # noqa: S608  # constants, and conditions made of constants
FIRST_BOUND: Final = 5
_INSERT: Final = """
INSERT INTO control.escalations
    (id, tenant_id, plane_id, agent_id, agent_name, agent_class, requester_id, requester_verified,
     server, tool, method, action, category, resource, resource_kind, codes, reason, policies,
     features, finding_tags, binding, policy_revision, quorum, tier, opened_at, decide_by,
     execute_for_s, state, version, kept_at, changed_at)
SELECT $1, t.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
       $21, $22, $23, $24, $25, $26, $27, 'pending', 0, $28, $28
FROM control.tenants t WHERE t.id = $2
ON CONFLICT DO NOTHING"""
_REPORTED: Final = """
SELECT state, version FROM control.escalations WHERE id = $1 AND plane_id = $2 FOR UPDATE"""
_REPORT: Final = """
UPDATE control.escalations SET state = $2, version = $3, uses_left = $4, changed_at = $5
WHERE id = $1"""
_VOTE: Final = """
INSERT INTO control.escalation_votes
    (tenant_id, escalation_id, user_id, verdict, reason, uses, execute_for_s, step_up, voted_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (tenant_id, escalation_id, user_id) DO UPDATE
SET verdict = excluded.verdict, reason = excluded.reason, uses = excluded.uses,
    execute_for_s = excluded.execute_for_s, step_up = excluded.step_up,
    voted_at = excluded.voted_at"""
_SETTLE: Final = """
UPDATE control.escalations SET state = $2, uses = $3, uses_left = $3, execute_by = $4,
    changed_at = $5
WHERE id = $1"""
_END: Final = "UPDATE control.escalations SET state = $2, changed_at = $3 WHERE id = $1"
_DECIDE: Final = """
INSERT INTO control.escalation_decisions
    (id, tenant_id, escalation_id, plane_id, verdict, approvers, reason, jws, decided_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"""
#: Every process of control hears of a decision: one of them has the plane's link.
CHANNEL: Final = "behavry_decisions"
_NOTIFY: Final = "SELECT pg_notify($1, '')"
_OVERTAKE: Final = """
UPDATE control.escalation_decisions SET done_at = $2 WHERE escalation_id = $1 AND done_at IS NULL"""
_WAITING: Final = "SELECT id, tenant_id, escalation_id, jws FROM control.waiting_decisions($1)"
_ACKNOWLEDGE: Final = """
UPDATE control.escalation_decisions SET done_at = $3
WHERE id = $1 AND plane_id = $2 AND done_at IS NULL"""

_BEHIND_ALL: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
_DECIDERS: Final = [role.key for role in Role if role >= Role.ANALYST]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A decision that its plane has not acknowledged. `id` is the signal's."""

    id: str
    tenant: TenantId
    escalation: str
    jws: str = field(repr=False)


async def insert(connection: Connection, plane: PlaneId, new: Opened, now: datetime) -> bool:
    """False when it is there already, or the tenant is none."""
    done = await connection.execute(
        _INSERT, new.id, new.tenant, plane, new.agent, new.agent_name, new.agent_class,
        new.requester, new.requester_verified, new.server, new.tool, new.method, new.action,
        new.category, new.resource, new.resource_kind, new.codes, new.reason, new.policies,
        new.features, new.finding_tags, new.binding, new.policy_revision, new.quorum, new.tier,
        _moment(new.opened_at_ms), _moment(new.decide_by_ms), new.execute_for_s, now,
    )  # fmt: skip
    added: bool = done == "INSERT 0 1"
    if added:
        await notification_plans.opened(connection, new.id, now)
    return added


async def reported(connection: Connection, id: str, plane: PlaneId) -> tuple[str, int] | None:
    """(state, version) of an escalation of this plane, locked."""
    row = await connection.fetchrow(_REPORTED, id, plane)
    return (row["state"], row["version"]) if row else None


async def report(
    connection: Connection, id: str, *, state: str, version: int, uses_left: int, now: datetime
) -> None:
    await connection.execute(_REPORT, id, state, version, uses_left, now)
    if state != "pending":
        await notification_plans.settled(connection, id, state=state, now=now)


async def get(
    connection: Connection, id: str, now: datetime, *, lock: bool = False
) -> dict[str, Any] | None:
    """With its votes, its agent's owner and the people who may decide at all."""
    if lock:  # first, so that what is read next is what the last decision left
        await connection.execute(_LOCK, id)
    row = await connection.fetchrow(_GET, now, id, _DECIDERS)
    if row is None:
        return None
    found = _read(row)
    people = [Person(id=one["id"], name=one["name"]) for one in json.loads(row["people"])]
    found["circle"] = Circle(people=people, sole_operator=bool(row["sole_operator"]))
    found["owner"] = str(row["owner"]) if row["owner"] else None
    return found


async def open_now(connection: Connection, now: datetime) -> list[dict[str, Any]]:
    """What waits for a decision, the most urgent first."""
    return [_read(row) for row in await connection.fetch(_OPEN_NOW, now)]


async def changed_since(
    connection: Connection, since: datetime, now: datetime, *, limit: int = 500
) -> list[dict[str, Any]]:
    """What moved at or after `since`, oldest first: opened, decided, reported by the plane."""
    return [_read(row) for row in await connection.fetch(_CHANGED_SINCE, now, since, limit)]


async def page(
    connection: Connection,
    now: datetime,
    *,
    where: Where,
    after: str,
    size: int,
    window: int = WINDOW,
) -> Page[dict[str, Any]]:
    """Newest first. The values of `where` are bound from FIRST_BOUND on."""
    sql = _PAGE.format(found=where.found, kept=where.kept)
    rows = await connection.fetch(sql, now, after or _BEHIND_ALL, size + 1, window, *where.bound)
    page = page_of(rows, size=size)
    return Page([_read(row) for row in page.shown], page.following)


async def vote(
    connection: Connection,
    tenant: TenantId,
    escalation: str,
    vote: Vote,
    *,
    reason: str,
    step_up: bool,
    now: datetime,
) -> None:
    """One per person: a later one, where the rules admit it, replaces the earlier."""
    await connection.execute(
        _VOTE, tenant, escalation, vote.user, vote.verdict, reason, vote.uses, vote.execute_for_s,
        step_up, now,
    )  # fmt: skip


async def approve(
    connection: Connection, id: str, *, uses: int, execute_by: datetime, now: datetime
) -> None:
    await connection.execute(_SETTLE, id, "approved", uses, execute_by, now)
    await notification_plans.settled(connection, id, state="approved", now=now)


async def end(connection: Connection, id: str, *, state: str, now: datetime) -> None:
    await connection.execute(_END, id, state, now)
    await notification_plans.settled(connection, id, state=state, now=now)


async def decide(
    connection: Connection,
    tenant: TenantId,
    *,
    id: str,
    escalation: str,
    plane: PlaneId,
    verdict: str,
    approvers: Sequence[str],
    reason: str,
    jws: str,
    now: datetime,
) -> None:
    """The newest decision is the one that counts: older ones are not sent any more."""
    await connection.execute(_OVERTAKE, escalation, now)
    await connection.execute(
        _DECIDE, id, tenant, escalation, plane, verdict, list(approvers), reason, jws, now
    )
    await connection.execute(_NOTIFY, CHANNEL)


async def overtake(connection: Connection, escalation: str, now: datetime) -> None:
    """The plane has had its last word: nothing that was decided need be sent."""
    await connection.execute(_OVERTAKE, escalation, now)


async def waiting(connection: Connection, plane: PlaneId) -> list[Waiting]:
    """Of all tenants, oldest first; runs outside a tenant's transaction."""
    return [
        Waiting(
            id=str(row["id"]),
            tenant=TenantId(str(row["tenant_id"])),
            escalation=str(row["escalation_id"]),
            jws=row["jws"],
        )
        for row in await connection.fetch(_WAITING, plane)
    ]


async def acknowledge(connection: Connection, id: str, plane: PlaneId, now: datetime) -> None:
    await connection.execute(_ACKNOWLEDGE, id, plane, now)


def _moment(ms: int) -> datetime:
    return moment(ms * 1_000_000)


def _read(row: Any) -> dict[str, Any]:
    found = {name: row[name] for name in _COLUMNS.split(", ")}
    found |= {name: str(found[name]) for name in ("id", "agent_id")}
    found["state"] = row["state"]
    found["votes"] = json.loads(row["votes"])
    return found
