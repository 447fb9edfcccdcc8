"""What a licence limits is counted when something is created, and never after: what exists works on
under any limit.
"""

from __future__ import annotations

from typing import Final

from services.control.api.context import Change, Visit
from services.control.problems import Refusal
from services.control.store import agents, tenants

_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('limit:' || $1, 0))"


async def check_agents(visit: Visit, change: Change) -> None:
    """Raises LIMIT_EXCEEDED where there are as many as may be. Revoked ones do not count."""
    held = visit.control.features.of(change.tenant)
    allowed = held.limits.agents if held else None
    if allowed is None:
        return
    # Two that come at once must not both be the last one.
    await change.connection.execute(_LOCK, f"agents:{change.tenant}")
    _refuse_above("agents", await agents.count(change.connection), allowed)


async def check_tenants(visit: Visit, change: Change) -> None:
    """Of the installation; any tenant's limits say how many it may have."""
    known = (visit.control.features.of(one.id) for one in await tenants.every(change.connection))
    limits = [held.limits.tenants for held in known if held and held.limits.tenants is not None]
    if not limits:
        return
    await change.connection.execute(_LOCK, "tenants")
    _refuse_above("tenants", len(await tenants.every(change.connection)), min(limits))


def _refuse_above(what: str, used: int, allowed: int) -> None:
    if used < allowed:
        return
    raise Refusal(
        "LIMIT_EXCEEDED",
        "The licence allows no more of them; those that there are go on.",
        details={"limit": what, "used": used, "allowed": allowed},
    )
