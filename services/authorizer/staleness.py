"""How old the plane's policy is, and what that means (deployment.md 3.5). Pure.

Age counts from the request whose answer (200 or 304) control gave last. In this build the answer
itself renews it; a signed freshness statement bound to a nonce comes with the trust root's
rotation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PolicyState = Literal["fresh", "stale", "expired"]
STALE_AFTER_S: Final = 300
#: A wall clock further behind its own mark than this is not believed.
CLOCK_SUSPECT_S: Final = 300


@dataclass(frozen=True, slots=True)
class Freshness:
    state: PolicyState
    age_s: int


def freshness(
    *, confirmed_s: int, now_s: int, mark_s: int, not_after_s: int, expire_after_s: int
) -> Freshness:
    """`mark_s` is the latest wall time ever seen: a clock set back revives nothing."""
    now = now_s if now_s >= mark_s - CLOCK_SUSPECT_S else mark_s
    age = max(0, now - confirmed_s)
    if now >= not_after_s or age >= expire_after_s:
        return Freshness("expired", age)
    return Freshness("stale" if age >= STALE_AFTER_S else "fresh", age)
