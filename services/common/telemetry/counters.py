"""Plain integers that a process counts, read only when somebody asks.

A hot path does `counter.value += 1` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from services.common.telemetry.names import CounterName


class Counter:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Counters:
    """All counters of a process; made in app.py and handed down."""

    def __init__(self) -> None:
        self._counters: dict[CounterName, Counter] = {}
        self._gauges: dict[CounterName, Callable[[], int]] = {}

    def counter(self, name: CounterName) -> Counter:
        """The counter of that name, made at the first ask."""
        return self._counters.setdefault(name, Counter())

    def watch(self, name: CounterName, read: Callable[[], int]) -> None:
        """A value that somebody else keeps, read at scrape time."""
        self._gauges[name] = read

    def read(self) -> dict[CounterName, int]:
        values = {name: counter.value for name, counter in self._counters.items()}
        values.update({name: read() for name, read in self._gauges.items()})
        return values
