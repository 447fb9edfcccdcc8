"""What is believed beyond one tenant's rows: the time, the ceiling, the list of revoked licences.

Decides how late it is (never earlier than it was), which source of the installation's licence
counts, and by what name another ceiling is known from this one. When something is read again is
publishing.py's, what a ceiling does to a tenant effective.py's. Pure but for the configured files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from services.common.clock import Clock
from services.common.telemetry.logging import Log
from services.entitlements import choosing, stored
from services.entitlements.effective import Ceiling, Tenant
from services.entitlements.license import Expected, Revocations, fingerprint
from services.entitlements.license_keys import Keys
from services.entitlements.rows import Row
from services.entitlements.sources import Sources
from services.entitlements.stored import RawToken, Rejected

#: How far the wall clock may be behind the latest that it has been.
CLOCK_SLACK_S: Final = 300
NEVER_S: Final = 2**62


class Beliefs:
    def __init__(
        self, *, clock: Clock, log: Log, keys: Keys, sources: Sources, development: bool
    ) -> None:
        self._clock = clock
        self._log = log
        self._sources = sources
        self._development = development
        self._latest_s = 0
        self._installation_id = ""
        self._complained: set[Rejected] = set()
        self.keys: Final = keys
        self.ceiling = Ceiling(development=development)
        self.revocations = Revocations()
        #: The next instant at which time changes the ceiling, seen from when it was told last.
        self.ceiling_next_s = NEVER_S

    # --- time -----------------------------------------------------------------------------------

    @property
    def now_s(self) -> int:
        """The wall clock, or the latest that it has been: set back, it revives nothing."""
        self._latest_s = max(self._latest_s, self._wall_s())
        return self._latest_s

    def see_time(self, mark_s: int) -> None:
        """It has been `mark_s` already, says somebody who kept it."""
        self._latest_s = max(self._latest_s, mark_s)
        suspect = self._wall_s() < self.now_s - CLOCK_SLACK_S
        if suspect != self.ceiling.clock_suspect:
            self._log.critical("license_clock", suspect=suspect)
            self.ceiling = replace(self.ceiling, clock_suspect=suspect)

    def _wall_s(self) -> int:
        return self._clock.now_ns() // 1_000_000_000

    # --- the installation -----------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._installation_id)

    def belong_to(self, installation_id: str) -> None:
        self._installation_id = installation_id

    def files(self) -> tuple[object, ...]:
        """Another one when a configured file may say something else."""
        return self._sources.stamp()

    def read(self, lists: Iterable[str], activated: Sequence[RawToken]) -> None:
        """The sources in their order, verified; the first that is believed is the ceiling."""
        every = (self._sources.revocations(), *lists)
        self.revocations = stored.newest_list(filter(None, every), keys=self.keys)
        expected = Expected(tenant=None, fingerprint=self.fingerprint)
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

    def count(self, tenants: int) -> None:
        """How many there are: a licence may be for fewer."""
        if self.ceiling.tenants != tenants:
            self.ceiling = replace(self.ceiling, tenants=tenants)

    def look_ahead(self) -> None:
        edges = [edge for held in self.ceiling.licenses for edge in held.edges()]
        self.ceiling_next_s = choosing.next_edge(edges, self.now_s) or NEVER_S

    def ceiling_name(self) -> str:
        """The same as long as no tenant can be answered otherwise."""
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

    # --- a tenant -------------------------------------------------------------------------------

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
