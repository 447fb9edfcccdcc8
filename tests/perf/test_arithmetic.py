"""The bench's sums: what a percentile, a late call, a cost and a ratio are."""

import math

import pytest

from tests.perf.arithmetic import (
    Run,
    added_ratio,
    late_by,
    net_cpu_ms,
    per_call,
    percentile,
)
from tests.perf.profile import shares
from tests.perf.report import data_plane_ms, missed_targets, ratios, table


def run(subject: str, p50_ms: float, **changes: object) -> Run:
    fields: dict[str, object] = {
        "subject": subject,
        "engine": "opa" if subject == "behavry" else None,
        "kind": "latency",
        "c": 1,
        "rate": None,
        "seconds": 1.0,
        "n": 100,
        "errors": 0,
        "p50_ms": p50_ms,
        "p95_ms": p50_ms,
        "p99_ms": p50_ms,
        "calls_per_s": 100.0,
        "cpu_ms_per_call": {},
        "records": 0,
    }
    return Run(**{**fields, **changes})  # type: ignore[arg-type]  # a test's keyword soup


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, 0),
        ([7], 0.5, 7),
        ([7], 0.99, 7),
        ([1, 2, 3, 4], 0.5, 2),
        ([1, 2, 3, 4, 5], 0.5, 3),
        (list(range(1, 101)), 0.95, 95),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 102)), 0.99, 100),
    ],
)
def test_a_percentile_is_the_value_of_the_nearest_rank(
    values: list[int], share: float, expected: int
) -> None:
    assert expected == percentile(values, share)


def test_a_call_that_had_to_wait_for_its_turn_counts_from_when_it_was_due() -> None:
    due, sent, finished = 10.0, 10.5, 10.6

    assert 600_000 == late_by(due, finished)
    assert late_by(due, finished) > late_by(sent, finished)


def test_idle_cpu_comes_off_and_never_makes_a_cost_negative() -> None:
    used = {"proxy": 100.0, "control": 5.0, "floor": 8.0}

    net = net_cpu_ms(used, {"proxy": 10.0, "control": 4.0}, wall_s=2.0)

    assert {"proxy": 80.0, "control": 0.0, "floor": 8.0} == net


def test_no_calls_cost_nothing_rather_than_infinitely_much() -> None:
    assert {"proxy": 0.0} == per_call({"proxy": 12.0}, 0)
    assert {"proxy": 0.12} == per_call({"proxy": 12.0}, 100)


def test_the_ratio_is_what_the_subject_adds_over_what_the_floor_adds() -> None:
    assert math.isclose(8.0, added_ratio(direct=0.1, floor=0.2, subject=0.9))


def test_a_floor_that_adds_nothing_makes_no_target_met() -> None:
    assert math.isinf(added_ratio(direct=0.2, floor=0.2, subject=0.3))


def test_a_missed_target_is_named_and_a_met_one_is_not() -> None:
    quick = run("behavry", 0.9)
    slow = run("behavry", 1.1)
    others = [run("direct", 0.1), run("floor", 0.2)]

    assert [] == missed_targets([*others, quick])
    assert ["behavry (opa), c=1: 10.0 x the floor, target 8 x"] == missed_targets([*others, slow])


def test_a_latency_without_a_floor_beside_it_meets_no_target() -> None:
    assert 1 == len(missed_targets([run("behavry", 0.1)]))


def test_the_open_loop_is_compared_with_the_open_loop() -> None:
    runs = [
        run("direct", 0.1),
        run("floor", 0.2),
        run("direct", 0.5, c=32, rate=100.0),
        run("floor", 1.0, c=32, rate=100.0),
        run("behavry", 5.5, c=32, rate=100.0),
    ]

    assert [] == missed_targets(runs)
    assert "10.0 x the floor's 0.500 ms" in ratios(runs)[0]


def test_the_data_plane_is_five_processes_and_not_control() -> None:
    spent = {"proxy": 1.0, "authorizer": 0.5, "engine": 0.25, "audit": 0.125, "postgres": 0.0625}
    one = run("behavry", 1.0, kind="throughput", c=8, cpu_ms_per_call={**spent, "control": 9.0})

    assert math.isclose(1.9375, data_plane_ms(one))
    assert [] == missed_targets([one])


def test_the_table_shows_every_run_and_every_process() -> None:
    shown = table([run("behavry", 1.5, cpu_ms_per_call={"proxy": 0.5})], {"behavry": {"proxy": 3}})

    assert ["behavry", "opa", "latency", "1"] == shown.splitlines()[1].split()[:4]
    assert "proxy=0.500" in shown
    assert "proxy=3.0" in shown


def test_a_profile_counts_a_function_once_per_sample_however_often_it_recurs() -> None:
    folded = "main (a.py:1);walk (a.py:2);walk (a.py:3) 4\nmain (a.py:1) 6\n"

    own, inside, total = shares(folded)

    assert 10 == total
    assert {"walk (a.py)": 4, "main (a.py)": 6} == own
    assert {"walk (a.py)": 4, "main (a.py)": 10} == inside
