"""Whether an address of a tool server is worth a try (mcp.md 2.2). Pure."""

from __future__ import annotations

from typing import Final

from services.proxy.backends.upstream import UpstreamFailed

FAILURES: Final = 5
OPEN_NS: Final = 10 * 1_000_000_000
#: What tells that nobody is there, whatever was asked.
_AWAY: Final = frozenset({"upstream_unreachable", "upstream_timeout"})


class Circuit:
    """Open for 10 s after five failures running; after that one more opens it again."""

    __slots__ = ("_failures", "_until_ns")

    def __init__(self) -> None:
        self._failures = 0
        self._until_ns = 0

    def closed(self, now_ns: int) -> bool:
        return self._until_ns <= now_ns

    def succeeded(self) -> None:
        self._failures = self._until_ns = 0

    def failed(self, now_ns: int) -> None:
        self._failures += 1
        if self._failures >= FAILURES:
            self._until_ns = now_ns + OPEN_NS


def is_away(failure: UpstreamFailed) -> bool:
    """Whether the failure is the address's, not this request's: nobody there, an end without an
    answer, or a broken server.
    """
    if failure.reason in _AWAY:
        return True
    broken = failure.status is None or failure.status >= 500
    return failure.reason == "upstream_protocol" and broken
