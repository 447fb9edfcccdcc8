"""Counts that several processes of one plane share: token buckets, and keys that are remembered.

Decides what taking means; which limits there are, and what a lost store means for a call, is the
caller's to say. No method blocks the loop or takes longer than its store's bound (50 ms); instead
it raises CounterStoreLost, and has then perhaps counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

#: What an empty bucket that never fills answers, and the most that any answers.
MAX_RETRY_MS: Final = 60_000


class CounterStoreLost(Exception):
    """The store does not answer. The message names no key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Holds `burst` tokens, fills by `per_minute`. Starts full. A changed limit holds at once."""

    key: str
    per_minute: int
    burst: int
    cost: int = 1


@dataclass(frozen=True, slots=True)
class Taken:
    """All buckets gave (`retry_after_ms` 0), or none did."""

    allowed: bool
    #: When all of them may have enough, at most MAX_RETRY_MS; at least 1 after a refusal.
    retry_after_ms: int
    #: Key of the bucket that lacked most; empty when allowed.
    lacking: str = ""


class CounterStore(Protocol):
    async def take(self, buckets: Sequence[Bucket]) -> Taken:
        """From all of them or from none, in one round trip."""

    async def remember(self, key: str, ttl_s: int) -> bool:
        """Whether the key was unknown; from now on it is known for `ttl_s`."""

    async def known(self, key: str) -> bool: ...
