"""API keys: at most what their maker may, for a while, replaced with an overlap."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.escalated import signed_in
from tests.integration.control.test_problems import check
from tests.promises import promise

KEYS = "/api/v1/api-keys"
DAY_S = 86_400


async def make(rest: Rest, *, key: str = "", **more: Any) -> Answered:
    return await rest.post(KEYS, {"name": "k", "role": "admin", **more}, key=key)


@promise("people:keys-within-scopes")
@pytest.mark.parametrize(
    ("scopes", "reads", "writes", "elsewhere"),
    [([], 200, 201, 200), (["agents"], 200, 201, 403), (["agents:read"], 200, 403, 403),
     (["servers"], 403, 403, 200)],
)  # fmt: skip
async def test_a_key_is_good_for_its_scopes_alone(
    rest: Rest, scopes: list[str], reads: int, writes: int, elsewhere: int
) -> None:
    key = (await make(rest, scopes=scopes)).json["key"]
    assert reads == (await rest.get("/api/v1/agents", key=key)).status
    answer = await rest.post("/api/v1/agents", {"name": "one"}, key=key)
    assert writes == answer.status
    if writes == 403:
        check(answer, 403, "role_required")
        assert "agents" == answer.json["required_scope"]

    assert elsewhere == (await rest.get("/api/v1/servers", key=key)).status
    assert 200 == (await rest.get("/api/v1/me", key=key)).status


@promise("people:keys-within-scopes")
async def test_a_key_makes_no_key_that_may_more_than_itself(rest: Rest) -> None:
    narrow = (await make(rest, scopes=["api-keys", "agents:read"])).json["key"]
    for scopes in ([], ["agents"], ["servers:read"], ["agents:read", "users"]):
        check(await make(rest, key=narrow, scopes=scopes), 403, "role_required")
    assert 201 == (await make(rest, key=narrow, scopes=["agents:read"])).status
    check(await make(rest, scopes=["nothing"]), 422, "validation_failed")
    wide = (await make(rest)).json["id"]

    check(await rest.post(f"{KEYS}/{wide}:rotate", {}, key=narrow), 403, "role_required")


@promise("people:keys-overlap")
@pytest.mark.parametrize("hours", [0, 1, 24])
async def test_a_rotated_key_goes_on_for_the_overlap_alone(rest: Rest, hours: int) -> None:
    old = (await make(rest, scopes=["agents:read"])).json
    new = await rest.post(f"{KEYS}/{old['id']}:rotate", {"overlap_hours": hours})
    assert (201, ["agents:read"]) == (new.status, new.json["scopes"])
    rest.clock.advance(max(0, hours * 3600 - 1))
    before = (await rest.get("/api/v1/agents", key=old["key"])).status
    rest.clock.advance(1)

    assert (401 if hours == 0 else 200) == before
    check(await rest.get("/api/v1/agents", key=old["key"]), 401, "unauthenticated")
    assert 200 == (await rest.get("/api/v1/agents", key=new.json["key"])).status
    check(await rest.post(f"{KEYS}/{old['id']}:rotate", {}), 404, "not_found")


@promise("people:keys-overlap")
async def test_a_key_is_replaced_once_and_no_longer_overlap_is_given(rest: Rest) -> None:
    old = (await make(rest)).json
    too_long = await rest.post(f"{KEYS}/{old['id']}:rotate", {"overlap_hours": 25})
    check(too_long, 422, "validation_failed")
    assert 201 == (await rest.post(f"{KEYS}/{old['id']}:rotate", {})).status
    check(await rest.post(f"{KEYS}/{old['id']}:rotate", {}), 404, "not_found")
    recorded = [one["type"] for one in await rest.records()]

    assert 1 == recorded.count("admin.api_key.rotated")


async def test_keys_live_for_90_days_unless_told_and_a_year_at_most(rest: Rest) -> None:
    key = (await make(rest)).json["key"]
    check(await make(rest, expires_in_days=366), 422, "validation_failed")
    rest.clock.advance(90 * DAY_S - 1)
    assert 200 == (await rest.get("/api/v1/me", key=key)).status
    rest.clock.advance(1)

    check(await rest.get("/api/v1/me", key=key), 401, "unauthenticated")


async def test_a_person_makes_keys_only_right_after_a_proof(rest: Rest) -> None:
    admin = await signed_in(rest)
    made = await make(rest, key=admin.token)
    assert 201 == made.status
    rest.clock.advance(301)
    check(await make(rest, key=admin.token), 403, "step_up_required")
    rotating = await rest.post(f"{KEYS}/{made.json['id']}:rotate", {}, key=admin.token)
    check(rotating, 403, "step_up_required")
    assert 200 == (await admin.step_up()).status

    assert 201 == (await make(rest, key=admin.token)).status
