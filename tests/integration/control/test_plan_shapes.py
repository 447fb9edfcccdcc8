"""The routes of plans and licences answer in shapes that clients may rely on (E18): written down by
hand from entitlements.md 7, and compared whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fakes.clock import ManualClock
from tests.fakes.licenses import DAY_S
from tests.fakes.postgres import Database
from tests.integration.control.people import TENANTS, WHY
from tests.integration.control.plans import LICENSE, Plans, beside_entitlements

TEXT, FLAG, NUMBER = "str", "bool", "int"
_FEATURE: Final = {
    "key": TEXT, "name": TEXT, "allowed": FLAG, "mode": TEXT, "source": TEXT,
    "required_plan": TEXT, "changes_at": {TEXT, None},
}  # fmt: skip
_LICENSE: Final = {
    "jti": TEXT, "customer": TEXT, "key_id": TEXT, "issued_at": TEXT, "scope": TEXT, "plan": TEXT,
    "starts_at": TEXT, "expires_at": TEXT, "grace_ends_at": TEXT,
}  # fmt: skip
_TENANT: Final = {
    "tenant_id": TEXT, "plan": TEXT, "status": TEXT, "expires_at": {TEXT, None},
    "grace_ends_at": {TEXT, None}, "features": [_FEATURE], "revision": NUMBER, "stale": FLAG,
}  # fmt: skip
SHAPES: Final[dict[str, Any]] = {
    "license": {
        **_TENANT,
        "scope": {TEXT, None},
        "days_left": {NUMBER, None},
        "limits": {"agents": {NUMBER, None}, "data_planes": {NUMBER, None}},
        "usage": {"agents": NUMBER, "data_planes": NUMBER},
        "license": (_LICENSE, None),
        "scheduled": (_LICENSE, None),
    },
    "plan-features": {
        "plans": [
            {"key": TEXT, "name": TEXT, "rank": NUMBER, "audience": TEXT, "features": [TEXT]}
        ],
        "features": [{"key": TEXT, "name": TEXT, "description": TEXT, "plan": TEXT}],
        "etag": TEXT,
    },
    "features": {
        **_TENANT,
        "overrides": {"*": FLAG},
        "history": {
            "items": [
                {
                    "id": TEXT, "feature": TEXT, "effect": TEXT, "starts_at": TEXT,
                    "ends_at": {TEXT, None}, "actor": TEXT, "reason": TEXT, "created_at": TEXT,
                }
            ],
            "next_page_token": TEXT,
        },
    },
}  # fmt: skip


def differences(shape: Any, said: Any, where: str = "") -> list[str]:
    """Where an answer is not of the shape: a member more is as wrong as one less."""
    match shape:
        case dict():
            if not isinstance(said, dict):
                return [where]
            known = dict.fromkeys(said, shape["*"]) if "*" in shape else shape
            found = [f"{where}.{name}" for name in known.keys() ^ said.keys()]
            for name in known.keys() & said.keys():
                found += differences(known[name], said[name], f"{where}.{name}")
            return found
        case list():
            if not isinstance(said, list):
                return [where]
            return [one for item in said for one in differences(shape[0], item, f"{where}[]")]
        case tuple():
            return differences(None if said is None else shape[0], said, where)
        case set():
            return [] if name_of(said) in shape else [where]
        case _:
            return [] if name_of(said) == shape else [where]


def name_of(said: Any) -> str | None:
    return None if said is None else type(said).__name__


@pytest.fixture
async def plans(state: Path, database: Database, clock: ManualClock) -> AsyncIterator[Plans]:
    async with beside_entitlements(state, database, clock) as beside:
        yield beside


async def test_each_route_answers_in_its_shape_before_and_after_every_change(plans: Plans) -> None:
    """The seed's five routes, and the one that sets a plan."""
    features = f"{TENANTS}/{plans.tenant}/features"
    wrong: list[str] = []
    asked = 0

    async def look(*answers: tuple[str, Any]) -> None:
        nonlocal asked
        boss = {"key": plans.boss.token, "headers": WHY}
        for shape, answer in (
            *answers,
            ("license", await plans.rest.get(LICENSE)),
            ("plan-features", await plans.rest.get("/api/v1/plan-features")),
            ("features", await plans.rest.get(features, **boss)),
        ):
            assert 200 == answer.status, answer.body
            wrong.extend(differences(SHAPES[shape], answer.json, shape))
            asked += 1
            if "features" in answer.json and shape != "plan-features":
                assert 17 == len(answer.json["features"])

    now_s = plans.now_s
    await look()
    await look(("license", await plans.plan(plan="professional")))
    enabled = await plans.features(enable=["policy_writer_ai"])
    await look(("features", enabled))
    assert "on" == (await plans.modes())["policy_writer_ai"]  # with the next request
    await look(("features", await plans.features(disable=["context_gate"])))
    await look(("license", await plans.activate(plans.token(limits={"agents": 5}))))
    later = plans.token(
        jti="later", iat=now_s + 1, plan="enterprise", nbf=now_s + DAY_S, exp=now_s + 9 * DAY_S
    )
    await look(("license", await plans.activate(later)))
    await look(("license", await plans.plan(plan="trial", expires_at="2030-01-01T00:00:00Z")))

    assert [] == wrong
    assert asked >= 7 * 3


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"key": "a", "plan": "b", "name": "c"}, {"x.description"}),
        ({"key": "a", "plan": "b", "name": "c", "description": "d", "raw": ""}, {"x.raw"}),
        ({"key": 1, "plan": "b", "name": "c", "description": None}, {"x.key", "x.description"}),
        ([], {"x"}),
    ],
)
def test_a_member_less_or_more_or_of_another_type_is_seen(said: Any, wrong: set[str]) -> None:
    assert wrong == set(differences(SHAPES["plan-features"]["features"][0], said, "x"))
