"""What a tenant's plan is, as REST shows it: the standing, the features in the catalogue's order,
the limits and what is used of them (entitlements.md 7). Never a licence's token.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from services.control.features import Entitlements, License
from services.control.store.moments import z

_DAY_S: Final = 86_400
#: Standings that a limit which is passed makes worse.
_GOOD: Final = frozenset({"VALID", "EXPIRING"})


def shown(
    held: Entitlements,
    *,
    names: Mapping[str, str],
    usage: Mapping[str, int],
    now_s: int,
    stale: bool,
) -> dict[str, Any]:
    ends_s = held.plan_expires_at_s
    limits = {"agents": held.limits.agents, "data_planes": held.limits.data_planes}
    exceeded = any(
        allowed is not None and usage[what] > allowed for what, allowed in limits.items()
    )
    return {
        "tenant_id": held.tenant,
        "plan": held.plan,
        "status": "LIMIT_EXCEEDED" if exceeded and held.status in _GOOD else held.status,
        "scope": held.license.scope if held.license else None,
        "expires_at": time_of(ends_s),
        "grace_ends_at": time_of(held.grace_ends_at_s),
        "days_left": None if ends_s is None else max(0, -(-(ends_s - now_s) // _DAY_S)),
        "features": features(held, names),
        "limits": limits,
        "usage": dict(usage),
        "license": license_shown(held.license),
        "scheduled": license_shown(held.scheduled),
        "revision": held.revision,
        "stale": stale,
    }


def features(held: Entitlements, names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "key": one.key,
            "name": names.get(one.key, one.key),
            "allowed": one.allowed,
            "mode": one.mode,
            "source": one.source,
            "required_plan": one.required_plan,
            "changes_at": time_of(one.changes_at_s),
        }
        for one in held.features
    ]


def license_shown(license: License | None) -> dict[str, Any] | None:
    if license is None:
        return None
    return {
        "jti": license.jti,
        "customer": license.customer,
        "key_id": license.key_id,
        "issued_at": time_of(license.issued_at_s),
        "scope": license.scope,
        "plan": license.plan,
        "starts_at": time_of(license.not_before_s),
        "expires_at": time_of(license.expires_at_s),
        "grace_ends_at": time_of(license.grace_ends_at_s),
    }


def mode_changes(before: Entitlements | None, after: Entitlements) -> list[dict[str, Any]]:
    """Which features have another mode, as records say it."""
    old = before.modes() if before else {}
    return [
        {"field": f"modes.{key}", "old": old.get(key, "off"), "new": mode}
        for key, mode in after.modes().items()
        if old.get(key, "off") != mode
    ]


def time_of(seconds: int | None) -> str | None:
    return None if not seconds else z(datetime.fromtimestamp(seconds, UTC))
