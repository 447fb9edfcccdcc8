"""What each tenant's plan gives it, as entitlements last said; kept in memory.

Fed by clients.py. Without an answer (entitlements was never reached) nothing is known, and whoever
asks must treat a feature as FROZEN: what is configured is enforced, nothing new may be configured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, assert_never

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import TenantId

#: A stream that is silent for this long is stale (Alive comes every 15 s).
STALE_AFTER_NS: Final = 45_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureAnswer:
    key: str
    allowed: bool
    #: on, frozen, tightened, kept, stopped or off.
    mode: str
    source: str
    required_plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entitlements:
    tenant: TenantId
    plan: str
    status: str
    #: Unix seconds; None when the plan has no end.
    plan_expires_at_s: int | None
    revision: int
    features: tuple[FeatureAnswer, ...]

    def modes(self) -> dict[str, str]:
        return {feature.key: feature.mode for feature in self.features}


#: What a request does to the things of a feature. Read and write follow from its method; a route
#: that deletes, disables, deactivates or renews says so.
What = Literal["read", "write", "remove"]
#: Modes under which existing things may still be taken away (entitlements.md 2).
_REMOVABLE: Final = frozenset({"frozen", "tightened", "kept", "stopped"})


def allows(mode: str, what: What) -> bool:
    """Whether a mode lets such a request through. An unknown mode is as `off`."""
    if mode == "on":
        return True
    match what:
        case "read" | "remove":
            return mode in _REMOVABLE
        case "write":
            return False
    assert_never(what)


def admit(features: Features, tenant: TenantId, feature: str, what: What) -> None:
    """Raises FEATURE_NOT_INCLUDED, which names feature, mode and plans. What nobody has told us of
    is not included: without any answer REST offers the core alone.
    """
    held = features.of(tenant)
    answers = held.features if held else ()
    answer = next((one for one in answers if one.key == feature), None)
    mode = answer.mode if answer else "off"
    if allows(mode, what):
        return
    raise BehavryError(
        "FEATURE_NOT_INCLUDED",
        "The plan does not include this feature.",
        feature=feature,
        mode=mode,
        current_plan=held.plan if held else "",
        required_plan=answer.required_plan if answer else "",
    )


class Features:
    """`listen`ers hear of each tenant whose answer changed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._of: dict[TenantId, Entitlements] = {}
        self._heard_ns: int | None = None
        self._listeners: list[Callable[[TenantId], None]] = []

    def listen(self, listener: Callable[[TenantId], None]) -> None:
        self._listeners.append(listener)

    def of(self, tenant: TenantId) -> Entitlements | None:
        return self._of.get(tenant)

    @property
    def stale(self) -> bool:
        silent_since = self._heard_ns
        return silent_since is None or self._clock.monotonic_ns() - silent_since > STALE_AFTER_NS

    def heard(self) -> None:
        """The stream lives."""
        self._heard_ns = self._clock.monotonic_ns()

    def update(self, entitlements: Entitlements) -> None:
        self.heard()
        before = self._of.get(entitlements.tenant)
        self._of[entitlements.tenant] = entitlements
        if before != entitlements:
            for listener in self._listeners:
                listener(entitlements.tenant)
