"""What every counter store promises (protocol.py)."""

from __future__ import annotations

import asyncio

import pytest

from services.common.counter_store.protocol import MAX_RETRY_MS, Bucket, Taken
from tests.contract.counter_store.conftest import Counting

FREE = Taken(True, 0)


def bucket(key: str = "a", *, per_minute: int = 300, burst: int = 5, cost: int = 1) -> Bucket:
    return Bucket(key=key, per_minute=per_minute, burst=burst, cost=cost)


async def test_a_bucket_starts_full_and_runs_dry(counting: Counting) -> None:
    slow = bucket(per_minute=60, burst=3)
    taken = [await counting.store.take([slow]) for _ in range(4)]

    assert [FREE] * 3 == taken[:3]
    assert (False, "a") == (taken[3].allowed, taken[3].lacking)
    assert 900 <= taken[3].retry_after_ms <= 1_000
    assert FREE == await counting.store.take([bucket("b")])


async def test_after_the_time_it_names_it_gives_again(counting: Counting) -> None:
    quick = bucket(per_minute=600, burst=1)
    await counting.store.take([quick])
    refused = await counting.store.take([quick])

    await counting.pass_ms(refused.retry_after_ms)

    assert FREE == await counting.store.take([quick])
    assert not (await counting.store.take([quick])).allowed


async def test_several_give_together_or_none_does(counting: Counting) -> None:
    wide, narrow = bucket("wide", burst=2, per_minute=6), bucket("narrow", burst=1, per_minute=1)
    assert FREE == await counting.store.take([wide, narrow])

    refused = await counting.store.take([wide, narrow])

    assert (False, "narrow") == (refused.allowed, refused.lacking)
    assert MAX_RETRY_MS - 1_000 <= refused.retry_after_ms <= MAX_RETRY_MS
    assert FREE == await counting.store.take([wide])  # the refusal took nothing
    assert not (await counting.store.take([wide])).allowed


async def test_of_many_at_once_exactly_the_burst_gets_through(counting: Counting) -> None:
    slow = bucket(per_minute=1, burst=10)

    taken = await asyncio.gather(*(counting.store.take([slow]) for _ in range(40)))

    assert 10 == sum(one.allowed for one in taken)


async def test_a_changed_limit_holds_for_the_next_call(counting: Counting) -> None:
    assert FREE == await counting.store.take([bucket(per_minute=1, burst=1)])
    refused = await counting.store.take([bucket(per_minute=1, burst=1)])
    raised = await counting.store.take([bucket(per_minute=60_000, burst=100)])

    assert refused.retry_after_ms > 59_000
    assert raised.retry_after_ms <= 1  # at the new rate
    await counting.pass_ms(5)
    assert FREE == await counting.store.take([bucket(per_minute=60_000, burst=100)])
    lowered = await counting.store.take([bucket(per_minute=1, burst=1, cost=2)])
    assert not lowered.allowed


@pytest.mark.parametrize(
    "never", [bucket(per_minute=0, burst=0), bucket(cost=6), bucket(burst=0)], ids=str
)
async def test_what_can_never_be_given_says_the_longest_wait(
    counting: Counting, never: Bucket
) -> None:
    refused = await counting.store.take([never])

    assert (False, MAX_RETRY_MS) == (refused.allowed, refused.retry_after_ms)


async def test_no_bucket_refuses_nothing(counting: Counting) -> None:
    assert FREE == await counting.store.take([])


async def test_a_key_is_new_once_and_then_known_until_it_expires(counting: Counting) -> None:
    assert not await counting.store.known("a")
    assert await counting.store.remember("a", 1)
    assert not await counting.store.remember("a", 1)
    assert await counting.store.known("a")
    assert not await counting.store.known("b")

    await counting.pass_ms(1_010)

    assert not await counting.store.known("a")
    assert await counting.store.remember("a", 1)


async def test_of_many_who_remember_one_is_first(counting: Counting) -> None:
    first = await asyncio.gather(*(counting.store.remember("a", 60) for _ in range(20)))

    assert 1 == sum(first)
