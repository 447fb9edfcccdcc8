"""What a tenant may use now: (catalogue, plan, now) -> 17 answers. Pure (entitlements.md 4).

In this build a tenant has a plan and nothing else; licences and overrides join here.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.entitlements.catalog import FEATURE_CATALOG, Feature, included


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPlan:
    """`expires_at_s` in Unix seconds; None for a plan without an end."""

    plan: str
    expires_at_s: int | None
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    feature: str
    allowed: bool
    mode: str
    required_plan: str


def status(tenant: TenantPlan, now_s: int) -> str:
    """VALID, EXPIRING or EXPIRED (entitlements.md 3.2); a trial has no grace."""
    if tenant.expires_at_s is None or tenant.expires_at_s - now_s > 30 * 86_400:
        return "VALID"
    return "EXPIRING" if now_s < tenant.expires_at_s else "EXPIRED"


def resolve(tenant: TenantPlan, now_s: int) -> tuple[Answer, ...]:
    """In catalogue order, always 17."""
    lapsed = status(tenant, now_s) == "EXPIRED"
    return tuple(_answer(feature, tenant.plan, lapsed=lapsed) for feature in FEATURE_CATALOG)


def _answer(feature: Feature, plan: str, *, lapsed: bool) -> Answer:
    entitled = included(feature, plan)
    mode = "off"
    if entitled:
        mode = feature.on_lapse.value if lapsed else "on"
    return Answer(
        feature=feature.key,
        allowed=entitled and not lapsed,
        mode=mode,
        required_plan=feature.plan,
    )
