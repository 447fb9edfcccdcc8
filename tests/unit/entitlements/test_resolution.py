"""The service's answers against a naive model of the same words (E1), and through time."""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

import pytest

from services.entitlements import effective
from services.entitlements.effective import Answer
from tests.unit.entitlements import naive
from tests.unit.entitlements.naive import DAY, LADDER, PLAN_GRACE, TABLE
from tests.unit.entitlements.worlds import (
    KEYS,
    NOW_S,
    ceiling_of,
    licence,
    random_world,
    tenant_of,
)

#: Feature answers compared in the random worlds: 17 in each.
RANDOM_WORLDS = 6_000


def told(answer: Answer) -> tuple[bool, str, str]:
    return answer.allowed, answer.mode, answer.source.value


def differences(tenant: dict[str, Any], installation: dict[str, Any], now_s: int) -> list[Any]:
    situation = effective.situation_at(tenant_of(tenant), ceiling_of(installation), now_s)
    return [
        (answer.feature, told(answer), expected)
        for answer in effective.resolve.__wrapped__(situation)
        if told(answer) != (expected := naive.answer(tenant, installation, answer.feature, now_s))
    ]


def worlds_of(key: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """3 plans x 3 overrides x 3 tenant licences x 3 phases x 3 ceilings."""
    made = []
    below = LADDER[LADDER.index(TABLE[key][0]) - 1] if TABLE[key][0] != "trial" else "trial"
    for plan, effect, says, phase, ceiling in itertools.product(
        LADDER,
        (None, "enable", "disable"),
        (None, True, False),
        ("force", "grace", "lapsed"),
        ("none", "below", "above"),
    ):
        grace = PLAN_GRACE[plan]
        ends = {"force": NOW_S + 100 * DAY, "grace": NOW_S - grace + 1, "lapsed": NOW_S - grace}
        row = {"key": key, "effect": effect, "starts": NOW_S - 1, "ends": None}
        own = licence(plan=plan, says={key: says}, exp=ends[phase])
        tenant = {
            "plan": plan,
            "ends": ends[phase],
            "since": NOW_S - 2 * DAY,
            "licences": [] if says is None else [own],
            "rows": [] if effect is None else [row],
            "had": [],
        }
        caps = {
            "none": [],
            # Where no plan is below the feature's, the licence leaves it out by name.
            "below": [licence(plan=below, says={} if below != TABLE[key][0] else {key: False})],
            "above": [licence(plan="enterprise")],
        }
        made.append((tenant, {"licences": caps[ceiling], "development": ceiling == "none"}))
    return made


def test_every_combination_of_the_table_is_answered_as_the_naive_model_does() -> None:
    compared, wrong = 0, []
    for key in KEYS:
        for tenant, installation in worlds_of(key):
            situation = effective.situation_at(tenant_of(tenant), ceiling_of(installation), NOW_S)
            (answer,) = (one for one in effective.resolve(situation) if one.feature == key)
            expected = naive.answer(tenant, installation, key, NOW_S)
            compared += 1
            if told(answer) != expected:
                wrong.append((key, tenant, installation, told(answer), expected))

    assert (4_131, []) == (compared, wrong[:3])


def test_random_worlds_are_answered_as_the_naive_model_does() -> None:
    chance = Random(20_261_121)
    compared, allowed, wrong = 0, 0, []
    for _ in range(RANDOM_WORLDS):
        tenant, installation = random_world(chance)
        now_s = NOW_S + chance.randrange(-60, 120) * DAY + chance.choice([0, -1, 1])
        wrong += differences(tenant, installation, now_s)
        compared += len(KEYS)
        allowed += naive.answer(tenant, installation, KEYS[0], now_s)[0]

    assert [] == wrong[:3]
    assert compared >= 100_000
    assert 0.2 < allowed / RANDOM_WORLDS < 0.8  # neither side of the question is rare


def test_each_change_by_time_is_announced_for_the_first_instant_at_which_the_model_sees_it() -> (
    None
):
    chance = Random(7)
    announced = 0
    for _ in range(300):
        tenant, installation = random_world(chance)
        now_s = NOW_S + chance.randrange(-60, 60) * DAY
        ours, ceiling = tenant_of(tenant), ceiling_of(installation)
        seen = effective.view(ours, ceiling, now_s)
        firsts: dict[str, int] = {}
        had = set(tenant["had"]) | seen.allowed()
        for instant in effective.instants(ours, ceiling):
            if instant <= now_s:
                continue
            then = {**tenant, "had": sorted(had)}
            for answer in seen.answers:
                model = naive.answer(then, installation, answer.feature, instant)
                if model != told(answer):
                    firsts.setdefault(answer.feature, instant)
                if model[0]:
                    had.add(answer.feature)
        announced += len(firsts)

        assert firsts == {
            answer.feature: at
            for answer, at in zip(seen.answers, seen.changes_at_s, strict=True)
            if at is not None
        }
    assert announced > 300


@pytest.mark.parametrize("cause", ["expiry", "downgrade", "override", "revocation"])
@pytest.mark.parametrize("key", KEYS)
def test_a_lapse_turns_each_feature_into_what_the_catalogue_says(key: str, cause: str) -> None:
    plan, becomes = TABLE[key]
    own = licence(plan="enterprise")
    tenant: dict[str, Any] = {
        "plan": "enterprise",
        "ends": None,
        "since": NOW_S - DAY,
        "licences": [own] if cause == "revocation" else [],
        "rows": [],
        "had": [],
    }
    installation: dict[str, Any] = {"licences": [], "development": True}
    before = effective.view(tenant_of(tenant), ceiling_of(installation), NOW_S)
    tenant["had"] = sorted(before.allowed())  # as the service remembers it
    match cause:
        case "expiry":
            tenant["ends"] = NOW_S - PLAN_GRACE["enterprise"]
        case "downgrade":
            tenant["plan"] = {"enterprise": "professional", "professional": "trial"}.get(plan, "x")
            if plan == "trial":  # there is no plan below: it is lost by the trial's end alone
                tenant["plan"], tenant["ends"] = "trial", NOW_S
        case "override":
            tenant["rows"] = [{"key": key, "effect": "disable", "starts": NOW_S, "ends": None}]
        case _:
            own["revoked"] = True
    after = effective.view(tenant_of(tenant), ceiling_of(installation), NOW_S)
    (answer,) = (one for one in after.answers if one.feature == key)

    assert key in before.allowed()
    assert (False, becomes) == (answer.allowed, answer.mode)
