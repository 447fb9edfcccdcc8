"""What a plan includes, now and after it has ended."""

from __future__ import annotations

import pytest

from behavry.entitlements.v1 import entitlements_pb2 as wire
from services.entitlements.catalog import FEATURE_CATALOG, PLANS, OnLapse, included
from services.entitlements.effective import Ceiling, Tenant, View, view

DAY_S = 86_400
NOW_S = 1_800_000_000
NO_CEILING = Ceiling(development=True)


def seen(plan: str, expires_at_s: int | None, now_s: int) -> View:
    tenant = Tenant(plan=plan, plan_expires_at_s=expires_at_s, plan_set_at_s=0)
    return view(tenant, NO_CEILING, now_s)


def test_the_catalogue_is_the_contract_and_counts_three_seven_seven() -> None:
    in_contract = [
        name.removeprefix("FEATURE_").lower() for name, number in wire.Feature.items() if number
    ]

    assert [feature.key for feature in FEATURE_CATALOG] == in_contract
    lowest = [feature.plan for feature in FEATURE_CATALOG]
    assert [lowest.count(plan.key) for plan in PLANS] == [3, 7, 7]
    lapses = [feature.on_lapse for feature in FEATURE_CATALOG]
    assert {kind: lapses.count(kind) for kind in OnLapse} == {
        OnLapse.FREEZE: 8,
        OnLapse.TIGHTEN: 1,
        OnLapse.KEEP: 3,
        OnLapse.STOP: 5,
    }


@pytest.mark.parametrize(
    ("plan", "features"), [("trial", 3), ("professional", 10), ("enterprise", 17)]
)
def test_a_plan_in_force_includes_its_features_and_no_others(plan: str, features: int) -> None:
    answers = seen(plan, None, NOW_S).answers

    assert [answer.feature for answer in answers if answer.allowed] == [
        feature.key for feature in FEATURE_CATALOG if included(feature, plan)
    ]
    assert sum(answer.allowed for answer in answers) == features
    assert {answer.mode for answer in answers if not answer.allowed} <= {"off"}


def test_a_trial_that_has_ended_allows_nothing_and_lapses_as_the_catalogue_says() -> None:
    before = seen("trial", NOW_S, NOW_S - 1).answers
    after = seen("trial", NOW_S, NOW_S).answers

    assert {"on", "off"} == {answer.mode for answer in before}
    assert not any(answer.allowed for answer in after)
    assert ["stopped", "frozen", "stopped"] == [answer.mode for answer in after[:3]]
    assert {"off"} == {answer.mode for answer in after[3:]}


@pytest.mark.parametrize(
    ("left_s", "expected"),
    [(31 * DAY_S, "VALID"), (30 * DAY_S, "EXPIRING"), (1, "EXPIRING"), (0, "EXPIRED")],
)
def test_the_state_of_a_plan_follows_the_time_that_is_left(left_s: int, expected: str) -> None:
    assert expected == seen("trial", NOW_S + left_s, NOW_S).state
