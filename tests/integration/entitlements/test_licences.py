"""Licences through the running service: sources, time, revocation, bindings (E2, E6)."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from services.entitlements.license import sha256
from tests.altered import altered
from tests.fakes.clock import START_NS, ManualClock
from tests.fakes.licenses import license_token, revocations_token
from tests.fakes.postgres import Database
from tests.integration.entitlements.desk import (
    DAY_S,
    NOW_S,
    Desk,
    allowed,
    issued,
    mode,
    serving,
    source,
)
from tests.integration.entitlements.filled import as_admin
from tests.integration.entitlements.test_changes import reason_of


async def test_what_is_said_of_a_plan_last_counts_even_within_one_second(enterprise: Desk) -> None:
    tenant = await enterprise.tenant()
    first, second = (
        issued(tenant=tenant, plan="enterprise", iat=enterprise.now_s - before_s)
        for before_s in (60, 30)
    )
    await enterprise.activate(first, tenant)
    by_hand = await enterprise.set_plan(tenant, "professional")
    by_licence = await enterprise.activate(second, tenant)

    assert ("professional", "enterprise") == (by_hand.plan, by_licence.entitlements.plan)


async def test_a_tenants_licence_brings_its_plan_and_its_single_features(enterprise: Desk) -> None:
    tenant = await enterprise.tenant()
    await enterprise.tenant()  # not alone: its admin speaks for the tenant only
    said = {"saml_sso": True, "blast_radius": False}
    answer = await enterprise.activate(
        issued(tenant=tenant, jti="own", features=said, limits={"agents": 5}, models=["saas"]),
        tenant,
    )
    told = answer.entitlements

    assert ("own", "VALID", "own") == (
        answer.activated.jti,
        answer.activated.status,
        told.license.jti,
    )
    assert ("professional", 10, "license", "license") == (
        told.plan,
        allowed(told),
        source(told, "saml_sso"),
        source(told, "blast_radius"),
    )
    assert (5, ["saas"], "ceiling") == (
        told.limits.agents,
        list(told.models),
        told.installation_license.jti,
    )


@pytest.mark.usefixtures("alone")
async def test_the_same_token_again_changes_nothing(enterprise: Desk) -> None:
    tenant, token = await enterprise.tenant(), issued(plan="enterprise", jti="again")
    first = await enterprise.activate(token, tenant)
    again = await enterprise.activate(token, tenant)

    assert first == again


async def test_a_request_that_is_repeated_does_not_bring_a_removed_licence_back(
    enterprise: Desk,
) -> None:
    tenant = await enterprise.tenant()
    await enterprise.tenant()
    token = issued(tenant=tenant, jti="once")
    await enterprise.activate(token, tenant, request_id="one")
    await enterprise.remove("once", tenant, request_id="two")
    await enterprise.remove("once", tenant, request_id="two")
    again = await enterprise.activate(token, tenant, request_id="one")
    anew = await enterprise.activate(token, tenant, request_id="three")
    stale = enterprise.remove("once", tenant, expected=again.entitlements.revision)

    assert (False, True) == (
        again.entitlements.HasField("license"),
        anew.entitlements.HasField("license"),
    )
    assert "STALE_REVISION" == await reason_of(stale)


async def test_one_that_was_issued_earlier_is_refused_unless_it_is_to_replace(
    enterprise: Desk,
) -> None:
    tenant = await enterprise.tenant()
    await enterprise.tenant()
    await enterprise.activate(issued(tenant=tenant, jti="new", plan="enterprise"), tenant)
    old = issued(tenant=tenant, jti="old", iat=NOW_S - 1)
    refused = await reason_of(enterprise.activate(old, tenant))
    replaced = await enterprise.activate(old, tenant, replace=True)

    assert ("LICENSE_OLDER", "old", 10) == (
        refused,
        replaced.entitlements.license.jti,
        allowed(replaced.entitlements),
    )


async def test_a_scheduled_one_takes_over_by_itself_and_a_removed_one_is_gone(
    enterprise: Desk,
) -> None:
    tenant = await enterprise.tenant()
    await enterprise.tenant()
    begins = enterprise.now_s + 5 * DAY_S
    waiting = await enterprise.activate(issued(tenant=tenant, jti="then", nbf=begins), tenant)

    assert ("then", "NOT_YET_VALID", 3) == (
        waiting.entitlements.scheduled.jti,
        waiting.activated.status,
        allowed(waiting.entitlements),
    )
    enterprise.clock.advance(5 * DAY_S)
    begun = await enterprise.until(tenant, lambda one: one.license.jti == "then")
    assert (10, False) == (allowed(begun), begun.HasField("scheduled"))
    await enterprise.remove("then", tenant)
    left = await enterprise.get(tenant)
    assert (False, "trial", "frozen") == (
        left.HasField("license"),
        left.plan,
        mode(left, "context_gate"),
    )
    assert "NOT_FOUND" == await reason_of(enterprise.remove("then", tenant))


async def test_a_revoked_one_lapses_without_grace_and_serials_only_rise(enterprise: Desk) -> None:
    tenant = await enterprise.tenant()
    await enterprise.activate(issued(tenant=tenant, jti="own"), tenant)

    def listed(serial: int, *revoked: str) -> str:
        return revocations_token(now_s=NOW_S, serial=serial, revoked=list(revoked), key="issuer")

    taken = await enterprise.activate(listed(7, "own"))
    lapsed = await enterprise.get(tenant)

    assert (7, "REVOKED", 0, "frozen") == (
        taken.revocations_serial,
        lapsed.status,
        allowed(lapsed),
        mode(lapsed, "context_gate"),
    )
    assert "LICENSE_OLDER" == await reason_of(enterprise.activate(listed(6)))
    assert "LICENSE_OLDER" == await reason_of(enterprise.activate(listed(7, "other")))
    assert "LICENSE_REVOKED" == await reason_of(
        enterprise.activate(issued(tenant=tenant, jti="own", iat=NOW_S + 1), tenant)
    )
    await enterprise.activate(listed(8))
    assert 10 == allowed(await enterprise.get(tenant))


async def test_one_in_grace_can_be_activated_and_an_ended_one_cannot(enterprise: Desk) -> None:
    tenant = await enterprise.tenant()
    begun = NOW_S - 100 * DAY_S
    ended = issued(tenant=tenant, jti="ended", nbf=begun, exp=NOW_S - 14 * DAY_S)
    grace = issued(tenant=tenant, jti="grace", nbf=begun, exp=NOW_S - DAY_S)

    assert "LICENSE_EXPIRED" == await reason_of(enterprise.activate(ended, tenant))
    answer = await enterprise.activate(grace, tenant)
    assert ("GRACE", "GRACE", 10) == (
        answer.activated.status,
        answer.entitlements.status,
        allowed(answer.entitlements),
    )


@pytest.mark.usefixtures("alone")
async def test_the_only_tenants_admin_activates_the_installations_and_one_of_many_does_not(
    desk: Desk,
) -> None:
    tenant = await desk.tenant()
    alone = await desk.activate(issued(jti="ours"), tenant)
    other = await desk.tenant()
    refused = await reason_of(desk.activate(issued(jti="more", iat=NOW_S + 1), other))

    assert ("ours", "LICENSE_SUBJECT_MISMATCH") == (
        alone.entitlements.installation_license.jti,
        refused,
    )


async def test_the_environment_comes_before_the_file_and_both_before_what_was_activated(
    tmp_path: Path, entitlements_database: Database, clock: ManualClock
) -> None:
    file = tmp_path / "license"
    file.write_text(issued(jti="file") + "\n")
    counted = []
    by_env = {"BEHAVRY_LICENSE": issued(jti="environment")}
    by_file = {"BEHAVRY_LICENSE_FILE": str(file)}
    tenant = ""
    for env in ({}, by_env | by_file, by_file, {}):
        async with serving(tmp_path, entitlements_database, clock, env=env) as desk:
            if not tenant:
                tenant = await desk.tenant()
                await desk.activate(issued(jti="activated"))
            told = await desk.get(tenant)
            counted.append((told.installation_license.jti, told.revision))

    assert ["activated", "environment", "file", "activated"] == [jti for jti, _ in counted]
    assert sorted({revision for _, revision in counted}) == [one for _, one in counted]


async def test_a_file_that_is_replaced_is_read_again_and_a_broken_one_falls_back(
    tmp_path: Path, entitlements_database: Database, clock: ManualClock
) -> None:
    file = tmp_path / "license"
    file.write_text(issued(jti="first"))
    env = {"BEHAVRY_LICENSE_FILE": str(file)}
    async with serving(tmp_path, entitlements_database, clock, env=env) as desk:
        tenant = await desk.tenant()
        await desk.activate(issued(jti="activated"))
        async with desk.watch() as heard:
            await heard.until(lambda w: w.synced)
            file.write_text(issued(jti="second"))
            await heard.until(lambda w: w.held[tenant].installation_license.jti == "second")
            file.write_text("nothing that is a licence")
            await heard.until(lambda w: w.held[tenant].installation_license.jti == "activated")


@pytest.mark.usefixtures("alone")
async def test_a_stored_token_outlives_a_restart_and_a_development_key_does_not_reach_production(
    tmp_path: Path, entitlements_database: Database, clock: ManualClock
) -> None:
    token = license_token(now_s=NOW_S, jti="dev", plan="enterprise")
    async with serving(tmp_path, entitlements_database, clock, development=True) as desk:
        tenant = await desk.tenant()
        free = await desk.set_plan(tenant, "enterprise")  # no ceiling
        capped = (await desk.activate(token, tenant)).entitlements
    async with serving(tmp_path, entitlements_database, clock) as desk:
        production = await desk.get(tenant)

    assert (17, 17, 3) == (allowed(free), allowed(capped), allowed(production))
    assert ("dev", False) == (
        capped.installation_license.jti,
        production.HasField("installation_license"),
    )


async def test_bound_to_another_installation_it_is_refused_and_to_this_one_it_counts(
    desk: Desk, tmp_path: Path
) -> None:
    from services.cli import licenses as command  # noqa: PLC0415  # what `license request` reads

    asked = command.request(tmp_path)["fingerprint"]
    other = await reason_of(desk.activate(issued(fingerprint="00" * 32)))
    ours = await desk.activate(issued(fingerprint=asked, jti="bound"))

    assert ("LICENSE_FINGERPRINT_MISMATCH", "bound") == (other, ours.activated.jti)


async def test_a_clock_set_back_revives_nothing_across_any_boundary_and_a_restart(
    tmp_path: Path, entitlements_database: Database, clock: ManualClock
) -> None:
    async with serving(tmp_path, entitlements_database, clock) as desk:
        tenant = await desk.tenant()
        await desk.activate(issued(plan="enterprise", jti="cap", exp=NOW_S + 10**9))
        ends = NOW_S + 40 * DAY_S
        await desk.set_plan(tenant, "professional", expires_at=ends)
        states = []
        for days, status in ((10, "EXPIRING"), (40, "GRACE"), (54, "EXPIRED")):
            clock.set_wall(START_NS + days * DAY_S * 10**9)
            there = await desk.until(tenant, lambda one, s=status: one.status == s)
            clock.set_wall(START_NS)
            suspect = await desk.until(tenant, lambda one: one.clock_suspect)
            clock.set_wall(START_NS + days * DAY_S * 10**9)
            again = await desk.until(tenant, lambda one: not one.clock_suspect)
            states.append([allowed(one) for one in (there, suspect, again)])
    clock.set_wall(START_NS)
    async with serving(tmp_path, entitlements_database, clock) as desk:
        restarted = await desk.get(tenant)

    assert [[10, 10, 10], [10, 10, 10], [0, 0, 0]] == states
    assert (0, True) == (allowed(restarted), restarted.clock_suspect)


async def test_a_clock_a_little_behind_is_no_suspect_and_revives_nothing_either(
    enterprise: Desk,
) -> None:
    tenant = await enterprise.tenant()
    await enterprise.set_plan(tenant, "trial", expires_at=NOW_S + 100)
    enterprise.clock.advance(100)
    await enterprise.until(tenant, lambda one: one.status == "EXPIRED")
    enterprise.clock.set_wall(START_NS - 200 * 10**9)
    told = await enterprise.override(tenant, disable=["saml_sso"])

    assert (0, False) == (allowed(told), told.clock_suspect)


async def test_more_tenants_than_the_licence_says_are_told_and_nobody_loses_anything(
    desk: Desk,
) -> None:
    await desk.activate(issued(limits={"tenants": 1}))
    tenant = await desk.tenant()
    before = await desk.get(tenant)
    await desk.tenant()
    told = await desk.until(tenant, lambda one: one.status == "LIMIT_EXCEEDED")

    assert list(before.features) == list(told.features)


async def test_a_licence_of_an_unknown_tenant_is_refused(desk: Desk) -> None:
    nobody = str(uuid4())

    assert "TENANT_UNKNOWN" == await reason_of(desk.activate(issued(tenant=nobody), nobody))


async def test_stored_ones_that_are_not_believed_count_as_absent_and_each_raises_an_alert(
    tmp_path: Path,
    entitlements_database: Database,
    clock: ManualClock,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The six codes of a token that was good when it was stored, and is none of ours now (E2)."""
    stored = {
        "MALFORMED": "nothing that is a licence",
        "SIGNATURE_INVALID": altered(issued(plan="enterprise"), at=-9),
        "UNKNOWN_KEY": issued(plan="enterprise", key="somebody"),
        "PRODUCT_MISMATCH": issued(plan="enterprise", aud="another"),
        "SUBJECT_MISMATCH": issued(plan="enterprise", tenant=str(uuid4())),
        "FINGERPRINT_MISMATCH": issued(plan="enterprise", fingerprint="0" * 64),
    }
    async with serving(tmp_path, entitlements_database, clock) as desk:
        tenant = await desk.tenant()
        absent = await desk.get(tenant)
    for token in stored.values():
        await as_admin(
            entitlements_database,
            "INSERT INTO entitlements.installation_licenses VALUES ($1, $2, 0)",
            sha256(token),
            token,
        )
    capfd.readouterr()
    async with serving(tmp_path, entitlements_database, clock) as desk:
        told = await desk.get(tenant)
    logged = [line for line in capfd.readouterr().out.splitlines() if "license_rejected" in line]

    assert (list(absent.features), False) == (
        list(told.features),
        told.HasField("installation_license"),
    )
    assert 6 == len(logged)
    for code, token in stored.items():
        [alert] = [line for line in logged if sha256(token) in line]
        assert code in alert
        assert "critical" in alert
