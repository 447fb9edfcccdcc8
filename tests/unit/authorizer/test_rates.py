"""Which buckets a call takes from, and what a lost counter store leaves of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from services.authorizer.plane_state import Limits
from services.authorizer.rates import Rated, Rates, Spending
from services.common.counter_store.memory import MemoryCounterStore
from services.common.counter_store.protocol import Bucket, CounterStoreLost, Taken
from services.common.telemetry.logging import get_log
from tests.fakes.clock import ManualClock

SMALL = Limits(agent_per_minute=60, agent_burst=3, tenant_per_minute=6000)


@dataclass(slots=True)
class BreakableStore:
    """A shared store that can be cut off."""

    clock: ManualClock
    lost: bool = False
    _store: MemoryCounterStore = field(init=False)

    def __post_init__(self) -> None:
        self._store = MemoryCounterStore(self.clock)

    async def take(self, buckets: Sequence[Bucket]) -> Taken:
        if self.lost:
            raise CounterStoreLost
        return await self._store.take(buckets)

    async def remember(self, key: str, ttl_s: int) -> bool:
        return await self._store.remember(key, ttl_s)

    async def known(self, key: str) -> bool:
        return await self._store.known(key)


def rates_on(store: BreakableStore, *, replicas: int = 1) -> Rates:
    return Rates(store=store, clock=store.clock, log=get_log("test"), replicas=replicas)


def spending(**changes: Any) -> Spending:
    values: dict[str, Any] = {
        "tenant": "t",
        "limits": SMALL,
        "agent": "a",
        "server": "files",
        "tool": "read_file",
    }
    return Spending(**{**values, **changes})


async def passes(rates: Rates, count: int, **changes: Any) -> list[bool]:
    return [not (await rates.take(spending(**changes))).retry_after_ms for _ in range(count)]


async def test_an_agent_over_its_burst_is_told_when_and_another_agent_goes_on() -> None:
    clock = ManualClock()
    rates = rates_on(BreakableStore(clock))

    assert [True, True, True] == await passes(rates, 3)
    refused = await rates.take(spending())
    assert Rated(1_000, "shared") == refused
    assert [True] == await passes(rates, 1, agent="innocent")
    clock.advance(refused.retry_after_ms / 1000)
    assert [True, False] == await passes(rates, 2)


async def test_a_tenant_is_limited_over_all_its_agents_and_no_other_tenant_is() -> None:
    rates = rates_on(BreakableStore(ManualClock()))
    few = Limits(tenant_per_minute=6)

    assert [True] == await passes(rates, 1, limits=few, agent="a")
    assert [True] == await passes(rates, 1, limits=few, agent="b")
    assert [False] == await passes(rates, 1, limits=few, agent="c")
    assert [True] == await passes(rates, 1, limits=few, tenant="u", agent="c")


async def test_a_tool_with_a_limit_has_it_for_all_and_its_neighbour_has_none() -> None:
    rates = rates_on(BreakableStore(ManualClock()))
    limited = Limits(tools={"files": {"read_file": 3}})

    assert [True, False] == await passes(rates, 2, limits=limited)
    assert [False] == await passes(rates, 1, limits=limited, agent="b")
    assert [True, True] == await passes(rates, 2, limits=limited, tool="list_files")
    assert [True] == await passes(rates, 1, limits=limited, server="mail")


async def test_a_refused_call_takes_from_no_bucket() -> None:
    rates = rates_on(BreakableStore(ManualClock()))
    limited = Limits(agent_per_minute=60, agent_burst=2, tools={"files": {"read_file": 3}})

    assert [True, False, False] == await passes(rates, 3, limits=limited)
    assert [True, False] == await passes(rates, 2, limits=limited, tool="list_files")


async def test_a_restriction_scales_the_agents_bucket() -> None:
    rates = rates_on(BreakableStore(ManualClock()))
    ten = Limits(agent_per_minute=60, agent_burst=10)

    assert 5 == sum(await passes(rates, 10, limits=ten, agent_milli=500))
    assert 10 == sum(await passes(rates, 11, limits=ten, agent="b"))


async def test_a_held_session_has_a_bucket_of_its_own_and_its_agents_others_do_not_pay() -> None:
    rates = rates_on(BreakableStore(ManualClock()))
    ten = Limits(agent_per_minute=60, agent_burst=10)

    assert 1 == sum(await passes(rates, 5, limits=ten, session="s", session_milli=100))
    assert 9 == sum(await passes(rates, 10, limits=ten))


async def test_edited_limits_count_from_the_next_call() -> None:
    clock = ManualClock()
    rates = rates_on(BreakableStore(clock))

    assert [True, True, True, False] == await passes(rates, 4)
    clock.advance(10)
    tighter = Limits(agent_per_minute=60, agent_burst=1)
    assert [True, False] == await passes(rates, 2, limits=tighter)
    clock.advance(10)
    assert [True, True, True, False] == await passes(rates, 4)


async def test_a_lost_store_leaves_each_replica_its_share_and_one_alert() -> None:
    store = BreakableStore(ManualClock(), lost=True)
    rates = rates_on(store, replicas=2)
    six = Limits(agent_per_minute=60, agent_burst=6)

    with structlog.testing.capture_logs() as logs:
        answers = [await rates.take(spending(limits=six)) for _ in range(4)]

    assert [0, 0, 0, 2_000] == [answer.retry_after_ms for answer in answers]
    assert {"local"} == {answer.counters for answer in answers} | {rates.passed.counters}
    assert ["counter_store_lost"] == [line["event"] for line in logs]


async def test_the_first_call_that_the_store_answers_again_is_counted_there() -> None:
    clock = ManualClock()
    store = BreakableStore(clock, lost=True)
    rates = rates_on(store)
    clock.advance(1)
    with structlog.testing.capture_logs() as logs:
        lost = await rates.take(spending())
        store.lost = False
        back = await rates.take(spending())

    assert ("local", "shared", "shared") == (lost.counters, back.counters, rates.passed.counters)
    assert ["counter_store_lost", "counter_store_back"] == [line["event"] for line in logs]


async def test_a_store_that_was_slow_once_raises_no_alert() -> None:
    clock = ManualClock()
    store = BreakableStore(clock)
    rates = rates_on(store)
    await rates.take(spending())
    with structlog.testing.capture_logs() as logs:
        store.lost = True
        late = await rates.take(spending())
        quiet = len(logs)
        clock.advance(1)
        await rates.take(spending())

    assert Rated(0, "local") == late
    assert (0, ["counter_store_lost"]) == (quiet, [line["event"] for line in logs])
