"""How often somebody may try: sliding windows in memory, bounded in number.

For doors that are open to everybody. Each process of control keeps its own. What people might guess
(passwords, codes) is also taken from a bucket of the same figures that all processes share, where
they share a store: so several give no more tries than one. Without that store, as when it is lost,
each has its windows. A restart forgets them, which costs a guesser more than it gives.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from services.common.clock import Clock
from services.common.counter_store.protocol import Bucket, CounterStore, CounterStoreLost
from services.common.ids import NIL_TENANT
from services.common.outbox.digests import Digester

_MAX_KEYS: Final = 20_000


class TooMany(Exception):
    """The window is full; `retry_after_s` is when its oldest entry leaves."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("too many attempts")
        self.retry_after_s = retry_after_s


class Window:
    """At most `limit` entries per key in any `seconds`."""

    def __init__(self, clock: Clock, *, limit: int, seconds: int) -> None:
        self.limit = limit
        self.seconds = seconds
        self._clock = clock
        self._span_ns = seconds * 1_000_000_000
        self._entries: OrderedDict[Hashable, deque[int]] = OrderedDict()

    def check(self, key: Hashable) -> None:
        """Raises TooMany when the key's window is full; enters nothing."""
        entries = self._recent(key)
        if entries is not None and len(entries) >= self.limit:
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

    def give_back(self, key: Hashable) -> None:
        """The newest entry was none that counts."""
        entries = self._recent(key)
        if entries:
            entries.pop()

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


@dataclass(frozen=True, slots=True)
class Shared:
    """The store, and the key of the digests that things are named by there: people type passwords
    where their names belong.
    """

    counts: CounterStore
    digester: Digester

    async def take(self, name: str, key: Hashable, window: Window, *, cost: int = 1) -> int:
        """How many milliseconds to wait; 0: it was taken. A cost below 0 gives back."""
        said = repr((name, key)).encode()
        bucket = Bucket(
            key=self.digester.make(NIL_TENANT, "tries", said),
            per_minute=max(1, window.limit * 60 // window.seconds),
            burst=window.limit,
            cost=cost,
        )
        try:
            return (await self.counts.take([bucket])).retry_after_ms
        except CounterStoreLost:
            return 0


class Tries:
    """At most `limit` per key in any `seconds` here; at every process together `limit` at once and
    as many again in each `seconds`.
    """

    def __init__(self, name: str, window: Window, shared: Shared | None) -> None:
        self._name = name
        self._window = window
        self._shared = shared

    async def take(self, key: Hashable) -> None:
        """Raises TooMany."""
        self._window.take(key)
        if self._shared is not None:
            wait_ms = await self._shared.take(self._name, key, self._window)
            if wait_ms:
                raise TooMany(-(-wait_ms // 1_000))

    async def give_back(self, key: Hashable) -> None:
        """The last one was none that counts."""
        self._window.give_back(key)
        if self._shared is not None:
            await self._shared.take(self._name, key, self._window, cost=-1)

    async def forget(self, key: Hashable) -> None:
        """Somebody knew it: earlier tries were slips."""
        self._window.forget(key)
        if self._shared is not None:
            await self._shared.take(self._name, key, self._window, cost=-self._window.limit)


class Limits:
    """The doors and their figures (control.md 2.4, core.md 2)."""

    def __init__(self, clock: Clock, shared: Shared | None = None) -> None:
        def tries(name: str, *, limit: int, seconds: int) -> Tries:
            return Tries(name, Window(clock, limit=limit, seconds=seconds), shared)

        #: Per account and address, and per address over all accounts.
        self.sign_in = tries("sign_in", limit=10, seconds=60)
        self.sign_in_address = tries("sign_in_address", limit=60, seconds=60)
        #: Second factors that were wrong, per person, from wherever.
        self.second_factor = tries("second_factor", limit=10, seconds=300)
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
        self.user_codes = tries("user_codes", limit=10, seconds=300)
