"""What each tenant may use as it was judged last, and whom to judge again, in memory.

Decides for whom another ceiling or time itself makes an answer that needs a revision of its own.
What is believed comes from beliefs.py, the answers from effective.py; when rows are read again,
and who is told, is publishing.py's. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from services.common.ids import TenantId
from services.entitlements import effective, stored
from services.entitlements.beliefs import NEVER_S, Beliefs
from services.entitlements.effective import Ceiling, Tenant, View
from services.entitlements.rows import Row, Settling


@dataclass(slots=True, kw_only=True)
class Judged:
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


class Judgements:
    def __init__(self, beliefs: Beliefs) -> None:
        self._beliefs = beliefs
        self._judged: dict[TenantId, Judged] = {}
        self._earliest_s = NEVER_S
        self._gaining = False
        self._ceilings = 0
        #: Tenants that are no more, and the revision at which they went.
        self.deleted: dict[TenantId, int] = {}
        #: To be judged anew and told; True: to be read again before.
        self.waiting: dict[TenantId, bool] = {}

    def __len__(self) -> int:
        return len(self._judged)

    def __iter__(self) -> Iterator[TenantId]:
        return iter(self._judged)

    def of(self, tenant: TenantId) -> Judged | None:
        """Under the ceiling of now."""
        if (judged := self._judged.get(tenant)) is not None:
            self._judge_again(judged)
        return judged

    def is_older(self, tenant: TenantId, revision: int) -> bool:
        """Whether what is known of the tenant is; our own settling was read when it was done."""
        judged = self._judged.get(tenant)
        return judged is None or judged.revision < revision

    # --- rows that were read --------------------------------------------------------------------

    def judge(self, rows: Iterable[Row]) -> dict[TenantId, Judged]:
        """Those that are not deleted; nobody sees them yet."""
        return {row.tenant: self._judge(row) for row in rows if not row.deleted}

    def begin(self, judged: dict[TenantId, Judged]) -> None:
        """These take the place of all that was known, at once."""
        self._judged = judged
        self.waiting.clear()
        self.deleted.clear()
        for one in judged.values():
            self._mind(one)

    def take(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if row.deleted:
                self._judged.pop(row.tenant, None)
                self.deleted[row.tenant] = row.revision
            else:
                judged = self._judged[row.tenant] = self._judge(row)
                self._mind(judged)

    def settled(self, changes: Iterable[Settling], *, revision: int, at_s: int) -> None:
        """These stand in the database now as they are known here, time's changes told until
        `at_s`: they need not be read again.
        """
        for one in changes:
            known = self._judged[one.tenant]
            tenant = replace(known.stored, entitled=known.stored.entitled | one.entitled)
            judged = self._judged[one.tenant] = self._judged_at(tenant, revision, at_s)
            self._mind(judged)

    def _judge(self, row: Row) -> Judged:
        return self._judged_at(self._beliefs.stored_of(row), row.revision, row.settled_at_s)

    def _judged_at(self, tenant: Tenant, revision: int, settled_at_s: int) -> Judged:
        # From what was told last: an instant that passed unnoticed is due.
        next_s = _next_s(tenant, settled_at_s)
        return Judged(
            stored=tenant,
            revision=revision,
            view=effective.view(tenant, self._beliefs.ceiling, self._told_until(next_s)),
            next_s=next_s,
            ceiling=self._ceilings,
        )

    def _told_until(self, next_s: int) -> int:
        """Now, or just before an instant that has passed and has no revision yet: two different
        answers never have the same one.
        """
        return min(self._beliefs.now_s, next_s - 1, self._beliefs.ceiling_next_s - 1)

    def _mind(self, judged: Judged) -> None:
        self._earliest_s = min(self._earliest_s, judged.next_s)
        self._gaining = self._gaining or bool(judged.gained)

    # --- another ceiling ------------------------------------------------------------------------

    def judge_all_later(self) -> None:
        """The ceiling or the list of revoked licences is another one."""
        self._ceilings += 1
        self.waiting = dict.fromkeys(self._judged, False) | self.waiting

    def _judge_again(self, judged: Judged) -> None:
        """Where it was last done under another ceiling. What it had under that one counts as had,
        remembered or not: no rule vanishes because a ceiling came and went quickly.
        """
        if judged.ceiling == self._ceilings:
            return
        beliefs = self._beliefs
        judged.ceiling, judged.owed = self._ceilings, judged.gained
        licenses = stored.with_revocations(judged.stored.licenses, beliefs.revocations)
        judged.stored = replace(judged.stored, licenses=licenses)
        had = replace(judged.stored, entitled=judged.stored.entitled | judged.owed)
        at_s = self._told_until(judged.next_s)
        judged.view = effective.view(had, beliefs.ceiling, at_s)
        judged.next_s = min(judged.next_s, _next_s(judged.stored, at_s))
        if judged.next_s > beliefs.now_s:  # else, and where it has gained: it waits already
            self._earliest_s = min(self._earliest_s, judged.next_s)

    # --- time -----------------------------------------------------------------------------------

    @property
    def next_s(self) -> int:
        """When time changes somebody next; perhaps nobody then, never later."""
        return min(self._earliest_s, self._beliefs.ceiling_next_s)

    def notice_time(self) -> None:
        """Whoever is changed by time, or has gained something, waits for its revision."""
        now_s = self._beliefs.now_s
        if now_s < self._earliest_s and not self._gaining:
            return
        self._gaining, self._earliest_s = False, NEVER_S
        for tenant, judged in self._judged.items():
            if judged.next_s <= now_s or judged.gained:
                self.waiting.setdefault(tenant, False)
            else:
                self._earliest_s = min(self._earliest_s, judged.next_s)

    def due(self, tenants: Iterable[TenantId], now_s: int) -> list[Settling]:
        """Those of them for whom a revision is due, judged under the ceiling of now."""
        return [
            Settling(
                tenant=tenant,
                known=judged.revision,
                due_s=judged.next_s,
                entitled=self._entitled(judged),
            )
            for tenant in tenants
            if (judged := self.of(tenant)) is not None and (judged.next_s <= now_s or judged.gained)
        ]

    def _entitled(self, judged: Judged) -> frozenset[str]:
        """All that it has had, what time brings now among it."""
        now_s, had = self._beliefs.now_s, judged.stored.entitled | judged.gained
        if judged.next_s > now_s:
            return had
        return had | effective.allowed_at(judged.stored, self._beliefs.ceiling, now_s)


def _next_s(tenant: Tenant, after_s: int) -> int:
    following = effective.next_instant(tenant, Ceiling(), after_s)
    return NEVER_S if following is None else following
