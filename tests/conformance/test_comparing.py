"""What the gate calls lost, expected and out of date, on runs made by hand."""

import msgspec

from tests.conformance.shim import governed_kind
from tests.conformance.suite import Check, Found, Run, against, losses, worst

GOOD = Found(status="SUCCESS")
BAD = Found(status="FAILURE", why="no")


def run(**scenarios: dict[str, Found]) -> Run:
    return Run(status=0, output="", scenarios=scenarios)


def test_a_check_that_comes_several_times_is_as_bad_as_its_worst() -> None:
    found = worst([Check("a", "SUCCESS"), Check("a", "WARNING", "why"), Check("a", "INFO")])

    assert {"a": Found(status="WARNING", why="why")} == found


def test_what_fails_is_skipped_or_never_comes_through_is_lost() -> None:
    direct = run(one=dict.fromkeys("abcde", GOOD) | {"f": BAD})
    skipped = Found(status="SKIPPED")
    through = run(one={"a": GOOD, "b": BAD, "c": skipped, "d": Found(status="WARNING"), "f": BAD})

    assert ["b", "c", "d", "e"] == [loss.check for loss in losses(direct, through)]


def test_a_scenario_that_never_ran_is_lost_with_all_its_checks() -> None:
    assert ["a", "b"] == [loss.check for loss in losses(run(one={"a": GOOD, "b": GOOD}), run())]


def test_a_check_that_only_a_failure_makes_appear_is_lost() -> None:
    direct, through = run(one={"a": GOOD}), run(one={"a": GOOD, "setup": BAD})

    assert ["setup"] == [loss.check for loss in losses(direct, through)]


def test_what_a_server_may_leave_may_be_left_but_not_fail() -> None:
    scenario, check = "server-sse-multiple-streams", "server-sse-streams-functional"
    direct = run(**{scenario: {check: GOOD}})

    (left,) = losses(direct, run())
    (failed,) = losses(direct, run(**{scenario: {check: BAD}}))

    assert left.allowed
    assert not failed.allowed


def test_failing_alike_both_times_loses_nothing() -> None:
    assert [] == list(losses(run(one={"a": BAD}), run(one={"a": BAD})))


def test_an_entry_names_a_scenario_or_one_check_of_it() -> None:
    failing = run(one={"a": BAD, "b": GOOD}, two={"a": BAD, "b": BAD})

    assert against(failing, ["one:a", "two"]).good
    assert ("two:b",) == against(failing, ["one:a", "two:a"]).unexpected


def test_an_entry_that_no_longer_fails_is_out_of_date() -> None:
    failing = run(one={"a": BAD, "b": GOOD}, two={"a": GOOD})

    assert ("one:b", "three", "two") == against(failing, ["one", "one:b", "two", "three"]).stale


def test_the_requests_that_need_records_are_counted() -> None:
    def kind(**message: object) -> str | None:
        return governed_kind(msgspec.json.encode(message))

    assert "tools/call" == kind(method="tools/call", params={})
    assert "answer" == kind(id=1, result={})
    assert "subscriptions/listen" == kind(
        method="subscriptions/listen", params={"notifications": {"resourceSubscriptions": ["a:b"]}}
    )
    assert "other" == kind(method="other", params={"inputResponses": None})

    assert kind(method="tools/list", params={}) is None
    assert kind(method="notifications/initialized") is None
    assert kind(method="subscriptions/listen", params={"notifications": {}}) is None
    assert governed_kind(b"{") is None
