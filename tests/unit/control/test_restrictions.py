"""Which of two restrictions is the looser one, whether one takes anything away, when it holds."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.control.restrictions import Restriction, loosens

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
CUSTOM = Restriction(
    profile="custom",
    until=NOW + DAY,
    tools=("files/*", "time/now"),
    resources=("/srv/a", "/srv/b/"),
    max_arg_bytes=1000,
    rate_factor_milli=800,
)
READ_ONLY = Restriction(profile="read_only", until=NOW + DAY)


@pytest.mark.parametrize(
    ("change", "is_looser"),
    [
        ({}, False),
        ({"tools": ("time/now",)}, False),
        ({"tools": ()}, False),
        ({"tools": None}, True),
        ({"tools": ("time/*",)}, True),
        ({"resources": ("/srv/a/deep",)}, False),
        ({"resources": ("/srv/b/x", "/srv/a")}, False),
        ({"resources": ("/srv/ab",)}, True),
        ({"resources": ("/srv",)}, True),
        ({"resources": None}, True),
        ({"max_arg_bytes": 999}, False),
        ({"max_arg_bytes": 1001}, True),
        ({"max_arg_bytes": None}, True),
        ({"rate_factor_milli": 799}, False),
        ({"rate_factor_milli": 801}, True),
        ({"until": NOW + 2 * DAY}, False),
        ({"until": NOW}, True),
        ({"profile": "read_only"}, False),
        ({"profile": "wind_down", "until": NOW}, False),
    ],
)
def test_any_part_that_allows_more_loosens(change: dict[str, Any], is_looser: bool) -> None:
    assert is_looser == loosens(CUSTOM, replace(CUSTOM, **change))


@pytest.mark.parametrize(
    ("old", "new", "is_looser"),
    [
        ("read_only", "custom", True),
        ("read_only", "investigation", False),
        ("investigation", "read_only", True),
        ("read_only", "wind_down", False),
        ("wind_down", "read_only", True),
        ("investigation", "wind_down", True),
    ],
)
def test_profiles_have_an_order(old: Any, new: Any, is_looser: bool) -> None:
    assert is_looser == loosens(replace(READ_ONLY, profile=old), replace(READ_ONLY, profile=new))


@pytest.mark.parametrize(("days", "is_looser"), [(1, False), (0, False), (2, True)])
def test_a_wind_down_that_ends_later_is_looser(days: int, is_looser: bool) -> None:
    """It ends in suspension."""
    old = replace(READ_ONLY, profile="wind_down")

    assert is_looser == loosens(old, replace(old, until=NOW + days * DAY))


def test_a_restriction_ends_at_its_time_and_a_wind_down_goes_on() -> None:
    winding = replace(READ_ONLY, profile="wind_down")

    assert (True, False) == (READ_ONLY.holds(NOW), READ_ONLY.holds(NOW + DAY))
    assert (True, True) == (winding.holds(NOW), winding.holds(NOW + DAY))


def test_a_custom_one_must_take_something_away() -> None:
    bare = Restriction(profile="custom", until=NOW + DAY)

    assert not bare.restricts()
    assert READ_ONLY.restricts()
    for taking in (
        replace(bare, tools=()),
        replace(bare, resources=()),
        replace(bare, max_arg_bytes=0),
        replace(bare, rate_factor_milli=1),
    ):
        assert taking.restricts()
