"""How far a tenant's term is, and what of it has to be told: pure (entitlements.md 3.2, 10).

Which state a plan or a licence is in, entitlements says; here it becomes the event that people hear
of, and the step within it: at 30, 15, 7 and 1 days, then each day of grace. A step only ever tells:
no answer changes by it, so that one's own clock may say when it is due.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from services.common.ids import TenantId
from services.control.features import Entitlements

Event = Literal["license.expiring", "license.grace", "license.lapsed"]
_EVENTS: Final[Mapping[str, Event]] = {
    "EXPIRING": "license.expiring",
    "GRACE": "license.grace",
    "ABSENT": "license.lapsed",
    "EXPIRED": "license.lapsed",
    "REVOKED": "license.lapsed",
}
#: What hides the state of the term: until it is known again, nothing is told.
_UNKNOWN: Final = "CLOCK_SUSPECT"
#: What is worse than that a term ends soon, and says nothing of when.
_BESIDE: Final = "LIMIT_EXCEEDED"
DAY_S: Final = 86_400
#: Days left at which an end is told.
TOLD_AT: Final = (30, 15, 7, 1)
#: The term of a plan that a person or the installation's start has set, not a licence.
BY_PLAN: Final = "plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`event` is None while the term holds for longer. Times are Unix seconds."""

    event: Event | None = None
    #: The licence's id, or BY_PLAN.
    term: str = ""
    ends_at_s: int | None = None
    lapses_at_s: int | None = None
    step: int = 0
    #: When the next step is due; None where no step is to come by time alone.
    next_s: int | None = None

    @property
    def place(self) -> tuple[str | None, str, int | None]:
        return self.event, self.term, self.ends_at_s

    def term_id(self, tenant: TenantId) -> str:
        return str(uuid.uuid5(uuid.UUID(tenant), f"{self.term}\0{self.ends_at_s}"))

    def notice_id(self, tenant: TenantId) -> str:
        """The same for the same step, so that it is told once."""
        return str(uuid.uuid5(uuid.UUID(self.term_id(tenant)), f"{self.event}\0{self.step}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What was told last, of which revision, and the modes as they were then."""

    epoch: str
    revision: int
    event: str | None
    term: str
    ends_at_s: int | None
    step: int
    modes: Mapping[str, str]

    @property
    def place(self) -> tuple[str | None, str, int | None]:
        return self.event, self.term, self.ends_at_s


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What is to be done about a standing."""

    #: A state begins: it is recorded.
    edge: bool = False
    #: People are told.
    told: bool = False
    #: Features whose mode the lapse changed: key, before, after.
    changed: tuple[tuple[str, str, str], ...] = ()
    #: What was noted is another now.
    note: bool = False


def standing(held: Entitlements, now_s: int) -> Standing | None:
    """None: it cannot be said now."""
    if held.status == _UNKNOWN:
        return None
    status = held.status
    if status == _BESIDE:
        status = (
            "EXPIRING" if any(_fits(end, "EXPIRING", now_s) for _, end, _ in _ends(held)) else ""
        )
    event = _EVENTS.get(status)
    if event is None:
        return Standing()
    term, ends_at_s, lapses_at_s = _which(held, status, now_s)
    over_s = {"license.expiring": ends_at_s, "license.grace": lapses_at_s}.get(event)
    if over_s is not None and over_s <= now_s:
        return None  # it is over: what came of it, entitlements has yet to say
    step, next_s = _step(event, ends_at_s, lapses_at_s, now_s)
    return Standing(
        event=event,
        term=term,
        ends_at_s=ends_at_s,
        lapses_at_s=lapses_at_s,
        step=step,
        next_s=next_s,
    )


def news(before: Noted | None, held: Entitlements, epoch: str, now: Standing) -> News:
    """1. an older word changes nothing  2. a trial that has just begun ends in thirty days: nobody
    is told  3. another state, or the same of another term  4. the next step of the same.
    """
    modes = held.modes()
    if before is None:
        fresh = now.event is None or (now.event == "license.expiring" and now.step == 1)  # 2
        return News(edge=not fresh, told=not fresh, note=True)
    if before.epoch == epoch and held.revision < before.revision:  # 1
        return News()
    lapsed = now.event == "license.lapsed"
    edge = now.event is not None and before.place != now.place  # 3
    if lapsed and before.event == now.event:
        edge = False  # what has lapsed does not lapse again
    step = before.place == now.place and now.step > before.step  # 4
    changed = tuple(
        (key, before.modes.get(key, "off"), mode)
        for key, mode in modes.items()
        if before.modes.get(key, "off") != mode
    )
    return News(
        edge=edge,
        told=edge or step,
        changed=changed if edge and lapsed else (),
        note=edge or step or bool(changed) or before.place != now.place,
    )


def _ends(held: Entitlements) -> list[tuple[str, int, int]]:
    """(term, end, lapse) of the tenant's own licence or plan, and of the installation's licence."""
    found = {
        one.jti: (one.jti, one.expires_at_s, one.grace_ends_at_s)
        for one in (held.license, held.ceiling)
        if one is not None
    }
    ends = held.plan_expires_at_s
    if ends is not None and all(end != ends for _, end, _ in found.values()):
        found[""] = (BY_PLAN, ends, held.grace_ends_at_s or ends)
    return list(found.values())


def _fits(end_s: int, status: str, now_s: int) -> bool:
    """Whether an end can be the one that the status speaks of, as far as time tells."""
    match status:
        case "EXPIRING":
            return now_s < end_s <= now_s + TOLD_AT[0] * DAY_S
        case "GRACE" | "EXPIRED":
            return end_s <= now_s
        case _:
            return False


def _which(held: Entitlements, status: str, now_s: int) -> tuple[str, int | None, int | None]:
    """The term that the status speaks of; of several the one that ends first. A licence says its
    own state, a plan is known by its end.
    """
    said = {one.jti for one in (held.license, held.ceiling) if one and one.status == status}
    ends = _ends(held)
    fitting = [one for one in ends if one[0] in said]
    fitting += [one for one in ends if one[0] == BY_PLAN and _fits(one[1], status, now_s)]
    if fitting:
        return min(fitting, key=lambda one: (one[1], one[0]))
    return BY_PLAN, held.plan_expires_at_s, held.grace_ends_at_s


def _step(
    event: Event, ends_at_s: int | None, lapses_at_s: int | None, now_s: int
) -> tuple[int, int | None]:
    """(which step it is, when the next one begins)."""
    if ends_at_s is None:
        return 1, None
    match event:
        case "license.expiring":
            starts = [ends_at_s - days * DAY_S for days in TOLD_AT]
            passed = sum(start <= now_s for start in starts[1:])
            return 1 + passed, next((start for start in starts if start > now_s), None)
        case "license.grace":
            last_s = (lapses_at_s or ends_at_s) - 1
            day = max(0, now_s - ends_at_s) // DAY_S
            following = ends_at_s + (day + 1) * DAY_S
            return 1 + day, following if following <= last_s else None
        case _:
            return 1, None
