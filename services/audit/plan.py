"""Once-only, as a pure function: which records of a batch are new, which are stored already, which
contradict what is stored, and where the new ones go.

A mark is the highest number stored per source and start (within a tenant). Above its mark a record
is new; a jump is noted. At or below, the record is looked up by its id: the same body is a repeat,
another body is a conflict, an absent one is appended late. What the database holds is handed in;
reading it under the tenant's lock, writing the plan and trying again are writer.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.audit.chain import Head, Link, beginning, link
from services.audit.record import Columns
from services.common.ids import NIL_TENANT

#: (source, boot)
MarkKey = tuple[str, str]


class Part(NamedTuple):
    kind: str
    salt: bytes
    stored: bytes
    mode: str


class Item(NamedTuple):
    """A record as it came in, looked at already; `rejection` says why it cannot be taken."""

    peer: str
    source: str
    boot: str
    n: int
    chain: str
    event_id: str
    body: bytes
    columns: Columns
    parts: tuple[Part, ...] = ()
    rejection: str = ""


class Row(NamedTuple):
    """A record with its place: what becomes a row of `events`."""

    item: Item
    link: Link


class Notice(NamedTuple):
    """What audit itself has to record about a batch."""

    type: str
    fields: Mapping[str, object]


#: Makes a notice into a record of audit's own source with this number.
MakeNotice = Callable[[Notice, str, int], Item]


@dataclass(slots=True, kw_only=True)
class Sorted:
    """The first half of a plan: what becomes of each record. Marks are already moved."""

    new: list[Item] = field(default_factory=list)
    rejected: list[Item] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    repeats: int = 0
    marks: dict[MarkKey, int] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Plan:
    """What one transaction writes. Old values are what the rows must still hold."""

    rows: list[Row]
    heads: list[tuple[Head, Head]]
    marks: list[tuple[MarkKey, int, int]]


def doubtful(items: Sequence[Item], marks: Mapping[MarkKey, int]) -> set[str]:
    """Ids that must be looked up: records at or below their mark, as it stands when they come."""
    reached = dict(marks)
    ids = set()
    for item in items:
        key = (item.source, item.boot)
        if item.n > reached.get(key, 0):
            reached[key] = item.n
        else:
            ids.add(item.event_id)
    return ids


def sort(
    items: Sequence[Item], marks: Mapping[MarkKey, int], stored: Mapping[str, bytes]
) -> Sorted:
    """`stored`: bodies of the doubtful ids that the database has."""
    result = Sorted(marks=dict(marks))
    known = dict(stored)
    for item in items:
        key = (item.source, item.boot)
        mark = result.marks.get(key, 0)
        if item.n > mark:
            if item.n > mark + 1:
                result.notices.append(_gap(item, mark))
            result.marks[key] = item.n
        elif item.event_id in known:
            if known[item.event_id] == item.body:
                result.repeats += 1
            else:
                result.rejected.append(item._replace(rejection="source_conflict"))
            continue
        if item.rejection:
            result.rejected.append(item)
        else:
            known[item.event_id] = item.body
            result.new.append(item)
    return result


def place(
    sorted_: Sorted,
    *,
    tenant: str,
    own: MarkKey,
    heads: Mapping[str, Head],
    marks: Mapping[MarkKey, int],
    refused: Collection[Item],
    make_notice: MakeNotice,
    now_us: int,
) -> Plan:
    """The second half: places in the chains. `refused`: the rejected ones that were not known to be
    so before, each of which is recorded.
    """
    placer = _Placer(tenant, dict(heads), marks.get(own, 0), make_notice, now_us)
    for item in sorted_.new:
        placer.append(item)
    for notice in sorted_.notices:
        placer.note(notice)
    for item in refused:
        placer.note(_refusal(item))
    moved = {**sorted_.marks, own: placer.own_n}
    return Plan(
        rows=placer.rows,
        heads=[(heads.get(name) or beginning(name), placer.heads[name]) for name in placer.touched],
        marks=[(key, marks.get(key, 0), n) for key, n in moved.items() if n != marks.get(key, 0)],
    )


class _Placer:
    """Gives out places, and opens chains: the opening of each is recorded, so that a chain that is
    gone whole is missed by somebody.
    """

    def __init__(
        self,
        tenant: str,
        heads: dict[str, Head],
        own_n: int,
        make_notice: MakeNotice,
        now_us: int,
    ) -> None:
        self.heads = heads
        self.rows: list[Row] = []
        self.touched: dict[str, None] = {}
        self.own_n = own_n
        self._tenant = tenant
        self._own_chain = chain_of_notices(tenant)
        self._make_notice = make_notice
        self._now_us = now_us

    def append(self, item: Item) -> None:
        if item.chain not in self.heads:
            self._open(item.chain)
        self._put(item)

    def note(self, notice: Notice) -> None:
        if self._own_chain not in self.heads:
            self._open(self._own_chain)
        self._put_own(notice)

    def _open(self, chain: str) -> None:
        if chain != self._own_chain and self._own_chain not in self.heads:
            self._open(self._own_chain)
        if chain not in self.heads:
            self._put_own(Notice("chain.opened", {"resource_kind": "chain", "resource": chain}))

    def _put_own(self, notice: Notice) -> None:
        self.own_n += 1
        self._put(self._make_notice(notice, self._own_chain, self.own_n))

    def _put(self, item: Item) -> None:
        head = self.heads.get(item.chain) or beginning(item.chain)
        linked = link(head, tenant=self._tenant, body=item.body, now_us=self._now_us)
        self.rows.append(Row(item, linked))
        self.heads[item.chain] = linked.head
        self.touched[item.chain] = None


def chain_of_notices(tenant: str) -> str:
    """Audit's own records of a tenant lie in its chain `tenant`; without a tenant in `system`."""
    return "system" if tenant == NIL_TENANT else "tenant"


def _gap(item: Item, mark: int) -> Notice:
    return Notice(
        "source.gap",
        {
            "severity": "high",
            "source": {"id": item.source, "boot": item.boot, "first": mark + 1, "last": item.n - 1},
        },
    )


def _refusal(item: Item) -> Notice:
    source = {"id": item.source, "boot": item.boot, "n": item.n, "peer": item.peer}
    if item.rejection == "source_conflict":
        return Notice("source.conflict", {"severity": "critical", "source": source})
    return Notice(
        "record.rejected", {"severity": "high", "reason": item.rejection, "source": source}
    )
