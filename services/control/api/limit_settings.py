"""`settings/limits`: how much agents may do per minute, and how long people may take to decide.
One document, changed as a whole by whoever has read it (ETag, If-Match).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from starlette.responses import Response

from services.common.postgres.connection import Connection
from services.control import servers as server_rules
from services.control import tenant_limits as rules
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.shapes import Answer, check_if_match, tag
from services.control.audit_records import differences
from services.control.problems import FieldError, Refusal
from services.control.roles import Role
from services.control.store import servers, tenant_limits

router = APIRouter(prefix="/api/v1/settings/limits", tags=["settings"])

PerMinute = Annotated[int, Field(ge=1, le=rules.MAX_PER_MINUTE)]
DecideSeconds = Annotated[int, Field(ge=rules.MINUTE_S, le=7 * rules.DAY_S)]
ServerSlug = Annotated[str, StringConstraints(pattern=server_rules.SLUG)]
ToolName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]
_RESOURCE: Final = "limits"


class Rates(Body):
    agent_per_minute: PerMinute
    agent_burst: PerMinute
    tenant_per_minute: PerMinute
    #: Server -> tool -> calls per minute of all agents together.
    tools: dict[ServerSlug, dict[ToolName, PerMinute]] = Field({})


class Decide(Body):
    """By the agent's risk tier when the escalation opened."""

    low: DecideSeconds
    medium: DecideSeconds
    high: DecideSeconds
    critical: DecideSeconds


class Escalations(Body):
    decide_seconds: Decide
    #: How long an approval may be used.
    execute_seconds: int = Field(ge=rules.MINUTE_S, le=rules.DAY_S)


class LimitsDocument(Body):
    rates: Rates
    escalations: Escalations


class Limits(Answer):
    rates: dict[str, Any]
    escalations: dict[str, Any]


@router.get("")
async def get_limits(call: Annotated[Call, needs(Role.ADMIN)], response: Response) -> Limits:
    async with call.read() as connection:
        held = await tenant_limits.get(connection)
    tag(response, held.revision)
    return Limits(**held.document)


@router.put("")
async def put_limits(
    call: Annotated[Call, needs(Role.ADMIN)],
    body: Annotated[LimitsDocument, json_body(LimitsDocument)],
    response: Response,
) -> Limits:
    document = body.model_dump()
    async with call.change() as change:
        held = await tenant_limits.get(change.connection, lock=True)
        check_if_match(call.request, held.revision, required=True)
        await _check_tools(change.connection, body.rates.tools)
        revision = await tenant_limits.put(
            change.connection, call.tenant, after=held.revision, document=document, now=call.now
        )
        if revision is None:
            raise Refusal("STALE_REVISION", "Read it again first.")
        await change.record(
            "admin.limits.updated",
            resource=_RESOURCE,
            resource_id=call.tenant,
            changes=differences(_flat(held.document), _flat(document)),
        )
    tag(response, revision)
    return Limits(**document)


async def _check_tools(connection: Connection, tools: dict[str, dict[str, int]]) -> None:
    """A limit on a server that does not exist would calm whoever mistyped it."""
    if sum(len(limited) for limited in tools.values()) > rules.MAX_LIMITED_TOOLS:
        raise _wrong("too_many", f"At most {rules.MAX_LIMITED_TOOLS} tools have their own limit.")
    for slug in tools:
        if await servers.get(connection, slug) is None:
            raise _wrong("unknown", "A server that is named does not exist.")


def _wrong(code: str, message: str) -> Refusal:
    return Refusal("VALIDATION_FAILED", message, errors=[FieldError("/rates/tools", code)])


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name; `tools` is one leaf."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict) and name != "tools":
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
