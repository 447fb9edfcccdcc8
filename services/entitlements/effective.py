"""Answers for the 17 features: (catalogue, plan, licences, overrides, now) -> what a tenant may use
and in which mode. Pure (entitlements.md 2 and 4).

`resolve` decides on what holds at one instant; `view` puts a tenant's plan, licences and overrides
together for an instant and looks ahead to the next ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from services.entitlements import choosing, overrides, standing
from services.entitlements.catalog import (
    FEATURE_CATALOG,
    GRACE_S,
    LOWEST_PLAN,
    RANKS,
    Feature,
    included,
)
from services.entitlements.choosing import Held
from services.entitlements.license import Limits
from services.entitlements.overrides import Override
from services.entitlements.standing import Standing, State


class Source(StrEnum):
    PLAN = "plan"
    OVERRIDE = "override"
    LICENSE = "license"
    GRACE = "grace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    feature: str
    allowed: bool
    mode: str
    source: Source
    required_plan: str


# --- one instant -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a licence gives at an instant; `features` as it says them, true and false."""

    plan: str
    features: frozenset[tuple[str, bool]]
    standing: Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that the answers depend on at one instant."""

    plan: str
    standing: Standing
    #: The tenant's own licence.
    license: Grant | None
    #: The installation's licence; None: `unlimited`, or the trial set.
    ceiling: Grant | None
    unlimited: bool
    #: Live ones: (feature, enabled).
    overrides: frozenset[tuple[str, bool]]
    #: Features that the tenant has had at some time.
    entitled: frozenset[str]

    @property
    def capped_plan(self) -> str:
        """A tenant's plan above the ceiling counts as the ceiling's."""
        if self.unlimited:
            return self.plan
        highest = self.ceiling.plan if self.ceiling else LOWEST_PLAN
        return min(self.plan, highest, key=RANKS.__getitem__)


@lru_cache(maxsize=4096)
def resolve(now: Situation) -> tuple[Answer, ...]:
    """In catalogue order, always 17."""
    return tuple(_answer(feature, now) for feature in FEATURE_CATALOG)


def _answer(feature: Feature, now: Situation) -> Answer:
    allowed, source = _entitled(feature, now, as_if_nothing_lapsed=False)
    mode = "on"
    if not allowed:
        once = feature.key in now.entitled or _entitled(feature, now, as_if_nothing_lapsed=True)[0]
        mode = feature.on_lapse.value if once else "off"
    return Answer(
        feature=feature.key,
        allowed=allowed,
        mode=mode,
        source=source,
        required_plan=feature.plan,
    )


def _entitled(
    feature: Feature, now: Situation, *, as_if_nothing_lapsed: bool
) -> tuple[bool, Source]:
    """Steps 1 to 6 of entitlements.md 4. As if nothing had lapsed: what has ended still counts and
    nobody has disabled anything, which tells a feature that was lost from one that never was.
    """
    key = feature.key

    def counts(grant: Grant) -> bool:
        return as_if_nothing_lapsed or grant.standing is not Standing.LAPSED

    licenses = [grant for grant in (now.ceiling, now.license) if grant and counts(grant)]
    if any((key, False) in grant.features for grant in licenses):  # 1
        return False, Source.LICENSE
    if (key, False) in now.overrides and not as_if_nothing_lapsed:  # 2
        return False, Source.OVERRIDE
    if now.ceiling and not counts(now.ceiling):  # an ended ceiling leaves nothing to steps 3 to 5
        return False, Source.PLAN
    if (key, True) in now.overrides and within_ceiling(feature, now):  # 3
        return True, Source.OVERRIDE
    ceiling_in_grace = now.ceiling is not None and now.ceiling.standing is Standing.GRACE
    saying = [grant for grant in licenses if (key, True) in grant.features]
    if saying and within_ceiling(feature, now):  # 4
        in_grace = ceiling_in_grace or all(one.standing is Standing.GRACE for one in saying)
        return True, Source.GRACE if in_grace else Source.LICENSE
    plan_counts = as_if_nothing_lapsed or now.standing is not Standing.LAPSED
    if plan_counts and included(feature, now.capped_plan):  # 5
        in_grace = ceiling_in_grace or now.standing is Standing.GRACE
        return True, Source.GRACE if in_grace else Source.PLAN
    return False, Source.PLAN  # 6


def within_ceiling(feature: Feature, now: Situation) -> bool:
    """An installation licence's plan plus its features; without one the trial set."""
    if now.unlimited:
        return True
    if now.ceiling is None:
        return included(feature, LOWEST_PLAN)
    for key, on in now.ceiling.features:
        if key == feature.key:
            return on
    return included(feature, now.ceiling.plan)


