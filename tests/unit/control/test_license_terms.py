"""When people hear of a term's end, and what is never told twice."""

from __future__ import annotations

from typing import Any, Final

import pytest

from services.common.ids import TenantId
from services.control.features import Entitlements, FeatureAnswer, License
from services.control.license_terms import DAY_S, Noted, Standing, news, standing

NOW_S: Final = 1_767_225_600
TENANT: Final = TenantId("0199d0d0-0000-7000-8000-0000000000f1")


def feature(mode: str = "on", key: str = "context_gate") -> FeatureAnswer:
    return FeatureAnswer(
        key=key, allowed=mode == "on", mode=mode, source="PLAN", required_plan="professional"
    )


def held(status: str = "VALID", **more: Any) -> Entitlements:
    said: dict[str, Any] = {
        "tenant": TENANT, "plan": "professional", "status": status, "plan_expires_at_s": None,
        "revision": 7, "features": (feature(),),
    }  # fmt: skip
    return Entitlements(**said | more)


def licence(status: str, ends_at_s: int, jti: str = "own") -> License:
    return License(
        jti=jti, customer="A", key_id="k", scope="tenant", plan="professional", status=status,
        issued_at_s=0, not_before_s=0, expires_at_s=ends_at_s,
        grace_ends_at_s=ends_at_s + 14 * DAY_S,
    )  # fmt: skip


def at(now_s: int, status: str, ends_at_s: int = NOW_S) -> Standing:
    own = licence(status, ends_at_s)
    ends = {"plan_expires_at_s": own.expires_at_s, "grace_ends_at_s": own.grace_ends_at_s}
    found = standing(held(status, license=own, **ends), now_s)
    assert found is not None
    return found


def noted(before: Standing, *, revision: int = 7, epoch: str = "e", mode: str = "on") -> Noted:
    return Noted(
        epoch=epoch, revision=revision, event=before.event, term=before.term,
        ends_at_s=before.ends_at_s, step=before.step, modes={"context_gate": mode},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("left_s", "step", "next_days"),
    [
        (30 * DAY_S, 1, 15),
        (15 * DAY_S + 1, 1, 15),
        (15 * DAY_S, 2, 7),
        (7 * DAY_S + 1, 2, 7),
        (7 * DAY_S, 3, 1),
        (DAY_S + 1, 3, 1),
        (DAY_S, 4, None),
        (1, 4, None),
    ],
)
def test_an_end_is_told_at_thirty_fifteen_seven_and_one_days(
    left_s: int, step: int, next_days: int | None
) -> None:
    found = at(NOW_S - left_s, "EXPIRING")

    assert ("license.expiring", "own", NOW_S) == found.place
    assert (step, next_days and NOW_S - next_days * DAY_S) == (found.step, found.next_s)


def test_each_day_of_grace_is_a_step_and_there_are_fourteen() -> None:
    steps = [at(NOW_S + hours * 3600, "GRACE") for hours in range(-1, 14 * 24)]

    assert list(range(1, 15)) == sorted({one.step for one in steps})
    assert NOW_S + DAY_S == at(NOW_S, "GRACE").next_s
    assert at(NOW_S + 13 * DAY_S, "GRACE").next_s is None


@pytest.mark.parametrize(("status", "days"), [("EXPIRING", 0), ("GRACE", 14)])
def test_what_is_over_and_not_yet_called_so_is_not_told(status: str, days: int) -> None:
    """Entitlements is silent: nobody is told of days that are not there."""
    own = licence(status, NOW_S)

    assert standing(held(status, license=own), NOW_S + days * DAY_S - 1) is not None
    assert standing(held(status, license=own), NOW_S + days * DAY_S) is None


@pytest.mark.parametrize("status", ["EXPIRED", "REVOKED", "ABSENT"])
def test_each_way_to_lapse_is_one_event_without_steps(status: str) -> None:
    found = at(NOW_S + 20 * DAY_S, status)

    assert ("license.lapsed", 1, None) == (found.event, found.step, found.next_s)


def test_of_two_ends_the_one_that_the_state_speaks_of_is_told() -> None:
    soon, later = (
        licence("EXPIRING", NOW_S + 3 * DAY_S),
        licence("VALID", NOW_S + 90 * DAY_S, "all"),
    )
    ended = licence("GRACE", NOW_S - DAY_S, "all")
    own_first = standing(held("EXPIRING", license=soon, ceiling=later), NOW_S)
    all_first = standing(held("GRACE", license=soon, ceiling=ended), NOW_S)
    by_plan = standing(
        held("EXPIRING", license=later, ceiling=later, plan_expires_at_s=NOW_S + DAY_S), NOW_S
    )

    assert ["own", "all", "plan"] == [one and one.term for one in (own_first, all_first, by_plan)]


