"""A cost below zero gives back what was taken, and never more than a bucket holds."""

from __future__ import annotations

from services.common.counter_store.protocol import Bucket
from tests.contract.counter_store.conftest import Counting


async def test_what_is_given_back_can_be_taken_again_and_no_more(counting: Counting) -> None:
    def bucket(cost: int) -> Bucket:
        return Bucket(key="a", per_minute=1, burst=3, cost=cost)

    async def taken() -> int:
        found = 0
        while (await counting.store.take([bucket(1)])).allowed:
            found += 1
        return found

    full = await taken()
    one_back = (await counting.store.take([bucket(-1)])).allowed
    one = await taken()
    for _ in range(5):
        await counting.store.take([bucket(-3)])

    assert (3, True, 1, 3) == (full, one_back, one, await taken())
