"""When an address of a tool server is left alone (mcp.md 2.2)."""

import pytest

from services.proxy.backends.circuit import FAILURES, OPEN_NS, Circuit, is_away
from services.proxy.backends.upstream import UpstreamFailed


def test_five_failures_running_open_it_for_ten_seconds() -> None:
    circuit = Circuit()
    for _ in range(FAILURES - 1):
        circuit.failed(0)
    assert circuit.closed(0)

    circuit.failed(0)

    assert not circuit.closed(OPEN_NS - 1)
    assert circuit.closed(OPEN_NS)
    circuit.failed(OPEN_NS)  # still nobody there
    assert not circuit.closed(2 * OPEN_NS - 1)


def test_an_answer_in_between_begins_the_count_anew() -> None:
    circuit = Circuit()
    for number in range(3 * FAILURES):
        circuit.failed(0)
        if number % (FAILURES - 1) == 0:
            circuit.succeeded()

    assert circuit.closed(0)


@pytest.mark.parametrize(
    ("reason", "status", "away"),
    [
        ("upstream_unreachable", None, True),
        ("upstream_unreachable", 503, True),
        ("upstream_timeout", None, True),
        ("upstream_protocol", None, True),
        ("upstream_protocol", 500, True),
        ("upstream_protocol", 400, False),
        ("upstream_protocol", 200, False),
        ("upstream_auth", 401, False),
        ("upstream_rate_limited", 429, False),
        ("inbound_blocked", 200, False),
        ("capacity", None, False),
        ("unknown_session", 404, False),
    ],
)
def test_only_an_address_that_is_away_counts(reason: str, status: int | None, away: bool) -> None:
    assert away == is_away(UpstreamFailed(reason, ran=None, status=status))