def test_a_limit_that_is_passed_hides_no_end_and_a_suspect_clock_tells_nothing() -> None:
    soon = {"plan_expires_at_s": NOW_S + DAY_S, "grace_ends_at_s": NOW_S + 15 * DAY_S}
    late = {"plan_expires_at_s": NOW_S + 90 * DAY_S}
    exceeded = standing(held("LIMIT_EXCEEDED", **soon), NOW_S)
    lasting = standing(held("LIMIT_EXCEEDED", **late), NOW_S)

    assert exceeded is not None
    assert ("license.expiring", 4) == (exceeded.event, exceeded.step)
    assert lasting == Standing()
    assert standing(held("CLOCK_SUSPECT", **soon), NOW_S) is None


def test_an_edge_is_recorded_once_and_a_step_of_it_only_told() -> None:
    now = held("EXPIRING")
    first, second = at(NOW_S - 20 * DAY_S, "EXPIRING"), at(NOW_S - 10 * DAY_S, "EXPIRING")
    edge = news(noted(Standing()), now, "e", first)
    same = news(noted(first), now, "e", first)
    step = news(noted(first), now, "e", second)
    back = news(noted(second), now, "e", first)
    renewed = news(noted(second), now, "e", at(NOW_S, "EXPIRING", NOW_S + 20 * DAY_S))

    assert (True, True) == (edge.edge, edge.told)
    assert (False, False, False) == (same.edge, same.told, same.note)
    assert (False, True) == (step.edge, step.told)
    assert (False, False, False) == (back.edge, back.told, back.note)
    assert (True, True) == (renewed.edge, renewed.told)


def test_a_lapse_names_each_feature_that_it_changes_and_happens_once() -> None:
    lapsed = at(NOW_S + 20 * DAY_S, "EXPIRED")
    after = held("EXPIRED", features=(feature("frozen"), feature("kept", "saml_sso")))
    before = Noted(
        epoch="e", revision=6, event="license.grace", term="own", ends_at_s=NOW_S, step=14,
        modes={"context_gate": "on", "saml_sso": "kept"},
    )  # fmt: skip
    first = news(before, after, "e", lapsed)
    again = news(noted(lapsed, mode="frozen"), held("REVOKED"), "e", at(NOW_S, "REVOKED"))

    assert (True, True) == (first.edge, first.told)
    assert (("context_gate", "on", "frozen"),) == first.changed
    assert (False, False, ()) == (again.edge, again.told, again.changed)


def test_an_older_word_tells_nothing_and_another_life_of_the_database_counts_anew() -> None:
    before = noted(at(NOW_S, "GRACE"), revision=8)
    expiring = at(NOW_S - DAY_S, "EXPIRING")

    older = news(before, held("EXPIRING", revision=7), "e", expiring)
    restored = news(before, held("EXPIRING", revision=1), "f", expiring)

    assert (False, False, False) == (older.edge, older.told, older.note)
    assert restored.edge


def test_a_trial_that_has_just_begun_is_no_news_and_what_is_found_later_is() -> None:
    begun = news(None, held("EXPIRING"), "e", at(NOW_S - 30 * DAY_S, "EXPIRING"))
    found = [
        news(None, held(status), "e", at(NOW_S + days * DAY_S, status))
        for days, status in ((-7, "EXPIRING"), (1, "GRACE"), (20, "EXPIRED"))
    ]

    assert (False, False, True) == (begun.edge, begun.told, begun.note)
    assert [True] * 3 == [one.edge and one.told and one.changed == () for one in found]


def test_a_change_of_modes_by_a_person_is_noted_and_told_by_nobody() -> None:
    changed = news(noted(Standing()), held(features=(feature("frozen"),)), "e", Standing())

    assert (False, False, True) == (changed.edge, changed.told, changed.note)


def test_a_step_has_one_name_for_ever_and_a_term_too() -> None:
    first, second = at(NOW_S - 20 * DAY_S, "EXPIRING"), at(NOW_S - 10 * DAY_S, "EXPIRING")

    assert first.notice_id(TENANT) == at(NOW_S - 21 * DAY_S, "EXPIRING").notice_id(TENANT)
    assert first.notice_id(TENANT) != second.notice_id(TENANT)
    assert first.term_id(TENANT) == second.term_id(TENANT)
    assert first.term_id(TENANT) != at(NOW_S, "EXPIRING", NOW_S + DAY_S).term_id(TENANT)
