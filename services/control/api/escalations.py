"""The inbox: calls that wait for a person, and what people do about them. Who may do what is
services/control/escalations.py's to decide.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field

from services.control import escalation_filters
from services.control import escalations as rules
from services.control.api import escalation_acts as acts
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call
from services.control.api.escalation_acts import Grant
from services.control.api.guards import needs
from services.control.api.shapes import Answer, Page, PageQuery, Time, start_of, token_behind
from services.control.problems import invalid
from services.control.roles import Role
from services.control.store import escalations as store

router = APIRouter(prefix="/api/v1/escalations", tags=["escalations"])


class Approval(Body):
    """`once`: a single use. `grant`: the same call, so often, for so long."""

    mode: Literal["once", "grant"] = "once"
    minutes: int | None = Field(None, ge=1, le=rules.MAX_MINUTES)
    uses: int | None = Field(None, ge=1, le=rules.MAX_USES)
    reason: str = Field("", max_length=500)


class Denial(Body):
    reason: str = Field(min_length=1, max_length=500)


class Ending(Body):
    reason: str = Field("", max_length=500)


class EscalationQuery(PageQuery):
    filter: str = Field("", max_length=2048)


class EscalatedAgent(Answer):
    id: str
    name: str
    class_: str = Field(alias="class")


class EscalationRequester(Answer):
    id: str
    verified: bool


class GivenVote(Answer):
    user_id: str
    name: str | None
    verdict: str
    reason: str
    uses: int
    execute_for_seconds: int
    step_up: bool
    voted_at: Time


class Escalation(Answer):
    id: str
    state: str
    agent: EscalatedAgent
    requester: EscalationRequester | None
    server: str
    tool: str
    method: str
    action: str
    category: str
    resource: str
    resource_kind: str
    codes: list[str]
    reason: str
    policies: list[str]
    features: dict[str, Any] | None
    finding_tags: list[str]
    policy_revision: str
    tier: str
    quorum: int
    votes: list[GivenVote]
    opened_at: Time
    decide_by: Time
    #: How long an approval will be usable, unless its giver grants another time.
    execute_for_seconds: int
    uses: int | None
    uses_left: int | None
    execute_by: Time | None
    changed_at: Time


class HowToApprove(Answer):
    """At this moment: how many must agree, by which exceptions, and whether whoever approves must
    have given the password lately.
    """

    quorum: int
    flags: list[str]
    step_up: bool
    #: Whether the caller is one of those who may.
    eligible: bool


class OneEscalation(Escalation):
    approval: HowToApprove


@router.get("")
async def list_escalations(
    call: Annotated[Call, needs(Role.VIEWER)], query: Annotated[EscalationQuery, Query()]
) -> Page[Escalation]:
    """Newest first. With a filter, a page may be short or empty while there are more:
    `next_page_token` tells.
    """
    where = escalation_filters.parse(query.filter, first=store.FIRST_BOUND)
    listing = f"escalations:{hashlib.sha256(query.filter.encode()).hexdigest()}"
    after = start_of(call, listing, query)
    async with call.read() as connection:
        page = await store.page(
            connection, call.now, where=where, after=after, size=query.page_size
        )
    items = [Escalation(**fields(row)) for row in page.shown]
    return Page(items=items, next_page_token=token_behind(call, listing, page.following))


@router.get("/{escalation_id:uuid}")
async def get_escalation(
    escalation_id: UUID, call: Annotated[Call, needs(Role.VIEWER)]
) -> OneEscalation:
    return _one(call, await acts.look(call, str(escalation_id)))


@router.post("/{escalation_id:uuid}:approve")
async def approve_escalation(
    escalation_id: UUID,
    call: Annotated[Call, needs(Role.ANALYST, human=True, keyed=True)],
    body: Annotated[Approval, json_body(Approval)],
) -> OneEscalation:
    """Stays pending until as many people have approved as the escalation asks for."""
    row = await acts.approve(call, str(escalation_id), _grant(body), reason=body.reason)
    return _one(call, row)


@router.post("/{escalation_id:uuid}:deny")
async def deny_escalation(
    escalation_id: UUID,
    call: Annotated[Call, needs(Role.ANALYST, human=True, keyed=True)],
    body: Annotated[Denial, json_body(Denial)],
) -> OneEscalation:
    """One is enough."""
    return _one(call, await acts.end(call, str(escalation_id), "deny", reason=body.reason))


@router.post("/{escalation_id:uuid}:revoke")
async def revoke_escalation(
    escalation_id: UUID,
    call: Annotated[Call, needs(Role.ANALYST, human=True)],
    body: Annotated[Ending, json_body(Ending)],
) -> OneEscalation:
    """Takes an approval back that is not used up."""
    return _one(call, await acts.end(call, str(escalation_id), "revoke", reason=body.reason))


@router.post("/{escalation_id:uuid}:cancel")
async def cancel_escalation(
    escalation_id: UUID,
    call: Annotated[Call, needs(Role.ANALYST, human=True)],
    body: Annotated[Ending, json_body(Ending)],
) -> OneEscalation:
    """Closes what need not be decided any more; the agent may ask again."""
    return _one(call, await acts.end(call, str(escalation_id), "cancel", reason=body.reason))


def fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as answers spell it."""
    requester = {"id": row["requester_id"], "verified": row["requester_verified"]}
    return {
        **row,
        "agent": {"id": row["agent_id"], "name": row["agent_name"], "class": row["agent_class"]},
        "requester": requester if row["requester_id"] else None,
        "features": features_of(row),
        "execute_for_seconds": row["execute_for_s"],
        "votes": [
            {
                **vote,
                "execute_for_seconds": vote["execute_for_s"],
                "voted_at": datetime.fromisoformat(vote["voted_at"]),
            }
            for vote in row["votes"]
        ],
    }


def features_of(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the plane derived from the call; None where it said nothing that can be read."""
    try:
        features = json.loads(row["features"] or b"null")
    except (ValueError, RecursionError):
        return None
    return features if isinstance(features, dict) else None


def _grant(body: Approval) -> Grant:
    if body.mode == "once":
        for name in ("minutes", "uses"):
            if getattr(body, name) is not None:
                raise invalid(f"/{name}", "not_allowed", "Only a grant has minutes and uses.")
        return Grant()
    if body.minutes is None:
        raise invalid("/minutes", "missing", "A grant says for how many minutes.")
    return Grant(uses=body.uses or rules.MAX_USES, execute_for_s=60 * body.minutes)


def _one(call: Call, row: Mapping[str, Any]) -> OneEscalation:
    rule = acts.rule_of(row)
    how = HowToApprove(
        quorum=rule.quorum,
        flags=list(rule.flags),
        step_up=rule.step_up,
        eligible=call.principal.is_human and call.principal.id in rule.eligible,
    )
    return OneEscalation(**fields(row), approval=how)
