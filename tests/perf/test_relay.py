"""The relay's bench: its yardstick is the agreed one and relays, its sums say what they should."""

import itertools
from typing import Any

import pytest

from tests.fakes import mcp_wire as wire
from tests.fakes.children import child
from tests.perf import relay_report
from tests.perf.arithmetic import Run
from tests.perf.load import Order, Pool, Result, Slice, Target
from tests.perf.relay import asked_in, check_sdk


def carried_out(targets: list[Target]) -> Result:
    order = Order(targets=targets, tool="echo", prefix="t", seconds=5, limit=5)
    with Pool() as pool:
        return Slice(order, pool).run()


def test_the_yardstick_is_the_agreed_one() -> None:
    check_sdk()


def test_the_yardstick_and_the_relay_hand_calls_on_in_both_eras() -> None:
    with (
        child("tests.fakes.mcp_echo") as (_, server),
        child("tests.perf.sdk_proxy", "--upstream", server["url"]) as (_, sdk),
        child("tests.perf.relay_alone", "--upstream", server["url"]) as (_, relay),
    ):
        for era, at in itertools.product(("modern", "legacy"), (sdk, relay)):
            target = asked_in(era, at["url"], at.get("token"))()[0]
            result = carried_out([target])

            assert ({}, 5) == (result.errors, len(result.latencies_us)), result.first_failures
            assert (era == "legacy") == (target.session is not None)
            assert (era == "modern") == (target.version == wire.MODERN)


def run(subject: str, cpu_ms: float, **more: Any) -> Run:
    told: dict[str, Any] = {
        "engine": "modern", "kind": "throughput", "c": 8, "rate": None, "seconds": 1.0, "n": 10,
        "errors": 0, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "calls_per_s": 10.0,
        "records": 0,
    } | more  # fmt: skip
    name = relay_report.PROCESS.get(subject, "tool_server")
    return Run(subject=subject, cpu_ms_per_call={name: cpu_ms}, **told)


def test_the_relay_may_cost_a_quarter_of_the_sdk_and_a_millisecond() -> None:
    def said(relay: float, sdk: float) -> int:
        return len(relay_report.missed([run("sdk", sdk), run("relay", relay)]))

    assert [0, 1, 1, 2] == [said(0.5, 2.0), said(0.51, 2.0), said(1.1, 8.0), said(1.1, 2.0)]
    assert 1 == len(relay_report.missed([run("relay", 0.5)]))


def test_the_relay_may_take_three_times_the_direct_way_or_three_milliseconds_more() -> None:
    def said(direct: float, relay: float) -> int:
        one = {"kind": "latency", "c": 1}
        pair = [run("direct", 0, p50_ms=direct, **one), run("relay", 9, p50_ms=relay, **one)]
        return len(relay_report.missed(pair))

    assert [0, 1, 0, 1] == [said(0.1, 3.1), said(0.1, 3.2), said(5, 15), said(5, 15.1)]


def test_p95_is_compared_with_an_earlier_run_of_the_same() -> None:
    earlier = [run("sdk", 4), run("relay", 0.5, p95_ms=10)]

    for p95_ms, count in ((13, 0), (13.1, 1)):
        now = [run("sdk", 4), run("relay", 0.5, p95_ms=p95_ms)]
        assert count == len(relay_report.missed(now, earlier))


def test_the_table_tells_the_share_of_the_sdk() -> None:
    lines = relay_report.table([run("sdk", 2), run("relay", 0.5), run("behavry", 0.8)])

    assert ["1.00", "0.25", "0.40"] == [line.split()[9] for line in lines[1:]]


def test_medians_are_apart_by_what_the_slowest_takes_more() -> None:
    medians = relay_report.medians({"a": [900, 1000, 5000], "b": [1200, 1100, 1300]})

    assert {"a": 1.0, "b": 1.2} == medians
    assert pytest.approx(0.2) == relay_report.spread(medians)
