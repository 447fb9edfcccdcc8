"""How a tenant's plan is changed: on record before it takes effect, and once more with what came of
it. The first record is committed before entitlements is asked, or it is not asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from services.common.errors import BehavryError
from services.control import idempotency
from services.control.api import plan_shown
from services.control.api.context import Call
from services.control.api.shapes import etag
from services.control.audit_records import change as changed
from services.control.clients.entitlements import Cause
from services.control.features import Entitlements
from services.control.problems import Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody wants to change. Nothing in it is secret."""

    #: `admin.<resource>.<verb>` before, and what the records of its outcome are called.
    before: str
    done: str
    refused: str
    resource: str
    resource_id: str
    #: As the records say it.
    said: Mapping[str, Any]
    reason: str | None = None
    expected_revision: int = 0
    told: dict[str, Any] = field(default_factory=dict)


async def change(
    call: Call, wanted: Wanted, act: Callable[[Cause], Awaitable[Entitlements]]
) -> Entitlements:
    """1. the record of what is wanted  2. the change  3. the record of its outcome."""
    known = call.control.features.of(call.tenant)
    try:
        async with call.change(desired=False) as before:  # 1
            await before.record(
                wanted.before,
                resource=wanted.resource,
                resource_id=wanted.resource_id,
                changes=[changed(name, None, value) for name, value in wanted.said.items()],
                reason=wanted.reason,
            )
    except asyncpg.PostgresError as failure:
        raise Refusal(
            "DEPENDENCY_UNAVAILABLE", "What is changed here cannot be recorded now."
        ) from failure
    try:
        held = await act(_cause(call, wanted))  # 2
    except BehavryError as refused:
        await _outcome(call, wanted, wanted.refused, code=refused.code)  # 3
        raise _told(refused) from refused
    changes = plan_shown.mode_changes(known, held)
    await _outcome(call, wanted, wanted.done, changes=changes or None, revision=held.revision)
    return held


async def _outcome(call: Call, wanted: Wanted, type: str, **more: Any) -> None:
    # What `told` holds was learnt on the way.
    async with call.change(desired=False) as after:
        await after.put(
            type,
            resource=wanted.resource,
            resource_id=wanted.resource_id,
            reason=wanted.reason,
            **{name: value for name, value in {**wanted.said, **wanted.told}.items() if value},
            **more,
        )


def _cause(call: Call, wanted: Wanted) -> Cause:
    """One name per request of ours; with an Idempotency-Key, of that, so that a repetition of what
    went through unheard finds it done.
    """
    key = call.request.headers.get(idempotency.HEADER)
    if key is None:
        name = f"{call.request.state.request_id}:{call.control.new_id()}"
    else:
        text = f"{call.principal.label}\0{call.request.scope['route'].path}\0{key}"
        name = f"key:{hashlib.sha256(text.encode()).hexdigest()}"
    return Cause(
        actor=call.principal.label,
        reason=wanted.reason or "",
        request_id=name,
        expected_revision=wanted.expected_revision,
    )


def _told(error: BehavryError) -> BehavryError:
    """What entitlements refused, in REST's words."""
    match error.reason:
        case "STALE_REVISION":
            now = int(error.metadata.get("revision", "0"))
            return Refusal("STALE_REVISION", "Read it again first.", headers={"etag": etag(now)})
        case "OVERRIDE_CONFLICT":
            return Refusal("VALIDATION_FAILED", "The overrides contradict each other.")
        case _:
            return error
