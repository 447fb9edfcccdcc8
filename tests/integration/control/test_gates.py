"""What a plan gates: which routes, for whom, in which mode, and in which order they refuse. Super-
admins pass, on record.

The routes come from the published description; entitlements' answers are put in by hand.
"""

from __future__ import annotations

import random
from typing import Any, Final
from uuid import uuid4

import asyncpg
import pytest

from behavry.entitlements.v1 import entitlements_pb2 as wire
from services.control import features
from services.control.api import openapi
from services.control.api.guards import RoleGuard
from services.control.api.routers import ROUTERS
from services.control.roles import Role
from tests.integration.control.conftest import Rest
from tests.integration.control.escalated import joined
from tests.integration.control.people import TENANTS, WHY, entitle, operator
from tests.integration.control.plans import SUMMARY
from tests.integration.control.test_problems import Operation, check, operations
from tests.promises import promise

MODES: Final = ("on", "frozen", "tightened", "kept", "stopped", "off")
#: What every plan has: a resource that is in no line here and has no feature fails.
CORE: Final = frozenset({
    "agents", "api-keys", "approve", "audit", "auth", "enroll", "enrollment-tokens", "escalations",
    "healthz", "jobs", "kill-switch", "license", "me", "openapi.json", "plan-features", "policies",
    "policy", "readyz", "roles", "servers", "settings", "tenants", "traces", ".well-known", "",
    "errors", "reference", "style.css", "device", "join", "reset",
})  # fmt: skip
#: Accepting an invite is how people come in; who is invited was asked before.
CORE_ROUTES: Final = frozenset({"accept_invite"})
#: Features whose routes are not built yet.
WITHOUT_ROUTE: Final = features.KEYS - {"context_gate", "team_management"}


def guarded() -> list[tuple[Any, RoleGuard]]:
    routes = [(route, openapi.guard_of(route)) for route in openapi.api_routes(ROUTERS)]
    return [(route, guard) for route, guard in routes if isinstance(guard, RoleGuard)]


def resource(path: str) -> str:
    return path.removeprefix("/api/v1").strip("/").split("/")[0].split(":")[0]


def test_control_knows_exactly_the_features_of_the_contract() -> None:
    named = {name.removeprefix("FEATURE_").lower() for name in wire.Feature.keys()}  # noqa: SIM118  # an enum

    assert features.KEYS == named - {"unspecified"}
    assert 17 == len(features.KEYS)


def test_a_feature_that_there_is_not_fails_when_the_route_is_made() -> None:
    with pytest.raises(ValueError, match="no feature"):
        RoleGuard(role=Role.VIEWER, feature="context_gates")


def test_each_route_has_a_feature_or_is_declared_as_core() -> None:
    undeclared = {
        route.path
        for route in openapi.api_routes(ROUTERS)
        if openapi.guard_of(route).feature is None
        and resource(route.path) not in CORE
        and route.name not in CORE_ROUTES
    }

    assert set() == undeclared


def test_which_features_have_no_route_yet() -> None:
    gated = {guard.feature for _, guard in guarded() if guard.feature}

    assert WITHOUT_ROUTE == features.KEYS - gated
    gates = {(resource(route.path), guard.feature) for route, guard in guarded() if guard.feature}
    assert {("context-gate", "context_gate"), ("users", "team_management")} <= gates


async def test_the_description_says_what_the_guard_enforces(rest: Rest) -> None:
    described = (await rest.get("/openapi.json", key=None)).json["paths"]
    told = {
        (path, method.upper()): one.get("x-required-feature")
        for path, methods in described.items()
        for method, one in methods.items()
    }
    enforced = {
        (route.path_format, method): guard.feature
        for route, guard in guarded()
        if route.include_in_schema
        for method in route.methods
    }

    assert enforced == {where: told[where] for where in enforced}
    assert {feature for feature in told.values() if feature} == features.KEYS - WITHOUT_ROUTE


