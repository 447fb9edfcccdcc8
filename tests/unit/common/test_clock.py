"""Times as they are written, and the one real clock."""

import pytest

from services.common.clock import SystemClock, micros, rfc3339


@pytest.mark.parametrize(
    ("now_ns", "written"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (999, "1970-01-01T00:00:00.000000Z"),
        (1_767_225_600_000_001_999, "2026-01-01T00:00:00.000001Z"),
        (1_767_225_599_999_999_999, "2025-12-31T23:59:59.999999Z"),
    ],
)
def test_a_time_is_written_in_utc_cut_to_microseconds(now_ns: int, written: str) -> None:
    assert written == rfc3339(now_ns)


def test_records_count_whole_microseconds() -> None:
    assert 1_767_225_600_000_001 == micros(1_767_225_600_000_001_999)


def test_the_steady_clock_never_goes_back() -> None:
    clock = SystemClock()
    seen = [clock.monotonic_ns() for _ in range(1000)]

    assert sorted(seen) == seen
    assert clock.now_ns() > 1_700_000_000_000_000_000
