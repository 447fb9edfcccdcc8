"""What every tenant may use now, kept as the database says, and told to whoever watches.

Decides when something is read again: after a change of our own, after one of another replica (its
revision is seen within half a second), and at each instant that time changes something. What is
told has its revision in the database first. What concerns every tenant is worked out portion by
portion, and at once for whoever is asked about: who waits for a change never waits for ten
thousand. Whose answer changes is judgements.py's, which answers there are effective.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from itertools import islice
from typing import Final, TypeVar

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.entitlements.beliefs import Beliefs
from services.entitlements.judgements import Judged, Judgements
from services.entitlements.rows import Installation
from services.entitlements.store.tables import Store
from services.entitlements.watching import Alive, Synced, Told, Watchers

#: A change by time is told within 2 s of its instant, one of another replica likewise.
LOOK_S: Final = 0.5
#: Between looks where time is behind what was noticed: a clock was set back.
LEAST_S: Final = 0.05
ALIVE_S: Final = 15.0
MARK_EVERY_S: Final = 60
#: Tenants read in one statement.
CHUNK: Final = 500
#: Tenants that are worked out before anything else gets its turn.
PORTION: Final = 100

T = TypeVar("T")


class Board:
    """`look` once, then `run` under a supervisor; `look` after a change of one's own."""

    def __init__(self, *, store: Store, clock: Clock, beliefs: Beliefs) -> None:
        self._store = store
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._judgements = Judgements(beliefs)
        self._watchers = Watchers()
        self._looked_ns = clock.monotonic_ns()
        self._files: tuple[object, ...] = ()
        self._installation: Installation | None = None
        self._base = 0
        self._told_ceiling = ""
        #: The revision up to which everything was read: a look that fails is made up for.
        self._complete = 0
        self.beliefs: Final = beliefs

    # --- what is known --------------------------------------------------------------------------

    @property
    def installation(self) -> Installation:
        if self._installation is None:
            raise BehavryError("DEPENDENCY_UNAVAILABLE", "nothing was read yet")
        return self._installation

    def count(self) -> int:
        return len(self._judgements)

    def of(self, tenant: TenantId) -> Told:
        """Raises TENANT_UNKNOWN."""
        told = self._told(tenant)
        if told is None:
            raise BehavryError("TENANT_UNKNOWN", "no such tenant")
        return told

    def _told(self, tenant: TenantId) -> Told | None:
        judged = self._judgements.of(tenant)
        if judged is None:
            return None
        return Told(tenant=tenant, revision=max(judged.revision, self._base), view=judged.view)

    # --- watchers -------------------------------------------------------------------------------

    async def watch(self) -> AsyncGenerator[list[Told] | Synced | Alive]:
        """Every tenant, Synced, then each change; ends when all must be told anew. Many are told
        together: what each message costs is for a portion.
        """
        with self._watchers.one() as mine:
            synced = Synced(epoch=self.installation.epoch, revision=self._complete)
            for some in _chunks(list(self._judgements), PORTION):
                if mine.is_over():
                    return
                for tenant in some:
                    mine.has_told(tenant)
                yield [told for tenant in some if (told := self._told(tenant)) is not None]
            yield synced
            while not mine.is_over():
                changed = await mine.next_changed(within_s=ALIVE_S, most=PORTION)
                if changed:
                    news = [told for one in changed if (told := self._news_of(one)) is not None]
                    if news:
                        yield news
                elif not mine.is_over() and self._hears():
                    yield Alive()

    def _news_of(self, tenant: TenantId) -> Told | None:
        deleted = self._judgements.deleted
        if (told := self._told(tenant)) is None and tenant in deleted:
            return Told(tenant=tenant, revision=deleted[tenant], view=None)
        return told

    def _hears(self) -> bool:
        """Whether a change of others would have been noticed: silence is not told as calm."""
        return self._clock.monotonic_ns() - self._looked_ns < ALIVE_S * 1e9

    # --- looking --------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(0 if self._judgements.waiting else self._calm_s())

    def _calm_s(self) -> float:
        """Until somebody may have changed something, or time does."""
        ahead_s = self._judgements.next_s - self._clock.now_ns() / 1e9
        return max(LEAST_S, min(LOOK_S, ahead_s))

    async def look(self, first: TenantId | None = None) -> None:
        """1. the time  2. whose database this is  3. the ceiling  4. tenants that changed, `first`
        before any other  5. tenants that time changes  6. a portion of those that wait; where
        they are many, whoever changed one tenant leaves them to `run`. One look at a time, so that
        nothing older overwrites.
        """
        async with self._one_at_a_time:
            seen = await self._store.installation()
            await self._keep_time(seen)  # 1
            seen = await self._same_life(seen)  # 2
            files = self.beliefs.files()
            if seen.base_revision != self._base or files != self._files:  # 3
                await self._read_ceiling(seen)
                self._files = files
                seen = await self._store.installation()
            self._installation = seen
            if seen.base_revision != self._base:
                self._base = seen.base_revision
                self._judgements.judge_all_later()
            if seen.revision != self._complete:  # 4
                await self._read_changed(self._complete, first)
            if not await self._tell_ceiling(self.installation):
                self._judgements.notice_time()  # 5
                if first is None or len(self._judgements.waiting) <= PORTION:
                    await self._catch_up()  # 6
            if True not in self._judgements.waiting.values():
                self._complete = seen.revision
            self._looked_ns = self._clock.monotonic_ns()

    async def _keep_time(self, seen: Installation) -> None:
        self.beliefs.see_time(seen.clock_mark_s)
        now_s = self.beliefs.now_s
        if now_s - seen.clock_mark_s >= MARK_EVERY_S:
            await self._store.mark(now_s)

    async def _same_life(self, seen: Installation) -> Installation:
        """A restored database begins a new epoch, and everybody is told everything again."""
        if not seen.server:
            await self._store.see_server(seen.runs_on)
            seen = await self._store.installation()
        held = self._installation
        went_back = held is not None and (
            held.epoch == seen.epoch and seen.revision < held.revision
        )
        if seen.server != seen.runs_on or went_back:
            await self._store.new_epoch(seen.runs_on, seen.epoch)
            seen = await self._store.installation()
        if held is None or held.epoch != seen.epoch:
            await self._begin(seen)
        return seen

    async def _begin(self, seen: Installation) -> None:
        """Everything is read aside and takes its place at once: nobody sees half of it."""
        self.beliefs.belong_to(seen.installation_id)
        self._files = self.beliefs.files()
        await self._read_ceiling(seen)
        base = (await self._store.installation()).base_revision
        judged: dict[TenantId, Judged] = {}
        for some in _chunks(await self._store.tenants(), CHUNK):
            rows = await self._store.states(some, self.beliefs.now_s)
            judged.update(self._judgements.judge(rows))
        self._judgements.begin(judged)
        self._base, self._installation, self._complete = base, seen, seen.revision
        self._watchers.end()

    async def _read_ceiling(self, seen: Installation) -> None:
        lists = await self._store.revocation_lists()
        self.beliefs.read(lists, await self._store.tokens())
        await self._tell_ceiling(seen)

    async def _tell_ceiling(self, seen: Installation) -> bool:
        """Another ceiling is another revision for every tenant, which the next look sees. What time
        makes of it is told by whoever comes first; a replica that disagrees with another says so
        once, not for ever. Whether it is another one.
        """
        self.beliefs.count(len(self._judgements))
        self.beliefs.look_ahead()
        name = self.beliefs.ceiling_name()
        if name == self._told_ceiling:
            return False
        if name != seen.ceiling:
            await self._store.new_ceiling(name, self.beliefs.now_s)
        self._told_ceiling = name
        return True

    # --- tenants --------------------------------------------------------------------------------

    async def _read_changed(self, since: int, first: TenantId | None) -> None:
        """What others have changed, a portion at once; the rest waits."""
        changed = [
            tenant
            for tenant, revision in await self._store.changed_since(since)
            if self._judgements.is_older(tenant, revision)
        ]
        changed.sort(key=lambda tenant: tenant != first)
        await self._read(changed[:PORTION])
        self._watchers.announce(changed[:PORTION])
        self._judgements.waiting.update(dict.fromkeys(changed[PORTION:], True))

    async def _read(self, tenants: list[TenantId]) -> None:
        if tenants:
            self._judgements.take(await self._store.states(tenants, self.beliefs.now_s))

    async def _catch_up(self) -> None:
        """1. what must be read  2. judged  3. what time has brought gets its revision; who was
        changed by others meanwhile is read  4. told, once.
        """
        waiting = self._judgements.waiting
        some = list(islice(waiting, PORTION))
        await self._read([tenant for tenant in some if waiting[tenant]])  # 1
        now_s = self.beliefs.now_s
        due = self._judgements.due(some, now_s)  # 2
        if due:
            revision, others = await self._store.settle(due, now_s)  # 3
            ours = [one for one in due if one.tenant not in others]
            self._judgements.settled(ours, revision=revision, at_s=now_s)
            await self._read(list(others))
        for tenant in some:
            del waiting[tenant]
        self._watchers.announce(some)  # 4


def _chunks(every: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(every), size):
        yield every[start : start + size]
