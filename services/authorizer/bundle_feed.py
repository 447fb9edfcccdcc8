"""Keeps the active bundle the newest good one: polls control, verifies, offers it to the engine,
asks the canaries, persists, switches (deployment.md 3.4). Any failure keeps the previous bundle.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Final, Protocol

import aiohttp

from services.authorizer import bundles
from services.authorizer.active import ActivePolicy
from services.authorizer.bundle_store import BundleStore, Marks
from services.authorizer.bundles import BundleRefused, Trust, VerifiedBundle
from services.authorizer.decision import EngineFailed, EngineSaid
from services.authorizer.link_token import LinkTokens
from services.common.clock import Clock
from services.common.ids import TenantId
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log, describe

JITTER: Final = 0.1
FETCH_TIMEOUT_S: Final = 20.0
CANARY_TIMEOUT_S: Final = 5.0
MIN_CANARIES: Final = 3


class Judge(Protocol):
    """The engine, as the feed needs it."""

    async def offer(self, bundle: VerifiedBundle) -> None:
        """Returns once the engine answers for this bundle. Raises BundleRefused."""

    async def ask_alone(
        self, tenant: TenantId, revision: str, item: bytes, *, budget_s: float
    ) -> EngineSaid | EngineFailed:
        """One evaluation outside any batch."""


class Journal(Protocol):
    """Where activations and refusals are recorded."""

    async def bundle_activated(self, bundle: VerifiedBundle, *, from_disk: bool) -> None: ...

    async def bundle_rejected(self, reason: str, *, serial: int) -> None: ...


@dataclass(slots=True, kw_only=True)
class BundleFeed:
    url: str
    http: aiohttp.ClientSession
    tokens: LinkTokens
    trust: Trust
    store: BundleStore
    judge: Judge
    active: ActivePolicy
    journal: Journal
    clock: Clock
    poll_s: int
    counters: Counters
    log: Log
    _poke: asyncio.Event = field(default_factory=asyncio.Event)

    def poke(self) -> None:
        """A newer bundle waits: ask now."""
        self._poke.set()

    async def restore(self) -> None:
        """The newest good bundle on disk, verified as if fetched."""
        marks = self.store.marks()
        self.active.mark_s = max(self.active.mark_s, marks.clock_mark_s)
        for archive in self.store.newest_first():
            try:
                bundle = bundles.verify(archive, self.trust, now_s=self._now_s())
                await self._switch(bundle)
            except BundleRefused as refused:
                await self._reject(refused, serial=0)
                continue
            self.active.confirmed_s = marks.confirmed_s
            self.active.activated(oldest_serial=self.store.oldest_serial())
            await self.journal.bundle_activated(bundle, from_disk=True)
            return

    async def run(self) -> None:
        """Polls until cancelled; every attempt, failed ones included, uses up the interval."""
        while True:
            self._poke.clear()
            try:
                await self._poll()
                await self._forget_revocations()
            except (aiohttp.ClientError, TimeoutError) as away:
                self.log.warning("bundle_fetch_failed", error=type(away).__name__)
            except BundleRefused as refused:
                await self._reject(refused, serial=self.active.serial)
            pause = self.poll_s * (1 + random.uniform(-JITTER, JITTER))  # noqa: S311  # jitter
            if self.active.bundle is None:
                pause = min(pause, 1.0)
            try:
                await asyncio.wait_for(self._poke.wait(), pause)
            except TimeoutError:
                continue

    async def _poll(self) -> None:
        headers = {"Authorization": self.tokens.bearer()}
        if self.active.bundle:
            headers["If-None-Match"] = f'"{self.active.bundle.digest}"'
        timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
        async with self.http.get(
            self.url, headers=headers, timeout=timeout, allow_redirects=False
        ) as answer:
            if answer.status == 304:
                self._confirm()
                return
            if answer.status != 200:
                self.log.warning("bundle_fetch_refused", status=answer.status)
                return
            archive = await answer.content.read(bundles.MAX_PACKED + 1)
            while not answer.content.at_eof() and len(archive) <= bundles.MAX_PACKED:
                archive += await answer.content.read(bundles.MAX_PACKED + 1 - len(archive))
        await self._accept(archive)

    async def _accept(self, archive: bytes) -> None:
        bundle = bundles.verify(archive, self.trust, now_s=self._now_s())
        marks = self.store.marks()
        if bundle.serial < marks.max_serial:
            raise BundleRefused("BUNDLE_ROLLBACK", "the bundle is older than one that ran here")
        if bundle.serial == marks.max_serial and bundle.digest != marks.digest:
            raise BundleRefused("BUNDLE_EQUIVOCATION", "two bundles carry the same serial")
        if self.active.bundle is None or bundle.digest != self.active.bundle.digest:
            await self._switch(bundle)
            self.active.activated(oldest_serial=self.store.oldest_serial())
            self.store.keep(bundle.serial, archive, self._marks(bundle))
            self._confirm()
            self.counters.counter("authorizer.bundles.activated").value += 1
            self.log.info("bundle_activated", serial=bundle.serial, revision=bundle.revision)
            await self.journal.bundle_activated(bundle, from_disk=False)
        else:
            self._confirm()

    async def _forget_revocations(self) -> None:
        try:
            await self.active.revocations.save()
        except OSError as failure:  # they stay in the file a little longer
            self.log.warning("revocations_not_saved", error=describe(failure))

    async def _switch(self, bundle: VerifiedBundle) -> None:
        """The engine first, then our own view; back to the previous one if a canary fails."""
        previous = self.active.bundle
        self.active.begin_switch()
        try:
            await self.judge.offer(bundle)
            try:
                await asyncio.wait_for(self._ask_canaries(bundle), CANARY_TIMEOUT_S)
            except (BundleRefused, TimeoutError) as failed:
                if previous is not None:
                    await self.judge.offer(previous)
                raise BundleRefused(
                    "BUNDLE_CANARY_FAILED", "a canary was not answered as listed"
                ) from failed
            self.active.bundle = bundle
        finally:
            self.active.end_switch()

    async def _ask_canaries(self, bundle: VerifiedBundle) -> None:
        canaries = bundle.state.canaries
        if len(canaries) < MIN_CANARIES and bundle.state.tenants:
            raise BundleRefused("BUNDLE_CANARY_FAILED", "the bundle lists too few canaries")
        for canary in canaries:
            tenant = TenantId(canary.tenant)
            answer = await self.judge.ask_alone(
                tenant,
                bundle.revision,
                bytes(canary.input),
                budget_s=CANARY_TIMEOUT_S,
            )
            said = answer.result.value if isinstance(answer, EngineSaid) else "deny"
            if said != canary.expect:
                raise BundleRefused("BUNDLE_CANARY_FAILED", "a canary was not answered as listed")

    async def _reject(self, refused: BundleRefused, *, serial: int) -> None:
        self.counters.counter("authorizer.bundles.rejected").value += 1
        self.log.error("bundle_rejected", reason=refused.reason, serial=serial)
        await self.journal.bundle_rejected(refused.reason, serial=serial)

    def _confirm(self) -> None:
        self.active.confirmed_s = self._now_s()
        self.active.mark_s = self.active.confirmed_s
        if self.active.revocations.confirm(now_ns=self.clock.monotonic_ns()):
            self.active.changed()
        if self.active.bundle:
            self.store.mark(self._marks(self.active.bundle))

    def _marks(self, bundle: VerifiedBundle) -> Marks:
        now_s = self._now_s()
        return Marks(
            max_serial=bundle.serial, digest=bundle.digest, confirmed_s=now_s, clock_mark_s=now_s
        )

    def _now_s(self) -> int:
        return self.clock.now_ns() // 1_000_000_000
