"""Plans, licences and overrides over REST, with entitlements beside control: what they change, who
may, what is refused, and what is on record before and after.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.altered import altered
from tests.fakes.clock import ManualClock
from tests.fakes.gateway import until
from tests.fakes.licenses import DAY_S, license_token, revocations_token
from tests.fakes.postgres import Database
from tests.integration.control.people import TENANTS, WHY
from tests.integration.control.planes import fetch, tenant_state, until_serial
from tests.integration.control.plans import LICENSE, SUMMARY, Plans, beside_entitlements
from tests.integration.control.test_problems import check
from tests.promises import promise


@pytest.fixture
async def plans(state: Path, database: Database, clock: ManualClock) -> AsyncIterator[Plans]:
    async with beside_entitlements(state, database, clock) as beside:
        yield beside


async def of_type(plans: Plans, *types: str) -> list[dict[str, Any]]:
    return [record for record in await plans.rest.records() if record["type"] in types]


async def test_the_licence_and_the_catalogue_say_everything_and_no_key(plans: Plans) -> None:
    before = await plans.license()
    token = plans.token(limits={"agents": 2}, plan="professional")
    answer = await plans.activate(token)
    said = answer.json

    assert ("trial", None, None) == (before["plan"], before["license"], before["scope"])
    assert (200, 17) == (answer.status, len(said["features"]))
    named = said["license"]
    assert ("licence-1", "A customer", "issuer") == (
        named["jti"], named["customer"], named["key_id"],
    )  # fmt: skip
    assert {"agents": 2, "data_planes": None} == said["limits"]
    assert {"agents": 0, "data_planes": len(plans.rest.running.control.planes.keys)} == said[
        "usage"
    ]
    assert said == await plans.license()
    assert token not in answer.body.decode()

    first = await plans.rest.get("/api/v1/plan-features")
    tag = {"if-none-match": first.headers["etag"]}
    again = await plans.rest.get("/api/v1/plan-features", headers=tag)

    assert [3, 10, 17] == [len(plan["features"]) for plan in first.json["plans"]]
    assert first.headers["etag"] == first.json["etag"]
    assert (304, b"") == (again.status, again.body)
    keys = [one["key"] for one in first.json["features"]]
    assert keys == [one["key"] for one in (await plans.license())["features"]]


async def test_an_early_feature_counts_on_the_next_request_and_stays_in_the_history(
    plans: Plans,
) -> None:
    """On Professional, the seed's own example."""
    assert 200 == (await plans.plan(plan="professional")).status
    assert "off" == (await plans.modes())["policy_writer_ai"]
    changed = await plans.features(enable=["policy_writer_ai"])
    answer = next(
        one for one in (await plans.license())["features"] if one["key"] == "policy_writer_ai"
    )

    assert 200 == changed.status
    assert ("on", "OVERRIDE", True) == (answer["mode"], answer["source"], answer["allowed"])
    assert {"policy_writer_ai": True} == changed.json["overrides"]
    [past] = changed.json["history"]["items"]
    assert ("policy_writer_ai", "enable", WHY["x-behavry-reason"], f"user:{plans.boss.id}") == (
        past["feature"], past["effect"], past["reason"], past["actor"],
    )  # fmt: skip
    assert changed.headers["etag"] == f'"{changed.json["revision"]}"'

    await plans.plan(plan="enterprise")
    for key in ("saml_sso", "inbound_rules"):
        assert 200 == (await plans.features(disable=[key])).status
    path, seen, token = f"{TENANTS}/{plans.tenant}/features", [], ""
    while True:
        page = await plans.rest.get(
            f"{path}?page_size=2&page_token={token}", key=plans.boss.token, headers=WHY
        )
        seen += [one["feature"] for one in page.json["history"]["items"]]
        token = page.json["history"]["next_page_token"]
        if not token:
            break

    assert ["inbound_rules", "saml_sso", "policy_writer_ai"] == seen


@promise("plans:changes-on-record")
async def test_each_change_is_on_record_before_and_after(plans: Plans) -> None:
    await plans.plan(plan="professional")
    await plans.features(disable=["context_gate"])
    token = plans.token()
    await plans.activate(token)
    refused = await plans.activate(plans.token(jti="older", now_s=plans.now_s - DAY_S))
    assert (409, "license_older") == (refused.status, refused.json["code"])
    kinds = (
        "admin.entitlement.plan", "entitlement.plan", "admin.entitlement.override",
        "entitlement.override", "admin.license.activate", "license.activated", "license.refused",
    )  # fmt: skip
    found = await of_type(plans, *kinds)

    assert [
        *kinds[:6], "admin.license.activate", "license.refused",
    ] == [record["type"] for record in found]  # fmt: skip
    override = found[3]
    assert [{"field": "modes.context_gate", "old": "on", "new": "frozen"}] == override["changes"]
    assert WHY["x-behavry-reason"] == override["reason"]
    assert plans.boss.id == override["actor"]["id"]
    activated = found[5]
    assert ("licence-1", hashlib.sha256(token.encode()).hexdigest()) == (
        activated["jti"], activated["resource_id"],
    )  # fmt: skip
    assert "license_older" == found[7]["code"]


