"""The tenant's plan and features, and the catalogue of what can be had."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from starlette.responses import Response

from services.common.errors import BehavryError
from services.control.api import plan_shown
from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.shapes import Answer, not_modified
from services.control.features import Entitlements
from services.control.problems import Refusal
from services.control.roles import Role
from services.control.store import agents

router = APIRouter(prefix="/api/v1", tags=["plan"])

Mode = Literal["on", "frozen", "tightened", "kept", "stopped", "off"]


class Feature(Answer):
    key: str
    name: str
    allowed: bool
    mode: Mode
    source: str
    required_plan: str
    changes_at: str | None


class LicenseSummary(Answer):
    """Which licence it is; the key itself is told to nobody."""

    jti: str
    customer: str
    key_id: str
    issued_at: str
    scope: str
    plan: str
    starts_at: str
    expires_at: str
    grace_ends_at: str


class Limits(Answer):
    """None: unlimited."""

    agents: int | None
    data_planes: int | None


class Usage(Answer):
    agents: int
    data_planes: int


class License(Answer):
    tenant_id: str
    plan: str
    status: str
    scope: str | None
    expires_at: str | None
    grace_ends_at: str | None
    days_left: int | None
    features: list[Feature]
    limits: Limits
    usage: Usage
    license: LicenseSummary | None
    scheduled: LicenseSummary | None
    revision: int
    #: True: entitlements is silent, and this is what it said last.
    stale: bool


class Plan(Answer):
    key: str
    name: str
    rank: int
    audience: str
    features: list[str]


class FeatureInfo(Answer):
    key: str
    name: str
    description: str
    plan: str


class Catalogue(Answer):
    plans: list[Plan]
    features: list[FeatureInfo]
    etag: str


@router.get("/license")
async def get_license(call: Annotated[Call, needs(Role.VIEWER)]) -> License:
    return await license_of(call, held_by(call))


@router.get("/plan-features", response_model=Catalogue)
async def list_plan_features(call: Annotated[Call, needs(Role.VIEWER)]) -> Any:
    catalogue = await call.control.plans.catalogue()
    said = json.dumps(catalogue, separators=(",", ":")).encode()
    tag = f'"{hashlib.sha256(said).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "private, max-age=60"}
    if not_modified(call.request, tag):
        return Response(status_code=304, headers=headers)
    document = Catalogue(**catalogue, etag=tag).model_dump_json()
    return Response(document, media_type="application/json", headers=headers)


def held_by(call: Call) -> Entitlements:
    """Raises DEPENDENCY_UNAVAILABLE: nothing is known of the tenant's plan."""
    held = call.plan.held
    if held is None:
        raise Refusal("DEPENDENCY_UNAVAILABLE", "Entitlements has not answered yet.")
    return held


async def license_of(call: Call, held: Entitlements) -> License:
    async with call.read() as connection:
        used = await agents.count(connection)
    return License(
        **plan_shown.shown(
            held,
            names=await feature_names(call),
            usage={"agents": used, "data_planes": len(call.control.planes.keys)},
            now_s=call.control.clock.now_ns() // 1_000_000_000,
            stale=call.control.features.stale,
        )
    )


async def feature_names(call: Call) -> dict[str, str]:
    """What people call each feature; empty while nobody can say."""
    try:
        catalogue = await call.control.plans.catalogue()
    except BehavryError:
        return {}
    return {one["key"]: one["name"] for one in catalogue["features"]}
