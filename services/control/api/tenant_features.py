"""A tenant's plan and its overrides, for whoever runs the installation. Each change has a reason,
which the tenant can read beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter
from pydantic import AwareDatetime, Field, StringConstraints
from starlette.responses import Response

from services.control import tenancy
from services.control.api import plan_changes
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call
from services.control.api.guards import operates
from services.control.api.plan import Feature, License, feature_names, held_by, license_of
from services.control.api.plan_shown import features, time_of
from services.control.api.shapes import Answer, Paging, etag, start_of, tag, token_behind
from services.control.clients.entitlements import Cause, PastOverride
from services.control.features import KEYS, Entitlements
from services.control.problems import FieldError, Refusal, invalid

router = APIRouter(prefix="/api/v1/tenants", tags=["plan"])

_LISTING: Final = "overrides"
Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Keys = Annotated[list[Key], Field(max_length=len(KEYS))]


class Overrides(Body):
    """Keys that are not named stay as they are."""

    enable: Keys = Field([])
    disable: Keys = Field([])
    clear: Keys = Field([])
    starts_at: AwareDatetime | None = None
    ends_at: AwareDatetime | None = None


class NewPlan(Body):
    plan: Key
    #: None: it has no end.
    expires_at: AwareDatetime | None = None


class Past(Answer):
    id: str
    feature: str
    effect: str
    starts_at: str | None
    ends_at: str | None
    actor: str
    reason: str
    created_at: str | None


class History(Answer):
    """Newest first."""

    items: list[Past]
    next_page_token: str


class TenantFeatures(Answer):
    tenant_id: str
    plan: str
    status: str
    expires_at: str | None
    grace_ends_at: str | None
    features: list[Feature]
    #: Live ones: true enables, false disables.
    overrides: dict[str, bool]
    history: History
    revision: int
    stale: bool


@router.get("/{tenant_id:uuid}/features")
async def get_tenant_features(
    tenant_id: UUID,  # noqa: ARG001  # the guard's
    call: Annotated[Call, operates()],
    query: Paging,
    response: Response,
) -> TenantFeatures:
    held = held_by(call)
    token = start_of(call, _LISTING, query)
    tag(response, held.revision)
    return await _shown(call, held, query.page_size, token)


@router.post("/{tenant_id:uuid}/features")
async def change_tenant_features(
    tenant_id: UUID,  # noqa: ARG001  # the guard's
    call: Annotated[Call, operates()],
    body: Annotated[Overrides, json_body(Overrides)],
    response: Response,
) -> TenantFeatures:
    """Whole or not at all."""
    _check(body, call.now)
    said = {
        "enable": body.enable,
        "disable": body.disable,
        "clear": body.clear,
        "starts_at": time_of(_seconds(body.starts_at)),
        "ends_at": time_of(_seconds(body.ends_at)),
    }

    async def act(cause: Cause) -> Entitlements:
        return await call.control.plans.set_overrides(
            call.tenant,
            enable=body.enable,
            disable=body.disable,
            clear=body.clear,
            starts_at_s=_seconds(body.starts_at),
            ends_at_s=_seconds(body.ends_at),
            cause=cause,
        )

    wanted = _wanted(call, "override", said, _expected(call))
    held = await plan_changes.change(call, wanted, act)
    tag(response, held.revision)
    return await _shown(call, held, 50, "")


@router.put("/{tenant_id:uuid}/plan")
async def set_tenant_plan(
    tenant_id: UUID,  # noqa: ARG001  # the guard's
    call: Annotated[Call, operates()],
    body: Annotated[NewPlan, json_body(NewPlan)],
    response: Response,
) -> License:
    """At once; a plan that ends in the past has lapsed, and so have its features."""
    catalogue = await call.control.plans.catalogue()
    if body.plan not in {plan["key"] for plan in catalogue["plans"]}:
        raise invalid("/plan", "unknown", "There is no such plan.")
    if body.expires_at is not None and body.expires_at <= call.now:
        raise invalid("/expires_at", "past", "A plan ends in the future.")
    said = {"plan": body.plan, "expires_at": time_of(_seconds(body.expires_at))}

    async def act(cause: Cause) -> Entitlements:
        return await call.control.plans.set_plan(
            call.tenant, body.plan, _seconds(body.expires_at), cause
        )

    held = await plan_changes.change(call, _wanted(call, "plan", said, _expected(call)), act)
    tag(response, held.revision)
    return await license_of(call, held)


def _wanted(
    call: Call, what: str, said: dict[str, Any], expected_revision: int
) -> plan_changes.Wanted:
    return plan_changes.Wanted(
        before=f"admin.entitlement.{what}",
        done=f"entitlement.{what}",
        refused=f"entitlement.{what}",
        resource="tenant",
        resource_id=call.tenant,
        said={name: value for name, value in said.items() if value},
        reason=tenancy.reason_of(call.request.headers.get(tenancy.REASON_HEADER, "")),
        expected_revision=expected_revision,
    )


def _expected(call: Call) -> int:
    """The revision that `If-Match` names; 0 where any will do. Raises STALE_REVISION."""
    sent = call.request.headers.get("if-match", "*").strip()
    if sent == "*":
        return 0
    known = call.plan.held
    number = sent.strip('"')
    if not (number.isascii() and number.isdigit() and sent == f'"{number}"') or int(number) == 0:
        now = known.revision if known else 0
        raise Refusal("STALE_REVISION", "Read it again first.", headers={"etag": etag(now)})
    return min(int(number), 2**63 - 1)


def _check(body: Overrides, now: datetime) -> None:
    """Raises VALIDATION_FAILED with pointers."""
    errors = list(_wrong_keys(body))
    if not (body.enable or body.disable or body.clear):
        errors.append(FieldError("", "too_few"))
    begins = max(body.starts_at or now, now)
    if body.ends_at is not None and body.ends_at <= begins:
        errors.append(FieldError("/ends_at", "too_early"))
    if errors:
        raise Refusal("VALIDATION_FAILED", "The overrides cannot be used.", errors=errors)


def _wrong_keys(body: Overrides) -> Iterator[FieldError]:
    seen: set[str] = set()
    for name in ("enable", "disable", "clear"):
        keys: list[str] = getattr(body, name)
        for place, key in enumerate(keys):
            if key not in KEYS:
                yield FieldError(f"/{name}/{place}", "unknown")
            elif key in seen:
                yield FieldError(f"/{name}/{place}", "twice")
            seen.add(key)


async def _shown(call: Call, held: Entitlements, size: int, token: str) -> TenantFeatures:
    past, following = await call.control.plans.history(
        call.tenant, page_size=size, page_token=token
    )
    return TenantFeatures(
        tenant_id=held.tenant,
        plan=held.plan,
        status=held.status,
        expires_at=time_of(held.plan_expires_at_s),
        grace_ends_at=time_of(held.grace_ends_at_s),
        features=[Feature(**one) for one in features(held, await feature_names(call))],
        overrides=held.overrides,
        history=History(
            items=[_past(one) for one in past],
            next_page_token=token_behind(call, _LISTING, following),
        ),
        revision=held.revision,
        stale=call.control.features.stale,
    )


def _past(one: PastOverride) -> Past:
    return Past(
        id=one.id,
        feature=one.feature,
        effect=one.effect,
        starts_at=time_of(one.starts_at_s),
        ends_at=time_of(one.ends_at_s),
        actor=one.actor,
        reason=one.reason,
        created_at=time_of(one.created_at_s),
    )


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())