async def gated(rest: Rest) -> list[tuple[Operation, RoleGuard]]:
    guards = {
        (route.path_format, method): guard
        for route, guard in guarded()
        if guard.feature
        for method in route.methods
    }
    return [
        (one, guards[one.path, one.method])
        for one in await operations(rest)
        if (one.path, one.method) in guards
    ]


@promise("plans:gated")
@promise("api:order-of-refusals")
async def test_each_gate_in_each_mode_for_each_role_with_a_broken_body(rest: Rest) -> None:
    """Route x mode x role: 401, then the role's 403, then the plan's, and then the body's."""
    boss = await operator(rest)
    await rest.post("/api/v1/api-keys", {"name": "v", "role": "viewer"})
    viewer = (await rest.post("/api/v1/api-keys", {"name": "v2", "role": "viewer"})).json["key"]
    wrong, asked = [], 0
    for mode in MODES:
        entitle(rest, mode=mode)
        for one, guard in await gated(rest):
            what: features.What = "read" if one.method == "GET" else "write"
            if guard.removes:
                what = "remove"
            for key, first in (
                (None, "unauthenticated"),
                (viewer, "" if guard.role is Role.VIEWER else "role_required"),
                (rest.key, "human_required" if one.human else ""),
                (boss.token, ""),
            ):
                headers = {"content-type": "application/json", "idempotency-key": str(uuid4())}
                if key == boss.token:
                    headers["authorization"] = f"Bearer {key}"
                answer = await rest.call(
                    one.method, one.url(), data=b"{broken", headers=headers, key=key
                )
                asked += 1
                said = answer.json["code"] if answer.status >= 400 else ""
                expected = first
                if not first and not features.allows(mode, what):
                    # The super-admin passes the plan, and then has to say why.
                    expected = "reason_required" if key == boss.token else "feature_not_included"
                if said != expected if expected else said == "feature_not_included":
                    wrong.append((mode, one.name, said, expected))
                if answer.status >= 400:
                    check(answer)

    assert [] == wrong
    assert asked >= 4 * len(MODES)


async def test_a_refusal_says_what_could_be_had(rest: Rest) -> None:
    """Without a word from entitlements, too: the core alone is offered then."""
    nobody = await rest.get(SUMMARY)
    check(nobody, 403, "feature_not_included")
    assert ("FALLBACK", "", 0) == tuple(
        nobody.json[name] for name in ("source", "required_plan", "revision")
    )
    assert 200 == (await rest.get("/api/v1/agents")).status

    entitle(rest, mode="off")
    refused = (await rest.get(SUMMARY)).json
    assert ("context_gate", "off", "professional", 1) == tuple(
        refused[name] for name in ("feature", "mode", "required_plan", "revision")
    )


async def test_the_summary_counts_and_weighs_the_tools_that_there_are(rest: Rest) -> None:
    entitle(rest)
    await rest.add_server("full")
    await rest.add_server("empty")
    admin = await asyncpg.connect(rest.database.admin_dsn)
    server = await admin.fetchval("SELECT id FROM control.servers WHERE slug = 'full'")
    tenant = rest.running.tenant.id
    weights = {"approved": (3, 400), "hidden": (2, 41), "unclassified": (4, 0), "changed": (1, 8)}
    for state, (count, size) in weights.items():
        for number in range(count):
            name, seen = f"{state}-{number}", f"sha256:{state}"
            await admin.execute(
                "INSERT INTO control.tools (tenant_id, server_id, name, state, action, category,"
                " allow_tags, pinned_hash, seen_hash, revision)"
                " VALUES ($1, $2, $3, $4, 'read', '', '{}', '', $5, 1)",
                tenant, server, name, state, seen,
            )  # fmt: skip
            if size:
                await admin.execute(
                    "INSERT INTO control.tool_definitions VALUES ($1, $2, $3, $4, $5, now())",
                    tenant, server, name, seen, b"x" * size,
                )  # fmt: skip
    await admin.close()
    said = (await rest.get(SUMMARY)).json
    empty, full = said["servers"]

    assert ("empty", 0, 0) == (empty["server"], empty["approved"], empty["estimated_tokens"])
    counts = {name: full[name] for name in weights}
    assert {name: count for name, (count, _) in weights.items()} == counts
    assert (3 * 100 + 2 * 11 + 2, 300) == (
        full["estimated_tokens"], full["shown_estimated_tokens"],
    )  # fmt: skip
    assert {**full, "server": None} == {**said["total"], "server": None}


