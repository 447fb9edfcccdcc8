"""Between a Clock's nanoseconds and the timestamps of rows."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(now_ns: int) -> datetime:
    return datetime.fromtimestamp(now_ns // 1_000 / 1_000_000, UTC)


def z(at: datetime) -> str:
    """RFC 3339, UTC, `Z`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
