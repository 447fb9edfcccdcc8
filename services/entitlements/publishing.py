"""What every tenant may use now, held in memory, and told to whoever watches.

Decides when something is read again: after a change of our own, after one of another replica (its
revision is seen within half a second), and at each instant that time changes something. What is
told has its revision in the database first. What concerns every tenant is worked out portion by
portion, and at once for whoever is asked about: who waits for a change never waits for ten
thousand. Which answers there are is effective.py's.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, TypeVar

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.common.telemetry.logging import Log
from services.entitlements import choosing, effective, stored
from services.entitlements.effective import Ceiling, Tenant, View
from services.entitlements.license import Expected, Revocations, fingerprint
from services.entitlements.license_keys import Keys
from services.entitlements.sources import Sources
from services.entitlements.store import Installation, Row, Settling, Store
from services.entitlements.stored import RawToken, Rejected

#: A change by time is told within 2 s of its instant, one of another replica likewise.
LOOK_S: Final = 0.5
ALIVE_S: Final = 15.0
#: How far the wall clock may be behind the latest that it has been.
CLOCK_SLACK_S: Final = 300
MARK_EVERY_S: Final = 60
#: Tenants read in one statement.
CHUNK: Final = 500
#: Tenants that are worked out before anything else gets its turn.
PORTION: Final = 100
NEVER_S: Final = 2**62


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


@dataclass(slots=True, kw_only=True)
class _Known:
    stored: Tenant
    revision: int
    view: View
    #: The next instant of its own that concerns this tenant; those of the ceiling concern all.
    next_s: int
    #: For which ceiling `view` was worked out.
    ceiling: int
    #: Features that it had under an earlier ceiling and that were not remembered in time.
    owed: frozenset[str] = frozenset()

    @property
    def gained(self) -> frozenset[str]:
        """Features that it has, or had, and that are not remembered yet."""
        return (self.view.allowed() | self.owed) - self.stored.entitled


T = TypeVar("T")


def _chunks(every: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(every), CHUNK):
        yield every[start : start + CHUNK]


def _next_s(tenant: Tenant, after_s: int) -> int:
    following = effective.next_instant(tenant, Ceiling(), after_s)
    return NEVER_S if following is None else following


@dataclass(slots=True, eq=False)
class _Watcher:
    #: In the order in which they changed; None for one that was deleted.
    changed: dict[TenantId, None] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False


class Board:
    """`begin` once, then `run` under a supervisor; `look` after a change of one's own."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        log: Log,
        keys: Keys,
        sources: Sources,
        development: bool,
    ) -> None:
        self._store = store
        self._clock = clock
        self._log = log
        self._sources = sources
        self._development = development
        self._one_at_a_time = asyncio.Lock()
        self._known: dict[TenantId, _Known] = {}
        self._watchers: set[_Watcher] = set()
        self._mark_s = 0
        self._looked_ns = clock.monotonic_ns()
        self._files: tuple[object, ...] = ()
        self._installation: Installation | None = None
        self._installation_id = ""
        self._base = 0
        self._told_ceiling = ""
        self._earliest_s = NEVER_S
        self._ceiling_next_s = NEVER_S
        self._gaining = False
        self._ceilings = 0
        #: To be worked out anew and told; True: to be read again before.
        self._waiting: dict[TenantId, bool] = {}
        #: The revision up to which everything was read: a look that fails is made up for.
        self._complete = 0
        self._complained: set[Rejected] = set()
        self.keys: Final = keys
        self.ceiling = Ceiling(development=development)
        self.revocations = Revocations()
        self.deleted: dict[TenantId, int] = {}

    # --- what is known --------------------------------------------------------------------------

    @property
    def now_s(self) -> int:
        """The wall clock, or the latest that it has been: set back, it revives nothing."""
        self._mark_s = max(self._mark_s, self._clock.now_ns() // 1_000_000_000)
        return self._mark_s

    @property
    def installation(self) -> Installation:
        if self._installation is None:
            raise BehavryError("DEPENDENCY_UNAVAILABLE", "nothing was read yet")
        return self._installation

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._installation_id)

    def count(self) -> int:
        return len(self._known)

    def of(self, tenant: TenantId) -> Told:
        """Raises TENANT_UNKNOWN."""
        known = self._known.get(tenant)
        if known is None:
            raise BehavryError("TENANT_UNKNOWN", "no such tenant")
        return self._told(tenant, known)

    def _told(self, tenant: TenantId, known: _Known) -> Told:
        self._judge_again(known)
        return Told(tenant=tenant, revision=max(known.revision, self._base), view=known.view)

    def stored_of(self, row: Row) -> Tenant:
        """A row with its tokens verified; what is not believed is complained of once."""
        believed = stored.believed(
            row.tokens,
            keys=self.keys,
            expected=Expected(tenant=row.tenant, fingerprint=self.fingerprint),
            revocations=self.revocations,
        )
        self._complain(believed.rejected)
        return Tenant(
            plan=row.plan,
            plan_expires_at_s=row.plan_expires_at_s,
            plan_set_at_s=row.plan_set_at_s,
            licenses=believed.licenses,
            overrides=row.overrides,
            entitled=row.entitled,
        )

    def _complain(self, rejected: Iterable[Rejected]) -> None:
        for one in rejected:
            if one not in self._complained:
                self._complained.add(one)
                self._log.critical("license_rejected", code=one.code, token_sha256=one.token_sha256)

    # --- watchers -------------------------------------------------------------------------------

    async def watch(self) -> AsyncGenerator[Told | Synced | Alive]:
        """Every tenant, Synced, then each change; ends when all must be told anew."""
        mine = _Watcher()
        self._watchers.add(mine)
        try:
            synced = Synced(epoch=self.installation.epoch, revision=self._complete)
            for tenant in list(self._known):
                if mine.over:
                    return
                if known := self._known.get(tenant):
                    mine.changed.pop(tenant, None)
                    yield self._told(tenant, known)
            yield synced
            while not mine.over:
                while mine.changed:
                    tenant = next(iter(mine.changed))
                    del mine.changed[tenant]
                    if (told := self._news_of(tenant)) is not None:
                        yield told
                mine.news.clear()
                try:
                    async with asyncio.timeout(ALIVE_S):
                        await mine.news.wait()
                except TimeoutError:
                    if self._hears():
                        yield Alive()
        finally:
            self._watchers.discard(mine)

    def _news_of(self, tenant: TenantId) -> Told | None:
        if known := self._known.get(tenant):
            return self._told(tenant, known)
        if tenant in self.deleted:
            return Told(tenant=tenant, revision=self.deleted[tenant], view=None)
        return None

    def _hears(self) -> bool:
        """Whether a change of others would have been noticed: silence is not told as calm."""
        return self._clock.monotonic_ns() - self._looked_ns < ALIVE_S * 1e9

    def _announce(self, tenants: Iterable[TenantId]) -> None:
        for watcher in self._watchers:
            watcher.changed.update(dict.fromkeys(tenants))
            watcher.news.set()

    # --- looking --------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(0 if self._waiting else LOOK_S)

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
            files = self._sources.stamp()
            if seen.base_revision != self._base or files != self._files:  # 3
                await self._read_ceiling(seen)
                self._files = files
                seen = await self._store.installation()
            self._installation = seen
            if seen.base_revision != self._base:
                self._base = seen.base_revision
                self._judge_later()
            if seen.revision != self._complete:  # 4
                await self._read_changed(self._complete, first)
            if not await self._tell_ceiling(self.installation):
                self._notice_time()  # 5
                if first is None or len(self._waiting) <= PORTION:
                    await self._catch_up()  # 6
            if True not in self._waiting.values():
                self._complete = seen.revision
            self._looked_ns = self._clock.monotonic_ns()

    async def _keep_time(self, seen: Installation) -> None:
        wall_s = self._clock.now_ns() // 1_000_000_000
        self._mark_s = max(self._mark_s, seen.clock_mark_s)
        now_s = self.now_s
        if now_s - seen.clock_mark_s >= MARK_EVERY_S:
            await self._store.mark(now_s)
        suspect = wall_s < now_s - CLOCK_SLACK_S
        if suspect != self.ceiling.clock_suspect:
            self._log.critical("license_clock", suspect=suspect)
            self.ceiling = replace(self.ceiling, clock_suspect=suspect)

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
        self._installation_id = seen.installation_id
        self._files = self._sources.stamp()
        await self._read_ceiling(seen)
        base = (await self._store.installation()).base_revision
        known = {}
        for some in _chunks(await self._store.tenants()):
            rows = await self._store.states(some, self.now_s)
            known.update({row.tenant: self._judged(row) for row in rows if not row.deleted})
        self._known, self._base, self._installation = known, base, seen
        self._complete = seen.revision
        self._waiting.clear()
        self.deleted.clear()
        for one in known.values():
            self._mind(one)
        for watcher in self._watchers:
            watcher.over = True
            watcher.news.set()

    async def _read_ceiling(self, seen: Installation) -> None:
        """The sources in their order, verified; the first that is believed is the ceiling."""
        lists = [self._sources.revocations(), *await self._store.revocation_lists()]
        self.revocations = stored.newest_list(filter(None, lists), keys=self.keys)
        expected = Expected(tenant=None, fingerprint=fingerprint(seen.installation_id))
        activated = await self._store.tokens()
        found = stored.Believed(licenses=(), rejected=())
        tried: list[Sequence[RawToken]] = [(one,) for one in self._sources.licenses()]
        for tokens in (*tried, activated):
            found = stored.believed(
                tokens, keys=self.keys, expected=expected, revocations=self.revocations
            )
            self._complain(found.rejected)
            if found.licenses:
                break
        self.ceiling = replace(self.ceiling, licenses=found.licenses)
        await self._tell_ceiling(seen)

    async def _tell_ceiling(self, seen: Installation) -> bool:
        """Another ceiling is another revision for every tenant, which the next look sees. What time
        makes of it is told by whoever comes first; a replica that disagrees with another says so
        once, not for ever. Whether it is another one.
        """
        if self.ceiling.tenants != len(self._known):
            self.ceiling = replace(self.ceiling, tenants=len(self._known))
        name, now_s = self._ceiling_name(), self.now_s
        edges = [edge for held in self.ceiling.licenses for edge in held.edges()]
        self._ceiling_next_s = choosing.next_edge(edges, now_s) or NEVER_S
        if name == self._told_ceiling:
            return False
        if name != seen.ceiling:
            await self._store.new_ceiling(name, now_s)
        self._told_ceiling = name
        return True

    def _ceiling_name(self) -> str:
        now_s = self.now_s
        cap = choosing.counting(self.ceiling.licenses, now_s)
        exceeded = cap and cap.license.limits.exceeded({"tenants": self.ceiling.tenants})
        said = (
            *sorted(
                (one.license.token_sha256, one.state(now_s).value) for one in self.ceiling.licenses
            ),
            self.revocations.token_sha256,
            self._development,
            self.ceiling.clock_suspect,
            bool(exceeded),
        )
        return hashlib.sha256(repr(said).encode()).hexdigest()

    # --- tenants --------------------------------------------------------------------------------

    async def _read_changed(self, since: int, first: TenantId | None) -> None:
        """What others have changed; our own settling was read when it was done."""
        changed = [
            tenant
            for tenant, revision in await self._store.changed_since(since)
            if (known := self._known.get(tenant)) is None or known.revision < revision
        ]
        changed.sort(key=lambda tenant: tenant != first)
        await self._read(changed[:PORTION])
        self._announce(changed[:PORTION])
        self._waiting.update(dict.fromkeys(changed[PORTION:], True))

    async def _read(self, tenants: list[TenantId]) -> None:
        if not tenants:
            return
        for row in await self._store.states(tenants, self.now_s):
            if row.deleted:
                self._known.pop(row.tenant, None)
                self.deleted[row.tenant] = row.revision
            else:
                known = self._known[row.tenant] = self._judged(row)
                self._mind(known)

    def _judged(self, row: Row) -> _Known:
        tenant = self.stored_of(row)
        # From what was told last: an instant that passed unnoticed is due.
        next_s = _next_s(tenant, row.settled_at_s)
        return _Known(
            stored=tenant,
            revision=row.revision,
            view=effective.view(tenant, self.ceiling, self._told_until(next_s)),
            next_s=next_s,
            ceiling=self._ceilings,
        )

    def _told_until(self, next_s: int) -> int:
        """Now, or just before an instant that has passed and has no revision yet: two different
        answers never have the same one.
        """
        return min(self.now_s, next_s - 1, self._ceiling_next_s - 1)

    def _judge_later(self) -> None:
        """The ceiling or the list of revoked licences is another one."""
        self._ceilings += 1
        self._waiting = dict.fromkeys(self._known, False) | self._waiting

    def _judge_again(self, known: _Known) -> None:
        """Where it was last done under another ceiling. What it had under that one counts as had,
        remembered or not: no rule vanishes because a ceiling came and went quickly.
        """
        if known.ceiling == self._ceilings:
            return
        known.ceiling, known.owed = self._ceilings, known.gained
        licenses = stored.with_revocations(known.stored.licenses, self.revocations)
        known.stored = replace(known.stored, licenses=licenses)
        had = replace(known.stored, entitled=known.stored.entitled | known.owed)
        at_s = self._told_until(known.next_s)
        known.view = effective.view(had, self.ceiling, at_s)
        known.next_s = min(known.next_s, _next_s(known.stored, at_s))
        if known.next_s > self.now_s:  # else, and where it has gained something: it waits already
            self._earliest_s = min(self._earliest_s, known.next_s)

    def _notice_time(self) -> None:
        """Whoever is changed by time, or has gained something, waits for its revision."""
        now_s = self.now_s
        if now_s < self._earliest_s and not self._gaining:
            return
        self._gaining, self._earliest_s = False, NEVER_S
        for tenant, known in self._known.items():
            if known.next_s <= now_s or known.gained:
                self._waiting.setdefault(tenant, False)
            else:
                self._earliest_s = min(self._earliest_s, known.next_s)

    async def _catch_up(self) -> None:
        """1. what must be read  2. judged  3. what time has brought gets its revision, and is read
        4. told, once.
        """
        some = list(islice(self._waiting, PORTION))
        await self._read([tenant for tenant in some if self._waiting[tenant]])  # 1
        now_s, due = self.now_s, []
        for tenant in some:
            if (known := self._known.get(tenant)) is None:
                continue
            self._judge_again(known)  # 2
            if known.next_s <= now_s or known.gained:
                due.append(
                    Settling(tenant=tenant, due_s=known.next_s, entitled=self._entitled(known))
                )
        if due:
            await self._store.settle(due, now_s)  # 3
            await self._read([one.tenant for one in due])
        for tenant in some:
            del self._waiting[tenant]
        self._announce(some)  # 4

    def _entitled(self, known: _Known) -> frozenset[str]:
        """All that it has had, what time brings now among it."""
        had = known.stored.entitled | known.gained
        if known.next_s > self.now_s:
            return had
        return had | effective.view(known.stored, self.ceiling, self.now_s).allowed()

    def _mind(self, known: _Known) -> None:
        self._earliest_s = min(self._earliest_s, known.next_s)
        self._gaining = self._gaining or bool(known.gained)
