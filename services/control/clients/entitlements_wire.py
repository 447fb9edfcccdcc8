"""Entitlements' messages as our own types, and back. Strings that recur are held once."""

from __future__ import annotations

import sys

from behavry.entitlements.v1 import entitlements_pb2 as ent
from services.common.ids import TenantId
from services.control.features import Entitlements, FeatureAnswer, License, Limits


def entitlements_of(tenant: ent.TenantEntitlements) -> Entitlements:
    has_ceiling = tenant.HasField("installation_license")
    ceiling = license_of(tenant.installation_license) if has_ceiling else None
    return Entitlements(
        tenant=TenantId(tenant.tenant_id),
        plan=sys.intern(tenant.plan),
        status=sys.intern(tenant.status),
        plan_expires_at_s=tenant.plan_expires_at or None,
        revision=tenant.revision,
        features=tuple(
            FeatureAnswer(
                key=key_of(answer.feature),
                allowed=answer.allowed,
                mode=_mode(answer.mode),
                source=sys.intern(ent.Source.Name(answer.source).removeprefix("SOURCE_")),
                required_plan=sys.intern(answer.required_plan),
                changes_at_s=answer.changes_at or None,
            )
            for answer in tenant.features
        ),
        grace_ends_at_s=tenant.grace_ends_at or None,
        limits=_limits(tenant.limits),
        license=license_of(tenant.license) if tenant.HasField("license") else ceiling,
        scheduled=license_of(tenant.scheduled) if tenant.HasField("scheduled") else None,
        overrides=dict(tenant.feature_overrides),
        ceiling=ceiling,
    )


def _limits(limits: ent.Limits) -> Limits:
    return Limits(
        agents=limits.agents if limits.HasField("agents") else None,
        tenants=limits.tenants if limits.HasField("tenants") else None,
        data_planes=limits.data_planes if limits.HasField("data_planes") else None,
    )


def license_of(license: ent.License) -> License:
    return License(
        jti=license.jti,
        customer=license.customer,
        key_id=license.key_id,
        scope=license.scope,
        plan=license.plan,
        status=license.status,
        issued_at_s=license.issued_at,
        not_before_s=license.not_before,
        expires_at_s=license.expires_at,
        grace_ends_at_s=license.grace_ends_at,
    )


def key_of(feature: ent.Feature.ValueType) -> str:
    return sys.intern(ent.Feature.Name(feature).removeprefix("FEATURE_").lower())


def number_of(key: str) -> ent.Feature.ValueType:
    return ent.Feature.Value(f"FEATURE_{key.upper()}")


def _mode(mode: ent.Mode.ValueType) -> str:
    """An unspecified mode enforces the configuration present, as frozen does."""
    name = sys.intern(ent.Mode.Name(mode).removeprefix("MODE_").lower())
    return "frozen" if name == "unspecified" else name