async def test_the_same_key_again_changes_nothing(plans: Plans) -> None:
    token = plans.token()
    first = await plans.activate(token)
    again = await plans.activate(token)
    assert (200, 200) == (first.status, again.status)
    assert first.json["revision"] == again.json["revision"]
    repeated = [await plans.activate(token, key="k") for _ in range(2)]

    assert "true" == repeated[1].headers["idempotency-replayed"]
    assert repeated[0].json == repeated[1].json


async def test_a_licence_of_later_is_scheduled_and_takes_over_by_itself(plans: Plans) -> None:
    tenant = {"tenant": plans.tenant}
    now = plans.now_s
    first = plans.token(plan="professional", now_s=now - DAY_S, **tenant)
    assert 200 == (await plans.activate(first)).status
    later = plans.token(
        jti="later", plan="enterprise", now_s=now, nbf=now + DAY_S, exp=now + 90 * DAY_S, **tenant
    )
    answer = await plans.activate(later)
    assert ("professional", "later") == (answer.json["plan"], answer.json["scheduled"]["jti"])
    plans.rest.clock.advance(DAY_S + 1)
    said = await plans.until(lambda said: said["plan"] == "enterprise")

    assert (None, "later") == (said["scheduled"], said["license"]["jti"])


async def test_a_licence_that_does_not_count_is_refused_by_name(plans: Plans) -> None:
    now = plans.now_s
    long_ago = {"iat": now - 120 * DAY_S, "nbf": now - 120 * DAY_S, "exp": now - 60 * DAY_S}
    good, other = plans.token(), plans.token(jti="other")
    swapped = ".".join([*good.split(".")[:2], other.split(".")[2]])
    before = await plans.license()
    for token, code in (
        (plans.token(**long_ago, grace_days=0), "license_expired"),
        (plans.token(tenant=str(uuid4())), "license_subject_mismatch"),
        (plans.token(fingerprint="0" * 64), "license_fingerprint_mismatch"),
        (plans.token(aud="others"), "license_product_mismatch"),
        (license_token(now_s=now, key="nobody"), "license_unknown_key"),
        (swapped, "license_signature_invalid"),
        ("no licence at all", "license_malformed"),
    ):
        answer = await plans.activate(token)
        check(answer, 422, code)
        assert code == (await of_type(plans, "license.refused"))[-1]["code"]
        assert token not in answer.body.decode()
    check(await plans.activate("e" * 16_385), 413, "body_too_large")
    assert before == await plans.license()

    listed = revocations_token(now_s=now, serial=1, revoked=["licence-1"], key="issuer")
    assert 200 == (await plans.activate(listed)).status
    check(await plans.activate(good), 422, "license_revoked")
    assert before["features"] == (await plans.license())["features"]


