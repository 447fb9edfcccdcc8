"""Two processes of control that share a store give no more tries than one; on a clock of ours."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from services.common.counter_store.memory import MemoryCounterStore
from services.common.counter_store.protocol import Bucket, CounterStoreLost, Taken
from services.common.outbox.digests import Digester
from services.control.limits import Limits, Shared, TooMany, Tries
from tests.fakes.clock import ManualClock
from tests.promises import promise

KEYS = Digester([b"k" * 32])


class Watched(MemoryCounterStore):
    """Also tells which names it saw, and can be away."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.names = set[str]()
        self.away = False

    async def take(self, buckets: Sequence[Bucket]) -> Taken:
        if self.away:
            raise CounterStoreLost("away")
        self.names |= {bucket.key for bucket in buckets}
        return await super().take(buckets)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> Watched:
    return Watched(clock)


def two(clock: ManualClock, store: Watched) -> list[Limits]:
    return [Limits(clock, Shared(store, KEYS)) for _ in range(2)]


async def admitted(tries: Sequence[Tries], key: str, times: int) -> int:
    """By turns."""
    found = 0
    for turn in range(times):
        try:
            await tries[turn % len(tries)].take(key)
            found += 1
        except TooMany:
            continue
    return found


@promise("people:guessing-stops")
@pytest.mark.parametrize(
    ("name", "limit", "seconds"),
    [("sign_in", 10, 60), ("sign_in_address", 60, 60), ("second_factor", 10, 300),
     ("user_codes", 10, 300)],
)  # fmt: skip
async def test_two_that_share_a_store_give_no_more_tries_than_one(
    clock: ManualClock, store: Watched, name: str, limit: int, seconds: int
) -> None:
    shared = [getattr(limits, name) for limits in two(clock, store)]
    alone = [getattr(Limits(clock), name) for _ in range(2)]

    assert limit == await admitted(shared, "anna", 3 * limit)
    assert limit == await admitted(shared, "ben", 3 * limit)
    assert 2 * limit == await admitted(alone, "anna", 3 * limit)
    clock.advance(seconds)
    assert limit == await admitted(shared, "anna", 3 * limit)


async def test_whoever_is_refused_hears_when_to_come_back(
    clock: ManualClock, store: Watched
) -> None:
    here, there = [limits.sign_in for limits in two(clock, store)]
    assert 10 == await admitted([here], "anna", 10)
    with pytest.raises(TooMany) as refused:
        await there.take("anna")
    clock.advance(refused.value.retry_after_s)

    assert 6 == refused.value.retry_after_s
    await there.take("anna")


async def test_who_knew_it_starts_anew_everywhere(clock: ManualClock, store: Watched) -> None:
    here, there = [limits.sign_in for limits in two(clock, store)]
    for turn in range(30):
        tries = (here, there)[turn % 2]
        await tries.take("anna")
        await tries.forget("anna")

    assert 10 == await admitted([here, there], "anna", 20)


async def test_a_try_that_was_none_is_given_back_by_itself(
    clock: ManualClock, store: Watched
) -> None:
    """Nine wrong codes stay nine, however many right ones are between them."""
    here, there = [limits.user_codes for limits in two(clock, store)]
    assert 9 == await admitted([here, there], "anna", 9)
    for turn in range(20):
        tries = (here, there)[turn % 2]
        await tries.take("anna")
        await tries.give_back("anna")

    assert 1 == await admitted([here, there], "anna", 10)


async def test_a_lost_store_leaves_each_its_own_window(clock: ManualClock, store: Watched) -> None:
    here, there = [limits.sign_in for limits in two(clock, store)]
    store.away = True

    assert 10 == await admitted([here], "anna", 20)
    assert 10 == await admitted([there], "anna", 20)
    await here.forget("anna")
    assert 10 == await admitted([here], "anna", 20)


async def test_nobody_s_name_stands_in_the_store(clock: ManualClock, store: Watched) -> None:
    limits, _ = two(clock, store)
    await limits.sign_in.take(("correct horse battery", "192.0.2.7"))
    other = Limits(clock, Shared(store, Digester([b"o" * 32])))
    await other.sign_in.take(("correct horse battery", "192.0.2.7"))

    assert 2 == len(store.names)
    assert not any(word in str(store.names) for word in ("horse", "192.0.2.7"))