# --- a tenant through time ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """What is stored of a tenant, its tokens verified. Times in Unix seconds."""

    #: As it was set, by its creation or by a person; None where it has no end.
    plan: str
    plan_expires_at_s: int | None
    plan_set_at_s: int
    licenses: tuple[Held, ...] = ()
    overrides: tuple[Override, ...] = ()
    entitled: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What the whole installation may have."""

    licenses: tuple[Held, ...] = ()
    #: No ceiling where there is no licence.
    development: bool = False
    clock_suspect: bool = False
    #: Of the whole installation, for its limits.
    tenants: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A licence and its state."""

    held: Held
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a tenant has at an instant."""

    plan: str
    state: State
    expires_at_s: int | None
    grace_ends_at_s: int | None
    answers: tuple[Answer, ...]
    #: When each answer changes by time, in the order of `answers`; None where nothing is known.
    changes_at_s: tuple[int | None, ...]
    overrides: frozenset[tuple[str, bool]]
    limits: Limits
    models: tuple[str, ...]
    license: Named | None
    scheduled: Named | None
    ceiling: Named | None

    def allowed(self) -> frozenset[str]:
        return frozenset(answer.feature for answer in self.answers if answer.allowed)


def view(tenant: Tenant, ceiling: Ceiling, now_s: int) -> View:
    """The answers at `now_s`, and how long they stand."""
    situation = situation_at(tenant, ceiling, now_s)
    answers = resolve(situation)
    own = choosing.counting(tenant.licenses, now_s)
    cap = choosing.counting(ceiling.licenses, now_s)
    _, expires_at_s, grace_s, state = _term(tenant, own, now_s)
    return View(
        plan=situation.capped_plan,
        state=_worst(state, cap, ceiling, now_s),
        expires_at_s=expires_at_s,
        grace_ends_at_s=None if expires_at_s is None else expires_at_s + grace_s,
        answers=answers,
        changes_at_s=_changes(tenant, ceiling, now_s, answers),
        overrides=situation.overrides,
        limits=_limits(own, cap),
        models=_models(own, cap),
        license=_named(own, now_s),
        scheduled=_named(
            choosing.scheduled(tenant.licenses, now_s)
            or choosing.scheduled(ceiling.licenses, now_s),
            now_s,
        ),
        ceiling=_named(cap, now_s),
    )


def allowed_at(tenant: Tenant, ceiling: Ceiling, now_s: int) -> frozenset[str]:
    """What `view` allows, without what is ahead."""
    answers = resolve(situation_at(tenant, ceiling, now_s))
    return frozenset(answer.feature for answer in answers if answer.allowed)


def situation_at(
    tenant: Tenant, ceiling: Ceiling, now_s: int, *, entitled: frozenset[str] | None = None
) -> Situation:
    """`entitled` takes the place of what is stored of it."""
    own = choosing.counting(tenant.licenses, now_s)
    cap = choosing.counting(ceiling.licenses, now_s)
    plan, _, _, state = _term(tenant, own, now_s)
    return Situation(
        plan=plan,
        standing=standing.standing(state),
        license=_grant(own, now_s),
        ceiling=_grant(cap, now_s),
        unlimited=cap is None and ceiling.development,
        overrides=overrides.live(tenant.overrides, now_s),
        entitled=tenant.entitled if entitled is None else entitled,
    )


def instants(tenant: Tenant, ceiling: Ceiling) -> list[int]:
    """Every instant at which something of the tenant's view may change, in order."""
    ends = standing.edges(expires_at_s=tenant.plan_expires_at_s, grace_s=GRACE_S[tenant.plan])
    every = {*ends, *overrides.edges(tenant.overrides)}
    for held in (*tenant.licenses, *ceiling.licenses):
        every.update(held.edges())
    return sorted(every)


