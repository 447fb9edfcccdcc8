"""What each tenant's plan gives it, as entitlements last said; every tenant whole, in memory.

Decides what is believed (nothing that is older than what is known, within an epoch), when answers
are stale, and what a mode lets a request do. Silence changes no answer: an outage neither gives nor
takes, and what time would change waits until entitlements says so. Fed by clients, kept on disk
by snapshots.py. Of a tenant that nobody has told us of nothing is known: REST then offers the core
alone, and no bundle is built from it (publishing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, Literal, assert_never

import msgspec

from services.common.clock import Clock
from services.common.ids import TenantId
from services.control.problems import Refusal

#: Nothing heard for this long: answers are stale (Alive comes every 15 s).
STALE_AFTER_NS: Final = 60_000_000_000
#: Where an answer comes from when there is none.
FALLBACK: Final = "FALLBACK"
#: The 17 keys; the same set as the contract's enum `Feature` (a test compares them).
KEYS: Final = frozenset({
    "community_library", "custom_dlp_patterns", "behavioral_baselines", "inbound_rules",
    "context_gate", "blast_radius", "cost_attribution", "siem_webhooks", "discovery_connectors",
    "human_governance", "delegation_chains", "workflow_governance", "data_protection",
    "policy_writer_ai", "compliance_modules", "saml_sso", "team_management",
})  # fmt: skip


class FeatureAnswer(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    key: str
    allowed: bool
    #: on, frozen, tightened, kept, stopped or off.
    mode: str
    #: PLAN, OVERRIDE, LICENSE, GRACE.
    source: str
    required_plan: str
    #: Unix seconds of the next change by time; None where none is known.
    changes_at_s: int | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """None: unlimited."""

    agents: int | None = None
    tenants: int | None = None
    data_planes: int | None = None


class License(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A licence without its token."""

    jti: str
    customer: str
    key_id: str
    scope: str
    plan: str
    status: str
    issued_at_s: int
    not_before_s: int
    expires_at_s: int
    grace_ends_at_s: int


class Entitlements(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    tenant: TenantId
    plan: str
    status: str
    #: Unix seconds; None when the plan has no end.
    plan_expires_at_s: int | None
    revision: int
    #: In the catalogue's order.
    features: tuple[FeatureAnswer, ...]
    grace_ends_at_s: int | None = None
    limits: Limits = Limits()
    #: The tenant's own, else the installation's.
    license: License | None = None
    scheduled: License | None = None
    #: Live overrides: true enables, false disables.
    overrides: dict[str, bool] = {}
    #: The installation's licence, whatever the tenant's own is.
    ceiling: License | None = None

    def modes(self) -> dict[str, str]:
        return {feature.key: feature.mode for feature in self.features}

    def answer(self, key: str) -> FeatureAnswer | None:
        for feature in self.features:
            if feature.key == key:
                return feature
        return None


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, as it is kept on disk."""

    epoch: str
    tenants: list[Entitlements]
    catalogue: dict[str, Any] | None = None


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


class Features:
    """`listen`ers hear of each tenant whose answer changed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._epoch = ""
        self._of: dict[TenantId, Entitlements] = {}
        #: When tenants were deleted: a list that was begun before does not bring one back.
        self._gone: dict[TenantId, int] = {}
        self._heard_ns: int | None = None
        self._listeners: list[Callable[[TenantId], None]] = []
        #: Plans and features that can be had, as entitlements last listed them.
        self.catalogue: dict[str, Any] | None = None

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

    def update(self, held: Entitlements) -> None:
        """One tenant, whole. What is older than what is known is not believed."""
        self.heard()
        self._take(held)

    def forget(self, tenant: TenantId, revision: int) -> None:
        """The tenant was deleted."""
        self.heard()
        self._drop(tenant, revision)

    def sync(self, epoch: str, revision: int, all: Mapping[TenantId, Entitlements]) -> None:
        """Everything was told, as it was at `revision` or later. Another epoch than the one we know
        is another life of the database: whatever we held counts no more.
        """
        self.heard()
        if epoch != self._epoch:
            gone, self._epoch = self._of, epoch
            self._of = dict(all)
            self._gone.clear()
            for tenant in gone.keys() | all.keys():
                if gone.get(tenant) != all.get(tenant):
                    self._tell(tenant)
            return
        for held in all.values():
            self._take(held)
        for tenant in self._of.keys() - all.keys():
            self._drop(tenant, revision)  # unless it came after the list was begun

    @property
    def epoch(self) -> str:
        """Which life of entitlements' database the revisions belong to."""
        return self._epoch

    def tenants(self) -> list[TenantId]:
        return list(self._of)

    def kept(self) -> Kept:
        return Kept(epoch=self._epoch, tenants=list(self._of.values()), catalogue=self.catalogue)

    def restore(self, kept: Kept) -> None:
        """What a process before this one was told; stale until entitlements speaks."""
        self._epoch = kept.epoch
        self._of = {held.tenant: held for held in kept.tenants}
        self.catalogue = kept.catalogue

    def _drop(self, tenant: TenantId, revision: int) -> None:
        self._gone[tenant] = max(revision, self._gone.get(tenant, 0))
        known = self._of.get(tenant)
        if known is not None and known.revision <= revision:
            del self._of[tenant]
            self._tell(tenant)

    def _take(self, held: Entitlements) -> None:
        if held.revision <= self._gone.get(held.tenant, -1):
            return
        before = self._of.get(held.tenant)
        if before == held or (before is not None and held.revision < before.revision):
            return
        self._of[held.tenant] = held
        self._tell(held.tenant)

    def _tell(self, tenant: TenantId) -> None:
        for listener in self._listeners:
            listener(tenant)


class Checks:
    """One request's view of one tenant: whatever happens meanwhile, it sees one revision."""

    def __init__(self, features: Features, tenant: TenantId) -> None:
        self._features = features
        self.tenant = tenant
        self.held = features.of(tenant)

    def mode(self, key: str) -> str:
        answer = self.held.answer(key) if self.held else None
        return answer.mode if answer else "off"

    def refusal(self, key: str, what: What) -> Refusal | None:
        """Why the plan does not allow it; None where it does."""
        held = self.held
        answer = held.answer(key) if held else None
        mode = answer.mode if answer else "off"
        if allows(mode, what):
            return None
        required = answer.required_plan if answer else ""
        name, plan = _names(self._features.catalogue, key, required)
        if answer and answer.source == "OVERRIDE":
            detail = f"{name} is switched off for this tenant."
        elif required:
            detail = f"{name} needs the {plan} plan."
        else:
            detail = f"Which plan has {name} is not known now."
        return Refusal(
            "FEATURE_NOT_INCLUDED",
            detail,
            details={
                "feature": key,
                "mode": mode,
                "source": answer.source if answer else FALLBACK,
                "current_plan": held.plan if held else "",
                "required_plan": required,
                "revision": held.revision if held else 0,
            },
        )


def checks_of(state: MutableMapping[str, Any], features: Features, tenant: TenantId) -> Checks:
    """The request's own; `state` lives as long as the request does."""
    known: Checks | None = state.get("plan_checks")
    if known is None or known.tenant != tenant:
        known = state["plan_checks"] = Checks(features, tenant)
    return known


def _names(catalogue: Mapping[str, Any] | None, key: str, plan: str) -> tuple[str, str]:
    """What people call the feature and the plan; without a catalogue, what programs do."""
    said = catalogue or {"features": (), "plans": ()}
    feature = next((one["name"] for one in said["features"] if one["key"] == key), key)
    return feature, next((one["name"] for one in said["plans"] if one["key"] == plan), plan)
