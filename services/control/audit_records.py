"""Records of what people and machines changed or tried: `admin.*`, `user.*` and their kin (audit.md
1).

Decides their fields and chain. They are put into the table outbox in the transaction of the change,
so that neither exists without the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.common.clock import micros
from services.common.ids import NIL_TENANT, TenantId
from services.common.outbox.record import Record
from services.control.principals import Principal

ADMIN_CHAIN: Final = "admin"
SYSTEM_CHAIN: Final = "system"
#: Fields of whose value a record says only that it was set.
SECRET_FIELDS: Final = frozenset({"client_secret", "token", "key", "password", "secret"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """Where a change came from, the same for all records of one request."""

    actor: Mapping[str, Any]
    route: str
    request_id: str
    client_ip: str
    now_ns: int


def change(field: str, old: Any, new: Any) -> dict[str, Any]:
    """One entry of `changes`; a secret is `"set"`."""
    if field in SECRET_FIELDS:
        return {"field": field, "new": "set"}
    entry: dict[str, Any] = {"field": field, "new": new}
    if old is not None:
        entry["old"] = old
    return {key: value for key, value in entry.items() if value is not None}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of `new` that differ from `old`."""
    return [change(name, old.get(name), new[name]) for name in new if old.get(name) != new[name]]


def admin(
    type: str,
    tenant: TenantId,
    came: Circumstances,
    *,
    resource: str,
    resource_id: str,
    changes: Sequence[Mapping[str, Any]] = (),
    reason: str | None = None,
    step_up: bool | None = None,
) -> Record:
    """`type` is `admin.<resource>.<verb>`. `step_up`: whether the password had just been given;
    None where nobody asks.
    """
    return Record(
        type=type,
        tenant=tenant,
        chain=ADMIN_CHAIN,
        at_us=micros(came.now_ns),
        fields={
            **_common(came),
            "resource": resource,
            "resource_id": resource_id,
            "changes": [dict(entry) for entry in changes] or None,
            "reason": reason or None,
            "step_up": step_up,
        },
    )


def user(
    type: str,
    tenant: TenantId | None,
    came: Circumstances,
    *,
    reason: str | None = None,
    count: int = 1,
) -> Record:
    """`user.signin` and its kin. An unknown tenant's go to the system chain. `count`: how many
    alike this one stands for.
    """
    return Record(
        type=type,
        tenant=tenant or NIL_TENANT,
        chain=ADMIN_CHAIN if tenant else SYSTEM_CHAIN,
        at_us=micros(came.now_ns),
        fields={**_common(came), "reason": reason, "count": count if count > 1 else None},
    )


def other(type: str, tenant: TenantId, came: Circumstances, **fields: Any) -> Record:
    """`entitlement.*` and `license.*`: what a tenant's plan did, or was made to do."""
    return Record(
        type=type,
        tenant=tenant,
        chain=ADMIN_CHAIN,
        at_us=micros(came.now_ns),
        fields={**_common(came), **fields},
    )


def by(principal: Principal, **where: Any) -> Circumstances:
    return Circumstances(actor=principal.actor(), **where)


def _common(came: Circumstances) -> dict[str, Any]:
    return {
        "actor": dict(came.actor),
        "route": came.route,
        "request_id": came.request_id,
        "client_ip": came.client_ip,
    }
