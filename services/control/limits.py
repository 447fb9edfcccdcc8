"""How often somebody may try: sliding windows in memory, bounded in number.

For sign-in, token and enrolment doors, which are open to everybody. One control process per
installation keeps them; a restart forgets them, which costs a guesser more than it gives.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Final

from services.common.clock import Clock

_MAX_KEYS: Final = 20_000


class TooMany(Exception):
    """The window is full; `retry_after_s` is when its oldest entry leaves."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("too many attempts")
        self.retry_after_s = retry_after_s


class Window:
    """At most `limit` entries per key in any `seconds`."""

    def __init__(self, clock: Clock, *, limit: int, seconds: int) -> None:
        self._clock = clock
        self._limit = limit
        self._span_ns = seconds * 1_000_000_000
        self._entries: OrderedDict[Hashable, deque[int]] = OrderedDict()

    def check(self, key: Hashable) -> None:
        """Raises TooMany when the key's window is full; enters nothing."""
        entries = self._recent(key)
        if entries is not None and len(entries) >= self._limit:
            wait_ns = entries[0] + self._span_ns - self._clock.monotonic_ns()
            raise TooMany(max(1, -(-wait_ns // 1_000_000_000)))

    def enter(self, key: Hashable) -> None:
        entries = self._recent(key)
        if entries is None:
            entries = self._entries[key] = deque()
            if len(self._entries) > _MAX_KEYS:
                self._entries.popitem(last=False)
        entries.append(self._clock.monotonic_ns())
        self._entries.move_to_end(key)

    def take(self, key: Hashable) -> None:
        """check, then enter."""
        self.check(key)
        self.enter(key)

    def forget(self, key: Hashable) -> None:
        self._entries.pop(key, None)

    def _recent(self, key: Hashable) -> deque[int] | None:
        entries = self._entries.get(key)
        if entries is not None:
            oldest = self._clock.monotonic_ns() - self._span_ns
            while entries and entries[0] <= oldest:
                entries.popleft()
        return entries


class Merging:
    """Which of many alike are told one by one: ten per key and minute, the others as a number."""

    def __init__(self, clock: Clock) -> None:
        self._told = Window(clock, limit=10, seconds=60)
        self._untold: OrderedDict[Hashable, int] = OrderedDict()

    def admit(self, key: Hashable) -> int:
        """How many this one stands for when it is told now; 0: it is counted, and told later."""
        try:
            self._told.take(key)
        except TooMany:
            self._untold[key] = self._untold.get(key, 0) + 1
            if len(self._untold) > _MAX_KEYS:
                self._untold.popitem(last=False)
            return 0
        return 1 + self._untold.pop(key, 0)


class TokenDoor:
    """Requests per client; failures per client and address."""

    def __init__(self, clock: Clock) -> None:
        self.requests = Window(clock, limit=30, seconds=60)
        self.failures = Window(clock, limit=10, seconds=300)


class Limits:
    """The doors and their figures (control.md 2.4, core.md 2)."""

    def __init__(self, clock: Clock) -> None:
        #: Per account and address, and per address over all accounts.
        self.sign_in = Window(clock, limit=10, seconds=60)
        self.sign_in_address = Window(clock, limit=60, seconds=60)
        #: Second factors that were wrong, per person, from wherever.
        self.second_factor = Window(clock, limit=10, seconds=300)
        #: The token door. Clients that do not exist have one of their own, with the same figures:
        #: a flood of invented ones pushes no real client's failures out of memory.
        self.known_clients = TokenDoor(clock)
        self.unknown_clients = TokenDoor(clock)
        #: Enrolments with tokens that are none, per address.
        self.enroll_failures = Window(clock, limit=30, seconds=60)
        #: Tries to accept invites that are none, per address.
        self.invite_failures = Window(clock, limit=30, seconds=60)
        #: Tries to use links to another password that are none, per address.
        self.reset_failures = Window(clock, limit=30, seconds=60)
        #: Links asked for by mail: per address, and in silence per name.
        self.forgot_address = Window(clock, limit=10, seconds=60)
        self.forgot_name = Window(clock, limit=3, seconds=900)
        #: Words of providers that somebody signed out, and that are none, per address.
        self.logout_failures = Window(clock, limit=30, seconds=60)
        #: Devices that ask for codes, and codes of devices that are none, per address.
        self.device_begins = Window(clock, limit=30, seconds=60)
        self.device_failures = Window(clock, limit=30, seconds=60)
        #: Codes for people that are none: per person, from wherever.
        self.user_codes = Window(clock, limit=10, seconds=300)
