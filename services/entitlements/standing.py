"""In what state a plan or a licence is at an instant (entitlements.md 3.2). Times are whole Unix
seconds; an end belongs to what comes after it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

DAY_S: Final = 86_400
EXPIRING_S: Final = 30 * DAY_S


class State(StrEnum):
    """Codes that something stored can have; the order is from good to bad."""

    VALID = "VALID"
    EXPIRING = "EXPIRING"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    GRACE = "GRACE"
    CLOCK_SUSPECT = "CLOCK_SUSPECT"
    ABSENT = "ABSENT"
    NOT_YET_VALID = "NOT_YET_VALID"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"


class Standing(StrEnum):
    """What a state is worth to whoever holds it."""

    IN_FORCE = "in_force"
    GRACE = "grace"
    LAPSED = "lapsed"


_BADNESS: Final = {state: place for place, state in enumerate(State)}


def worst(*states: State) -> State:
    return max(states, key=_BADNESS.__getitem__)


def standing(state: State) -> Standing:
    match state:
        case State.VALID | State.EXPIRING | State.LIMIT_EXCEEDED | State.CLOCK_SUSPECT:
            return Standing.IN_FORCE
        case State.GRACE:
            return Standing.GRACE
        case _:
            return Standing.LAPSED


def state_at(now_s: int, *, expires_at_s: int | None, grace_s: int) -> State:
    """Of something that has begun; without an end it is valid for ever."""
    if expires_at_s is None or now_s < expires_at_s - EXPIRING_S:
        return State.VALID
    if now_s < expires_at_s:
        return State.EXPIRING
    return State.GRACE if now_s < expires_at_s + grace_s else State.EXPIRED


def edges(*, expires_at_s: int | None, grace_s: int) -> tuple[int, ...]:
    """The instants at which `state_at` changes."""
    if expires_at_s is None:
        return ()
    return (expires_at_s - EXPIRING_S, expires_at_s, expires_at_s + grace_s)
