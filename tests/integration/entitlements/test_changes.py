"""Plans and overrides that people set: what takes effect, what is refused, what is kept (E15)."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from behavry.entitlements.v1 import entitlements_pb2 as wire
from services.common.errors import BehavryError
from services.common.postgres.pool import open_pool, tenant_tx
from tests.fakes.postgres import Database
from tests.integration.entitlements.desk import (
    DAY_S,
    Desk,
    allowed,
    changes_at,
    mode,
    source,
)
from tests.unit.entitlements import naive


async def reason_of(call: Any) -> str:
    with pytest.raises(BehavryError) as refused:
        await call
    return refused.value.reason


async def test_a_plan_that_is_set_counts_at_once_and_a_lower_one_takes_features_away(
    enterprise: Desk,
) -> None:
    tenant = await enterprise.tenant()
    higher = await enterprise.set_plan(tenant, "enterprise")
    lower = await enterprise.set_plan(tenant, "professional")

    assert (3, 17, 10) == (3, allowed(higher), allowed(lower))
    assert ("kept", "tightened", "on") == (
        mode(lower, "saml_sso"),
        mode(lower, "data_protection"),
        mode(lower, "context_gate"),
    )
    assert lower.revision > higher.revision
    assert lower == await enterprise.get(tenant)


async def test_a_plan_ends_through_grace_and_each_change_is_announced(enterprise: Desk) -> None:
    tenant = await enterprise.tenant()
    ends = enterprise.now_s + 10 * DAY_S
    told = await enterprise.set_plan(tenant, "professional", expires_at=ends)

    assert ("EXPIRING", ends, ends + 14 * DAY_S) == (
        told.status,
        changes_at(told, "context_gate"),
        told.grace_ends_at,
    )
    enterprise.clock.advance(10 * DAY_S)
    grace = await enterprise.until(tenant, lambda one: one.status == "GRACE")
    assert (10, "grace") == (allowed(grace), source(grace, "context_gate"))
    enterprise.clock.advance(14 * DAY_S)
    lapsed = await enterprise.until(tenant, lambda one: one.status == "EXPIRED")
    assert (0, "frozen", "off") == (
        allowed(lapsed),
        mode(lapsed, "context_gate"),
        mode(lapsed, "saml_sso"),
    )
    assert told.revision < grace.revision < lapsed.revision


async def test_overrides_enable_and_disable_within_their_window(enterprise: Desk) -> None:
    tenant = await enterprise.tenant()
    now_s = enterprise.now_s
    told = await enterprise.override(
        tenant,
        enable=["saml_sso"],
        disable=["community_library"],
        starts_at=now_s + 100,
        ends_at=now_s + 200,
    )

    assert ("off", "on", {}) == (
        mode(told, "saml_sso"),
        mode(told, "community_library"),
        dict(told.feature_overrides),
    )
    assert now_s + 100 == changes_at(told, "saml_sso")
    enterprise.clock.advance(100)
    live = await enterprise.until(tenant, lambda one: mode(one, "saml_sso") == "on")
    assert ("override", "stopped") == (source(live, "saml_sso"), mode(live, "community_library"))
    assert {"saml_sso": True, "community_library": False} == dict(live.feature_overrides)
    enterprise.clock.advance(100)
    over = await enterprise.until(tenant, lambda one: mode(one, "saml_sso") != "on")
    assert ("kept", "on") == (mode(over, "saml_sso"), mode(over, "community_library"))


async def test_what_cannot_be_is_refused_and_nothing_of_it_is_kept(enterprise: Desk) -> None:
    tenant, nobody = await enterprise.tenant(), str(uuid4())
    now_s = enterprise.now_s
    before = await enterprise.get(tenant)
    unknown = wire.SetOverridesRequest(tenant_id=tenant, enable=[99], cause=enterprise.cause())  # type: ignore[list-item]  # no feature
    anonymous = wire.SetPlanRequest(tenant_id=tenant, plan="trial")

    twice = enterprise.override(tenant, enable=["saml_sso"], disable=["saml_sso"])
    assert "OVERRIDE_CONFLICT" == await reason_of(twice)
    window = enterprise.override(
        tenant, enable=["saml_sso"], starts_at=now_s + 9, ends_at=now_s + 9
    )
    assert "OVERRIDE_CONFLICT" == await reason_of(window)
    past = enterprise.override(tenant, enable=["saml_sso"], ends_at=now_s)
    assert "OVERRIDE_CONFLICT" == await reason_of(past)
    assert "INVALID_ARGUMENT" == await reason_of(enterprise.override(tenant))
    unknown_feature = enterprise.call(enterprise.admin.SetOverrides, unknown)
    assert "FEATURE_UNKNOWN" == await reason_of(unknown_feature)
    assert "TENANT_UNKNOWN" == await reason_of(enterprise.override(nobody, clear=["saml_sso"]))
    assert "INVALID_ARGUMENT" == await reason_of(enterprise.set_plan(tenant, "ultimate"))
    no_actor = enterprise.call(enterprise.admin.SetPlan, anonymous)
    assert "INVALID_ARGUMENT" == await reason_of(no_actor)
    assert ([], before) == (await enterprise.history(tenant), await enterprise.get(tenant))


async def test_nothing_above_the_ceiling_can_be_enabled_and_without_a_licence_it_is_the_trial(
    desk: Desk,
) -> None:
    tenant = await desk.tenant()
    above = await reason_of(desk.override(tenant, enable=["community_library", "saml_sso"]))
    capped = await desk.set_plan(tenant, "enterprise")

    assert ("OVERRIDE_EXCEEDS_LICENSE", "trial", 3) == (above, capped.plan, allowed(capped))
    assert [] == await desk.history(tenant)


async def test_the_same_request_is_answered_as_the_first_time_for_a_day(enterprise: Desk) -> None:
    tenant = await enterprise.tenant()
    first = await enterprise.override(tenant, enable=["saml_sso"], request_id="one")
    await enterprise.override(tenant, clear=["saml_sso"])
    again = await enterprise.override(tenant, enable=["saml_sso"], request_id="one")
    other = await reason_of(enterprise.override(tenant, clear=["saml_sso"], request_id="one"))
    enterprise.clock.advance(DAY_S)
    later = await enterprise.override(tenant, enable=["saml_sso"], request_id="one")

    assert (first, "IDEMPOTENCY_MISMATCH", True) == (again, other, later.revision > first.revision)
    assert 3 == len(await enterprise.history(tenant))


async def test_of_many_writers_who_expect_the_same_revision_one_wins(enterprise: Desk) -> None:
    tenant = await enterprise.tenant()
    for _ in range(5):
        expected = (await enterprise.get(tenant)).revision
        outcomes = await asyncio.gather(
            *(
                enterprise.override(tenant, enable=["saml_sso"], expected=expected)
                for _ in range(8)
            ),
            return_exceptions=True,
        )
        lost = [one.reason for one in outcomes if isinstance(one, BehavryError)]

        assert ["STALE_REVISION"] * 7 == lost
    assert 5 == len(await enterprise.history(tenant))


async def test_the_view_is_the_history_played_again_at_every_instant(enterprise: Desk) -> None:
    chance = Random(15)
    tenant = await enterprise.tenant()
    keys = ["saml_sso", "context_gate", "community_library"]
    seen: list[tuple[int, dict[str, bool]]] = []
    for _ in range(60):
        effect, key = chance.choice(["enable", "disable", "clear"]), chance.choice(keys)
        starts = chance.choice([0, enterprise.now_s + chance.randrange(1, 90)])
        ends = chance.choice([0, (starts or enterprise.now_s) + chance.randrange(1, 90)])
        told = await enterprise.override(tenant, **{effect: [key]}, starts_at=starts, ends_at=ends)
        seen.append((len(seen) + 1, dict(told.feature_overrides)))
        at = enterprise.now_s
        assert dict(told.feature_overrides) == replayed(await enterprise.history(tenant, 7), at)
        enterprise.clock.advance(chance.randrange(0, 60))
    history = await enterprise.history(tenant)

    # What was seen after the n-th change is what its first n rows say, to this day.
    for rows, view in seen:
        at = history[len(history) - rows].created_at
        assert view == replayed(history[len(history) - rows :], at)
    assert 60 == len(history)


def replayed(newest_first: list[wire.Override], at: int) -> dict[str, bool]:
    rows = [
        {
            "key": wire.Feature.Name(row.feature).removeprefix("FEATURE_").lower(),
            "effect": wire.Effect.Name(row.effect).removeprefix("EFFECT_").lower(),
            "starts": row.starts_at,
            "ends": row.ends_at or None,
        }
        for row in reversed(newest_first)
    ]
    live = {key: naive.override(rows, key, at) for key in naive.TABLE}
    return {key: effect == "enable" for key, effect in live.items() if effect}


@pytest.mark.parametrize("table", ["overrides", "plan_history"])
async def test_history_can_be_added_to_and_not_changed_by_the_service_itself(
    enterprise: Desk, entitlements_database: Database, table: str
) -> None:
    tenant = await enterprise.tenant()
    await enterprise.override(tenant, enable=["saml_sso"])
    await enterprise.set_plan(tenant, "professional")
    async with open_pool(entitlements_database.dsn("behavry_entitlements")) as pool:
        for statement in (
            f"UPDATE entitlements.{table} SET actor = 'nobody'",
            f"DELETE FROM entitlements.{table}",
            f"TRUNCATE entitlements.{table}",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with tenant_tx(pool, tenant) as connection:
                    await connection.execute(statement)
        async with tenant_tx(pool, tenant) as connection:
            kept = await connection.fetchval(f"SELECT count(*) FROM entitlements.{table}")

    assert 1 == kept


async def test_a_deleted_tenant_is_told_to_watchers_and_answered_no_more(enterprise: Desk) -> None:
    tenant, other = await enterprise.tenant(), await enterprise.tenant()
    request = wire.DeleteTenantRequest(tenant_id=tenant, cause=enterprise.cause())
    async with enterprise.watch() as heard:
        await heard.until(lambda w: w.synced)
        await enterprise.call(enterprise.admin.DeleteTenant, request)
        await heard.until(lambda w: w.held[tenant].deleted)
    async with enterprise.watch() as anew:
        await anew.until(lambda w: w.synced)

    assert [other] == list(anew.held)
    assert "TENANT_UNKNOWN" == await reason_of(enterprise.get(tenant))
    assert "TENANT_UNKNOWN" == await reason_of(enterprise.set_plan(tenant, "trial"))
    await enterprise.call(enterprise.admin.DeleteTenant, request)  # again changes nothing


async def test_single_features_are_answered_in_the_order_asked(enterprise: Desk) -> None:
    tenant = await enterprise.tenant()
    asked = [wire.FEATURE_SAML_SSO, wire.FEATURE_COMMUNITY_LIBRARY]
    one = await enterprise.call(
        enterprise.reader.CheckFeature,
        wire.CheckFeatureRequest(tenant_id=tenant, feature=wire.FEATURE_COMMUNITY_LIBRARY),
    )
    both = await enterprise.call(
        enterprise.reader.BatchCheckFeatures,
        wire.BatchCheckFeaturesRequest(tenant_id=tenant, features=asked),
    )
    none = enterprise.call(
        enterprise.reader.CheckFeature, wire.CheckFeatureRequest(tenant_id=tenant)
    )

    assert (True, "trial") == (one.answer.allowed, one.plan)
    assert [(asked[0], False), (asked[1], True)] == [
        (answer.feature, answer.allowed) for answer in both.answers
    ]
    assert "FEATURE_UNKNOWN" == await reason_of(none)