def next_instant(tenant: Tenant, ceiling: Ceiling, after_s: int) -> int | None:
    return next((one for one in instants(tenant, ceiling) if one > after_s), None)


def _term(tenant: Tenant, own: Held | None, now_s: int) -> tuple[str, int | None, int, State]:
    """(plan, end, grace, state): whatever set the plan last, a person or the tenant's licence."""
    if own and own.began_s >= tenant.plan_set_at_s:
        it = own.license
        return it.plan, it.expires_at_s, it.grace_s, own.state(now_s)
    grace_s = GRACE_S[tenant.plan]
    state = standing.state_at(now_s, expires_at_s=tenant.plan_expires_at_s, grace_s=grace_s)
    return tenant.plan, tenant.plan_expires_at_s, grace_s, state


def _worst(state: State, cap: Held | None, ceiling: Ceiling, now_s: int) -> State:
    states = [state]
    if cap:
        states.append(cap.state(now_s))
        if cap.license.limits.exceeded({"tenants": ceiling.tenants}):
            states.append(State.LIMIT_EXCEEDED)
    if ceiling.clock_suspect:
        states.append(State.CLOCK_SUSPECT)
    return standing.worst(*states)


def _changes(
    tenant: Tenant, ceiling: Ceiling, now_s: int, answers: tuple[Answer, ...]
) -> tuple[int | None, ...]:
    found: list[int | None] = [None] * len(answers)
    for instant, then in _ahead(tenant, ceiling, now_s, answers):
        if then is answers:  # the same situation is resolved once
            continue
        for place, (before, after) in enumerate(zip(answers, then, strict=True)):
            if found[place] is None and before != after:
                found[place] = instant
    return tuple(found)


def _ahead(
    tenant: Tenant, ceiling: Ceiling, now_s: int, answers: tuple[Answer, ...]
) -> Iterator[tuple[int, tuple[Answer, ...]]]:
    """The answers at each instant to come; what is had on the way was had."""
    entitled = tenant.entitled | {answer.feature for answer in answers if answer.allowed}
    for instant in instants(tenant, ceiling):
        if instant > now_s:
            then = resolve(situation_at(tenant, ceiling, instant, entitled=entitled))
            entitled |= {answer.feature for answer in then if answer.allowed}
            yield instant, then


def _grant(held: Held | None, now_s: int) -> Grant | None:
    if held is None:
        return None
    return Grant(
        plan=held.license.plan,
        features=held.license.features,
        standing=standing.standing(held.state(now_s)),
    )


def _named(held: Held | None, now_s: int) -> Named | None:
    return Named(held=held, state=held.state(now_s)) if held else None


def _limits(own: Held | None, cap: Held | None) -> Limits:
    """The lower one of each that is said."""
    said = [held.license.limits for held in (own, cap) if held]

    def lowest(bounds: Iterator[int | None]) -> int | None:
        return min((bound for bound in bounds if bound is not None), default=None)

    return Limits(
        agents=lowest(one.agents for one in said),
        tenants=lowest(one.tenants for one in said),
        data_planes=lowest(one.data_planes for one in said),
    )


#: In the place of deployment models: two licences that have none in common.
NO_MODEL: Final = ("none",)


def _models(own: Held | None, cap: Held | None) -> tuple[str, ...]:
    """Those that every licence allows that says any; empty: all."""
    said = [held.license.models for held in (own, cap) if held and held.license.models]
    if len(said) < 2:
        return said[0] if said else ()
    return tuple(model for model in said[0] if model in said[1]) or NO_MODEL
