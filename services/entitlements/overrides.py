"""Overrides of single features: rows that are only ever added, and what they come to at an instant.

The newest row that has started counts; once it has ended there is no override, whatever older rows
say (entitlements.md 4).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Effect(StrEnum):
    ENABLE = "enable"
    DISABLE = "disable"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """`seq` is the order in which rows were added."""

    seq: int
    feature: str
    effect: Effect
    starts_at_s: int
    ends_at_s: int | None = None


def live(rows: Iterable[Override], now_s: int) -> frozenset[tuple[str, bool]]:
    """(feature, enabled) for each feature that has an override now."""
    newest: dict[str, Override] = {}
    for row in rows:
        if row.starts_at_s <= now_s:
            before = newest.get(row.feature)
            if before is None or row.seq > before.seq:
                newest[row.feature] = row
    return frozenset(
        (row.feature, row.effect is Effect.ENABLE)
        for row in newest.values()
        if row.effect is not Effect.CLEAR and (row.ends_at_s is None or now_s < row.ends_at_s)
    )


def edges(rows: Iterable[Override]) -> tuple[int, ...]:
    """The instants at which `live` may change."""
    return tuple(
        instant
        for row in rows
        for instant in (row.starts_at_s, row.ends_at_s)
        if instant is not None
    )
