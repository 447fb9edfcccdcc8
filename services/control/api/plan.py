"""The tenant's plan and features, and the catalogue of what can be had."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter
from starlette.responses import Response

from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.shapes import Answer, Time, not_modified
from services.control.problems import Refusal
from services.control.roles import Role

router = APIRouter(prefix="/api/v1", tags=["plan"])


class Feature(Answer):
    key: str
    allowed: bool
    mode: str
    source: str
    required_plan: str


class License(Answer):
    plan: str
    status: str
    plan_expires_at: Time | None
    revision: int
    #: True: entitlements is silent, and this is what it said last.
    stale: bool
    features: list[Feature]


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


@router.get("/license")
async def get_license(call: Annotated[Call, needs(Role.VIEWER)]) -> License:
    features = call.control.features
    held = features.of(call.tenant)
    if held is None:
        raise Refusal("DEPENDENCY_UNAVAILABLE", "Entitlements has not answered yet.")
    expires_s = held.plan_expires_at_s
    return License(
        plan=held.plan,
        status=held.status,
        plan_expires_at=datetime.fromtimestamp(expires_s, UTC) if expires_s else None,
        revision=held.revision,
        stale=features.stale,
        features=[
            Feature(
                key=answer.key,
                allowed=answer.allowed,
                mode=answer.mode,
                source=answer.source,
                required_plan=answer.required_plan,
            )
            for answer in held.features
        ],
    )


@router.get("/plan-features", response_model=Catalogue)
async def list_plan_features(call: Annotated[Call, needs(Role.VIEWER)]) -> Any:
    catalogue = Catalogue(**await call.control.plans.catalogue())
    document = json.dumps(catalogue.model_dump(), separators=(",", ":")).encode()
    tag = f'"{hashlib.sha256(document).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "private, max-age=60"}
    if not_modified(call.request, tag):
        return Response(status_code=304, headers=headers)
    return Response(document, media_type="application/json", headers=headers)
