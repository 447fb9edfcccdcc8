"""Once-only against a model: whatever is resent, reordered, lost or interrupted, every record ends
in its chain exactly once, and nothing is skipped in silence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.audit.chain import Head, event_hash
from services.audit.notices import own_source
from services.audit.plan import Item, MarkKey, doubtful, place, sort
from services.audit.record import columns
from services.common.ids import NIL_TENANT, PlaneId, uuid7
from tests.fakes.clock import START_NS, ManualClock

TENANT = "0198c0de-0000-7000-8000-000000000001"
SOURCES = ("11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222")
BOOTS = (uuid7(START_NS), uuid7(START_NS + 10**9))
CHAINS = ("tenant", "admin", "agent:0198c0de-0000-7000-8000-00000000000a")


def item(n: int, *, source: int = 0, boot: int = 0, text: str = "", rejection: str = "") -> Item:
    """The record with that number: always the same one, unless `text` makes it another."""
    id_ = f"0198c0de-{source}{boot}00-7000-8000-{n:012x}"
    body = {"type": "call.intent", "id": id_, "text": text}
    return Item(
        peer="proxy",
        source=SOURCES[source],
        boot=BOOTS[boot],
        n=n,
        chain=CHAINS[n % len(CHAINS)],
        event_id=id_,
        body=repr(body).encode(),
        columns=columns(body),
        rejection=rejection,
    )


@dataclass
class Store:
    """What the database would hold, by the rules of its statements."""

    use_marks: bool = True
    heads: dict[str, Head] = field(default_factory=dict)
    marks: dict[MarkKey, int] = field(default_factory=dict)
    events: list[tuple[str, str, bytes]] = field(default_factory=list)
    rejected: set[tuple[str, str, int, bytes]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.clock = ManualClock()
        self.own = own_source(PlaneId("dp"), self.clock)

    def take(self, items: list[Item], *, commits: bool = True) -> None:
        marks = dict(self.marks) if self.use_marks else {}
        ids = doubtful(items, marks)
        stored = {id_: body for id_, _, body in self.events if id_ in ids}
        sorted_ = sort(items, marks, stored)
        fresh = []
        for bad in sorted_.rejected:
            key = (bad.source, bad.boot, bad.n, bad.body)
            if key not in self.rejected and commits:
                self.rejected.add(key)
                fresh.append(bad)
        plan = place(
            sorted_,
            tenant=TENANT,
            own=self.own.key,
            heads=self.heads,
            marks=marks,
            refused=fresh,
            make_notice=partial(self.own.make, TENANT),
            now_us=1,
        )
        if not commits:
            return
        for old, new in plan.heads:
            assert self.heads.get(new.chain, old) == old
            self.heads[new.chain] = new
        for key_, old_n, n in plan.marks:
            assert not self.use_marks or self.marks.get(key_, 0) == old_n
            assert n > old_n
            self.marks[key_] = n
        for item_, _ in plan.rows:
            self.events.append((item_.event_id, item_.columns.type, item_.body))

    def calls(self) -> list[str]:
        return [id_ for id_, type_, _ in self.events if type_ == "call.intent"]

    def notices(self, type_: str) -> int:
        return sum(kind == type_ for _, kind, _ in self.events)


_record = st.tuples(st.integers(1, 12), st.integers(0, 1), st.integers(0, 1))
_batch = st.tuples(st.lists(_record, min_size=1, max_size=8), st.sampled_from(["ok", "lost", "no"]))


def _run(store: Store, batches: list[Any]) -> set[str]:
    """Ids of all that was acknowledged. `lost`: committed, but resent for want of a reply; `no`:
    never committed.
    """
    delivered = set()
    for records, fate in batches:
        items = [item(n, source=source, boot=boot) for n, source, boot in records]
        store.take(items, commits=fate != "no")
        if fate == "lost":
            store.take(items)
        if fate != "no":
            delivered |= {one.event_id for one in items}
    return delivered


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(_batch, max_size=12))
def test_what_was_acknowledged_is_chained_exactly_once(batches: list[Any]) -> None:
    store = Store()

    delivered = _run(store, batches)

    assert sorted(delivered) == sorted(store.calls())
    assert 0 == store.notices("source.conflict")


@settings(max_examples=100, deadline=None)
@given(st.lists(_batch, max_size=8), st.randoms())
def test_a_shipper_that_starts_from_zero_adds_what_was_missing_and_nothing_else(
    batches: list[Any], random: Any
) -> None:
    store = Store()
    _run(store, batches)

    everything = [item(n, source=s, boot=b) for n in range(1, 13) for s in (0, 1) for b in (0, 1)]
    store.take(everything)
    random.shuffle(everything)
    store.take(everything)

    assert sorted(one.event_id for one in everything) == sorted(store.calls())


def test_without_the_mark_the_model_above_fails() -> None:
    """The property has teeth: with marks switched off a resent record is chained twice."""
    store = Store(use_marks=False)

    delivered = _run(store, [([(1, 0, 0)], "lost")])

    assert sorted(delivered) != sorted(store.calls())


def test_a_jump_is_noted_and_the_late_ones_are_appended() -> None:
    store = Store()
    store.take([item(1), item(5)])
    store.take([item(2), item(3), item(4)])

    assert 1 == store.notices("source.gap")
    assert [item(n).event_id for n in (1, 5, 2, 3, 4)] == store.calls()


def test_the_same_id_with_another_body_is_a_conflict_told_once() -> None:
    store = Store()
    store.take([item(1)])
    for _ in range(3):
        store.take([item(1, text="other")])

    assert 1 == store.notices("source.conflict")
    assert [item(1).event_id] == store.calls()


def test_a_conflict_inside_one_batch_is_one_too() -> None:
    store = Store()
    store.take([item(1), item(1, text="other"), item(1)])

    assert (1, 1) == (store.notices("source.conflict"), len(store.calls()))


def test_a_rejected_record_moves_its_mark_and_is_told_once() -> None:
    store = Store()
    for _ in range(3):
        store.take([item(1), item(2, rejection="profile"), item(3)])

    assert (1, 0) == (store.notices("record.rejected"), store.notices("source.gap"))
    assert [item(1).event_id, item(3).event_id] == store.calls()


def test_each_chain_is_opened_once_and_before_its_first_record() -> None:
    store = Store()
    store.take([item(1), item(2), item(3)])
    store.take([item(4), item(5), item(6)])

    assert 3 == store.notices("chain.opened")
    types = [type_ for _, type_, _ in store.events]
    assert types.index("chain.opened") < types.index("call.intent")


@pytest.mark.parametrize(("tenant", "chain"), [(TENANT, "tenant"), (NIL_TENANT, "system")])
def test_notices_lie_in_the_tenants_chain_or_without_one_in_system(tenant: str, chain: str) -> None:
    clock = ManualClock()
    own = own_source(PlaneId("dp"), clock)
    plan = place(
        sort([item(1)._replace(chain=chain)], {}, {}),
        tenant=tenant,
        own=own.key,
        heads={},
        marks={},
        refused=[],
        make_notice=partial(own.make, tenant),
        now_us=1,
    )

    assert [chain, chain] == [row.link.chain for row in plan.rows]
    assert ["chain.opened", "call.intent"] == [row.item.columns.type for row in plan.rows]


def test_rows_of_a_plan_are_linked() -> None:
    clock = ManualClock()
    own = own_source(PlaneId("dp"), clock)
    plan = place(
        sort([item(n) for n in range(1, 30)], {}, {}),
        tenant=TENANT,
        own=own.key,
        heads={},
        marks={},
        refused=[],
        make_notice=partial(own.make, TENANT),
        now_us=1,
    )

    ends: dict[str, bytes] = {}
    for item_, linked in plan.rows:
        assert ends.get(linked.chain, bytes(32)) == linked.previous_hash
        ends[linked.chain] = event_hash(
            tenant=TENANT,
            chain=linked.chain,
            incarnation=1,
            seq=linked.seq,
            committed_at_us=linked.committed_at_us,
            previous_hash=linked.previous_hash,
            body=item_.body,
        )
    assert ends == {new.chain: new.event_hash for _, new in plan.heads}
