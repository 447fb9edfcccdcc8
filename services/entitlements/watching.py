"""Who waits for news, and of which tenants. What is told, and when, is publishing.py's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from services.common.ids import TenantId
from services.entitlements.effective import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A tenant as it is told; `view` is None once it was deleted."""

    tenant: TenantId
    revision: int
    view: View | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    epoch: str
    revision: int


class Alive:
    """Nothing has changed, and we would know."""


@dataclass(slots=True, eq=False)
class Watcher:
    #: In the order in which they changed.
    _changed: dict[TenantId, None] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _over: bool = False

    def is_over(self) -> bool:
        """All must be told anew, by another watch."""
        return self._over

    def hear(self, tenants: Iterable[TenantId]) -> None:
        self._changed.update(dict.fromkeys(tenants))
        self._news.set()

    def end(self) -> None:
        self._over = True
        self._news.set()

    def has_told(self, tenant: TenantId) -> None:
        """What was announced of it so far is in what is told now."""
        self._changed.pop(tenant, None)

    async def next_changed(self, *, within_s: float, most: int) -> list[TenantId]:
        """The tenants that changed first; none where none does, or when it is over."""
        if not self._changed and not self._over:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._news.wait()
        if self._over or not self._changed:
            return []
        first = list(islice(self._changed, most))
        for tenant in first:
            del self._changed[tenant]
        return first


class Watchers:
    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()

    @contextlib.contextmanager
    def one(self) -> Iterator[Watcher]:
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def announce(self, tenants: Iterable[TenantId]) -> None:
        every = list(tenants)
        for watcher in self._watchers:
            watcher.hear(every)

    def end(self) -> None:
        for watcher in self._watchers:
            watcher.end()
