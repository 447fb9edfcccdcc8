"""Counters: plain integers, read when somebody asks."""

from typing import get_args

from services.common.telemetry.counters import Counters
from services.common.telemetry.names import CounterName


def test_one_name_is_one_counter() -> None:
    counters = Counters()
    counters.counter("rpc.calls").value += 2
    counters.counter("rpc.calls").value += 1

    assert {"rpc.calls": 3} == counters.read()


def test_a_watched_value_is_read_when_asked() -> None:
    counters, kept = Counters(), [1]
    counters.watch("outbox.pending", lambda: kept[0])
    kept[0] = 5

    assert {"outbox.pending": 5} == counters.read()


def test_a_counter_that_nobody_asked_for_is_not_told() -> None:
    assert {} == Counters().read()


def test_names_are_unique_and_spelled_alike() -> None:
    names = get_args(CounterName)

    assert len(set(names)) == len(names)
    assert all(
        name.replace(".", "").replace("_", "").isalnum() and name.islower() for name in names
    )