@promise("plans:key-is-nowhere")
async def test_the_key_is_in_no_record_no_table_no_answer_and_no_log(
    plans: Plans, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad = plans.token(), altered(plans.token(jti="other"))
    answers = [await plans.activate(token) for token in (good, bad, good)]
    answers += [await plans.rest.post(LICENSE + "/activate", {"key": good, "x": good})]
    answers += [
        await plans.rest.post(
            LICENSE + "/activate", {"key": [good], good: 1}, headers={"idempotency-key": "1"}
        ),
        await plans.rest.get(LICENSE),
    ]
    said = b"".join(answer.body for answer in answers).decode()
    file = plans.rest.running.control.settings.entitlements_copy
    await until(file.exists)  # written beside the answers
    copy = file.read_bytes()
    kept = str(await plans.rest.records()) + copy.decode("latin-1")
    logged = "".join(capfd.readouterr())

    for token in (good, bad):
        for part in (token, token.split(".")[1], token.split(".")[2]):
            assert part not in said + kept + logged


async def test_overrides_that_cannot_be_used_name_what_is_wrong(plans: Plans) -> None:
    await plans.plan(plan="enterprise")
    revision = (await plans.license())["revision"]
    for body, pointer, code in (
        ({"enable": ["nonsense"]}, "/enable/0", "unknown"),
        ({"enable": ["saml_sso"], "disable": ["saml_sso"]}, "/disable/0", "twice"),
        ({"clear": ["saml_sso", "saml_sso"]}, "/clear/1", "twice"),
        ({}, "", "too_few"),
        ({"enable": ["saml_sso"], "ends_at": "2020-01-01T00:00:00Z"}, "/ends_at", "too_early"),
        (
            {
                "enable": ["saml_sso"],
                "starts_at": "2030-01-02T00:00:00Z",
                "ends_at": "2030-01-01T00:00:00Z",
            },
            "/ends_at",
            "too_early",
        ),
    ):
        answer = await plans.features(**body)
        check(answer, 422, "validation_failed")
        assert [{"pointer": pointer, "code": code}] == answer.json["errors"]
    check(await plans.plan(plan="platinum"), 422, "validation_failed")
    check(
        await plans.plan(plan="trial", expires_at="2020-01-01T00:00:00Z"), 422, "validation_failed"
    )

    assert revision == (await plans.license())["revision"]


async def test_of_two_who_read_the_same_revision_one_wins(plans: Plans) -> None:
    revision = (await plans.license())["revision"]
    tag = {"if-match": f'"{revision}"'}
    first = await plans.features(disable=["custom_dlp_patterns"], headers=tag)
    second = await plans.features(disable=["community_library"], headers=tag)
    for broken in ('"x"', "812", '"0"', ""):
        sent = {"if-match": broken}
        check(await plans.features(clear=["saml_sso"], headers=sent), 412, "stale_revision")

    assert 200 == first.status
    check(second, 412, "stale_revision")
    assert first.headers["etag"] == second.headers["etag"]
    modes = await plans.modes()
    assert ("frozen", "on") == (modes["custom_dlp_patterns"], modes["community_library"])


async def test_nobody_enables_above_the_installations_licence(
    state: Path, database: Database, clock: ManualClock
) -> None:
    async with beside_entitlements(state, database, clock, env="production") as plans:
        before = await plans.license()
        check(await plans.features(enable=["saml_sso"]), 403, "override_exceeds_license")
        assert before == await plans.license()
        [_, refused] = await of_type(plans, "admin.entitlement.override", "entitlement.override")
        assert "override_exceeds_license" == refused["code"]

        assert 200 == (await plans.activate(plans.token(plan="enterprise"))).status
        assert 200 == (await plans.features(enable=["saml_sso"])).status
        assert "on" == (await plans.modes())["saml_sso"]


@promise("plans:limits-on-creation")
async def test_a_limit_stops_the_next_one_and_none_that_there_is(plans: Plans) -> None:
    rest = plans.rest
    for name in "abc":
        await rest.add_agent(name)
    limited = plans.token(limits={"agents": 2, "tenants": 1})
    said = (await plans.activate(limited)).json
    assert ("LIMIT_EXCEEDED", 3) == (said["status"], said["usage"]["agents"])
    refused = await rest.post("/api/v1/agents", {"name": "d"})
    check(refused, 403, "limit_exceeded")
    assert ("agents", 3, 2) == tuple(refused.json[name] for name in ("limit", "used", "allowed"))
    another = await rest.post(
        TENANTS, {"slug": "second", "name": "S"}, key=plans.boss.token, headers=WHY
    )
    check(another, 403, "limit_exceeded")
    agents = (await rest.get("/api/v1/agents")).json["items"]
    assert ["active"] * 3 == [agent["status"] for agent in agents]

    for agent in agents[:2]:
        assert 200 == (await rest.post(f"/api/v1/agents/{agent['id']}:revoke")).status
    assert 201 == (await rest.post("/api/v1/agents", {"name": "d"})).status


@promise("plans:modes-in-bundles")
async def test_a_change_of_modes_is_in_a_bundle_within_two_seconds(plans: Plans) -> None:
    rest = plans.rest
    await plans.plan(plan="enterprise")
    while (serial := await rest.running.publisher.publish()) == 0:
        pass
    took = []
    for key in ("context_gate", "saml_sso", "data_protection", "community_library"):
        began = rest.running.control.signals.serial
        started = _steady()
        assert 200 == (await plans.features(disable=[key])).status
        await until_serial(rest, max(began, serial) + 1)
        took.append(_steady() - started)
    modes = tenant_state(rest, (await fetch(rest)).body)["modes"]

    assert 17 == len(modes)
    assert {"frozen", "kept", "tightened", "stopped", "on"} == set(modes.values())
    assert max(took) < 2.0


def _steady() -> float:
    import time  # noqa: PLC0415  # what is measured is the world's time, not the test's clock

    return time.monotonic()


@promise("plans:gated")
async def test_the_first_gate_opens_with_the_plan_and_says_what_it_needs(plans: Plans) -> None:
    rest = plans.rest
    refused = await rest.get(SUMMARY)
    check(refused, 403, "feature_not_included")
    said = refused.json
    assert ("Feature not included", "Context Gate needs the Professional plan.", SUMMARY) == (
        said["title"], said["detail"], said["instance"],
    )  # fmt: skip
    assert ("context_gate", "off", "trial", "professional") == tuple(
        said[name] for name in ("feature", "mode", "current_plan", "required_plan")
    )
    assert (await plans.license())["revision"] == said["revision"]

    await plans.plan(plan="professional")
    assert 200 == (await rest.get(SUMMARY)).status
    await plans.plan(plan="trial")
    assert "frozen" == (await plans.modes())["context_gate"]
    assert 200 == (await rest.get(SUMMARY)).status
