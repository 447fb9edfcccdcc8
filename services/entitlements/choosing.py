"""Which of several licences counts at an instant, and which one is waiting (entitlements.md 3.1).
Pure: they were verified before; revocation and time are decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.entitlements import standing
from services.entitlements.license import License
from services.entitlements.standing import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A licence that is stored or configured, and since when it is."""

    license: License
    activated_at_s: int
    revoked: bool = False

    @property
    def began_s(self) -> int:
        """When it took effect: a licence whose `nbf` was ahead waited for it."""
        return max(self.activated_at_s, self.license.not_before_s)

    def state(self, now_s: int) -> State:
        """Revocation, then times: the order of the checks."""
        if self.revoked:
            return State.REVOKED
        if now_s < self.license.not_before_s:
            return State.NOT_YET_VALID
        return standing.state_at(
            now_s, expires_at_s=self.license.expires_at_s, grace_s=self.license.grace_s
        )

    def edges(self) -> tuple[int, ...]:
        """The instants at which `state` changes."""
        if self.revoked:
            return ()
        ends = standing.edges(expires_at_s=self.license.expires_at_s, grace_s=self.license.grace_s)
        return (self.license.not_before_s, *ends)


_RANK: Final = {State.VALID: 0, State.EXPIRING: 0, State.GRACE: 1, State.EXPIRED: 2}


def counting(held: Sequence[Held], now_s: int) -> Held | None:
    """In force before grace before expired before revoked, then the latest `iat`."""
    begun = [one for one in held if one.state(now_s) is not State.NOT_YET_VALID]
    return min(
        begun,
        key=lambda one: (
            _RANK.get(one.state(now_s), 3),
            -one.license.issued_at_s,
            one.license.token_sha256,
        ),
        default=None,
    )


def scheduled(held: Sequence[Held], now_s: int) -> Held | None:
    """The one that takes over next."""
    waiting = [one for one in held if one.state(now_s) is State.NOT_YET_VALID]
    return min(
        waiting,
        key=lambda one: (
            one.license.not_before_s,
            -one.license.issued_at_s,
            one.license.token_sha256,
        ),
        default=None,
    )


def next_edge(instants: Sequence[int], after_s: int) -> int | None:
    return min((one for one in instants if one > after_s), default=None)