async def test_another_tenants_tools_are_not_counted(rest: Rest, other_key: str) -> None:
    entitle(rest)
    other = (await rest.get("/api/v1/me", key=other_key)).json["tenant"]["id"]
    entitle(rest, other)
    await rest.add_server("mine")

    assert [] == (await rest.get(SUMMARY, key=other_key)).json["servers"]


# Super-admins ---------------------------------------------------------------------------------


async def bypasses(rest: Rest) -> list[dict[str, Any]]:
    return [one for one in await rest.records() if one["type"] == "entitlement.bypass"]


@promise("plans:bypass-on-record")
async def test_a_super_admin_passes_with_a_record_and_a_reason(rest: Rest) -> None:
    entitle(rest, mode="off")
    boss = await operator(rest)
    check(await rest.get(SUMMARY, key=boss.token), 400, "reason_required")
    check(await rest.get(SUMMARY, headers=WHY), 403, "feature_not_included")  # an API key
    assert [] == await bypasses(rest)
    passed = await rest.get(SUMMARY, key=boss.token, headers=WHY)
    [record] = await bypasses(rest)

    assert 200 == passed.status
    assert (boss.id, "context_gate", "off", "GET", f"GET {SUMMARY}", WHY["x-behavry-reason"]) == (
        record["actor"]["id"], record["feature"], record["mode"], record["method"],
        record["route"], record["reason"],
    )  # fmt: skip
    assert passed.headers["x-request-id"] == record["request_id"]
    assert 1 == rest.running.counters.read()["entitlement.bypass"]
    held = rest.running.control.features.of(rest.running.tenant.id)
    assert held is not None
    assert {"off"} == set(held.modes().values())


@promise("plans:bypass-on-record")
async def test_what_is_entitled_is_no_bypass(rest: Rest) -> None:
    entitle(rest)
    boss = await operator(rest)

    assert 200 == (await rest.get(SUMMARY, key=boss.token)).status
    assert [] == await bypasses(rest)


@promise("plans:bypass-on-record")
async def test_as_many_records_as_calls_that_passed_whatever_happens(rest: Rest) -> None:
    """Random people, tenants, routes, modes, and an outbox that fails now and then."""
    chance = random.Random(20260)
    boss, viewer = await operator(rest), await joined(rest, "vera", "viewer")
    made = await rest.post(TENANTS, {"slug": "other", "name": "O"}, key=boss.token)
    other, own = made.json["id"], rest.running.tenant.id
    admin = await asyncpg.connect(rest.database.admin_dsn)
    passed, modes = 0, {}
    for _ in range(60):
        tenant, mode = chance.choice((own, other)), chance.choice(MODES)
        entitle(rest, tenant, mode=mode)
        modes[tenant] = mode
        away = chance.random() < 0.25
        if away:
            await admin.execute("REVOKE INSERT ON control.outbox FROM behavry_control")
        path = SUMMARY if tenant == own else f"{TENANTS}/{tenant}/context-gate/summary"
        path = chance.choice((path, path.replace("context-gate/summary", "users")))
        key = chance.choice((boss.token, viewer.token, rest.key))
        headers = WHY if chance.random() < 0.8 else {}
        answer = await rest.get(path, key=key, headers=headers)
        if away:
            await admin.execute("GRANT INSERT ON control.outbox TO behavry_control")
        if answer.status == 200 and not features.allows(mode, "read"):
            assert (boss.token, False) == (key, away)
            passed += 1
        elif away and key == boss.token and headers and mode == "off":
            check(answer, 503, "dependency_unavailable")
        for which, said in modes.items():
            held = rest.running.control.features.of(which)
            assert held is not None
            assert {said} == set(held.modes().values())
    await admin.close()

    assert passed == len(await bypasses(rest)) > 0
