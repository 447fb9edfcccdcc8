"""How full, and what is then still taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.outbox.pressure import Budget, Level, OutboxFull
from tests.fakes.clock import ManualClock
from tests.fakes.outbox import denied, intent, opened, outcome, stored_in


@pytest.mark.parametrize(
    ("used", "level"),
    [
        (0, Level.OK),
        (599, Level.OK),
        (600, Level.WARNING),
        (800, Level.HIGH),
        (949, Level.HIGH),
        (950, Level.CLOSED),
        (974, Level.CLOSED),
        (975, Level.MERGING),
        (1000, Level.FULL),
        (2000, Level.FULL),
    ],
)
def test_levels(used: int, level: Level) -> None:
    budget = Budget(1000)
    budget.join(lambda: used)

    assert level == budget.level()


def test_little_free_disk_counts_as_95_percent() -> None:
    budget = Budget(1000)
    budget.low_disk = True

    assert Level.CLOSED == budget.level()


def test_all_outboxes_of_a_budget_count() -> None:
    budget = Budget(1000)

    def other() -> int:
        return 500

    budget.join(lambda: 450)
    budget.join(other)
    assert Level.CLOSED == budget.level()

    budget.leave(other)
    assert Level.OK == budget.level()


def at(budget: Budget, permille: int) -> None:
    budget.max_bytes = budget.used_bytes * 1000 // permille


async def test_at_95_percent_new_calls_are_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    budget = Budget(1 << 30)
    async with opened(tmp_path, budget=budget) as outbox:
        running = await outbox.put(intent())
        at(budget, 955)

        assert not outbox.accepts_calls
        with pytest.raises(OutboxFull) as refused:
            await outbox.put(intent())
        assert "AUDIT_UNAVAILABLE" == refused.value.reason
        budget.max_bytes = 1 << 30
        budget.low_disk = True
        with pytest.raises(OutboxFull):
            await outbox.put(intent())
        await outbox.put(outcome(running), durable=False)
        await outbox.put(denied())
        budget.low_disk = False
        await outbox.put(intent())

    types = [one.type for one in stored_in(tmp_path)]
    assert ["call.intent", "call.outcome", "call.denied", "call.intent"] == types[1:5]


async def test_below_95_percent_new_calls_are_taken(tmp_path: Path) -> None:
    budget = Budget(1 << 30)
    async with opened(tmp_path, budget=budget) as outbox:
        await outbox.put(intent())
        at(budget, 940)
        await outbox.put(intent())


async def test_above_the_middle_of_the_reserve_refusals_merge(tmp_path: Path) -> None:
    budget, clock = Budget(1 << 30), ManualClock()
    async with opened(tmp_path, budget=budget, clock=clock) as outbox:
        await outbox.put(denied())
        at(budget, 980)
        for _ in range(7):
            await outbox.put(denied(reason="grants"))
        await outbox.put(denied(reason="tool_hidden"))
        assert 8 == outbox.unrecorded_refusals
        outbox.tick()
        assert 8 == outbox.unrecorded_refusals
        clock.advance(61)
        at(budget, 980)
        outbox.tick()
        assert 0 == outbox.unrecorded_refusals

    merged = {
        one.body["reason"]: one.body["count"] for one in stored_in(tmp_path) if "count" in one.body
    }
    assert {"grants": 7, "tool_hidden": 1} == merged


async def test_full_means_counted_and_recorded_afterwards(tmp_path: Path) -> None:
    budget = Budget(1 << 30)
    async with opened(tmp_path, budget=budget) as outbox:
        call = await outbox.put(intent())
        at(budget, 1000)
        for _ in range(3):
            with pytest.raises(OutboxFull):
                await outbox.put(denied())
        with pytest.raises(OutboxFull):
            await outbox.put(outcome(call), durable=False)
        budget.max_bytes = 1 << 30
        outbox.tick()
        await outbox.put(outcome(call), durable=False)

    assert [3] == [one.body["count"] for one in stored_in(tmp_path) if "count" in one.body]
