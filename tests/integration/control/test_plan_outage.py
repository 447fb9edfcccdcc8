"""Entitlements as a process that is killed: every answer of control's stays what it was, through a
restart of control, for as long as it takes; what costs a check, and what a bundle is built from.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from behavry.entitlements.v1 import entitlements_pb2 as wire
from behavry.entitlements.v1 import entitlements_pb2_grpc
from services.common.ids import TenantId
from services.common.rpc.client import dial
from services.common.rpc.peers import Identity
from services.common.settings import load
from services.control.features import checks_of
from services.control.settings import ControlSettings
from tests.fakes.asking import ask_until
from tests.fakes.children import ROOT, end
from tests.fakes.clock import ManualClock
from tests.fakes.postgres import Database
from tests.integration.control.conftest import Rest, opened
from tests.integration.control.escalated import signed_in
from tests.integration.control.people import TENANTS, WHY, operator
from tests.integration.control.planes import fetch, tenant_state, until_serial
from tests.integration.control.plans import LICENSE, SUMMARY, environments
from tests.integration.control.test_problems import check
from tests.promises import promise

DAY_S: Final = 86_400


@pytest.fixture
def env(state: Path, database: Database) -> dict[str, str]:
    return environments(state, database, "development")


@contextmanager
def entitlements(env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "services.entitlements"],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        end(process)


async def license_of(rest: Rest) -> dict[str, Any]:
    answer = await rest.get(LICENSE)
    return answer.json if answer.status == 200 else {"features": [], "stale": True}


async def fresh(rest: Rest) -> dict[str, Any]:
    return await ask_until(lambda: license_of(rest), lambda said: not said["stale"])


def lasting(said: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name not in {"stale", "days_left"}}


@promise("plans:outage-changes-nothing")
async def test_killed_for_a_day_and_control_restarted_nothing_changes(
    env: dict[str, str], database: Database, clock: ManualClock
) -> None:
    settings = load(ControlSettings, env)
    copy = settings.entitlements_copy
    with entitlements(env) as process:
        async with opened(settings, clock, database) as rest:
            boss = await operator(rest)
            await fresh(rest)
            path = f"{TENANTS}/{rest.running.tenant.id}"
            for method, what, body in (
                ("PUT", "plan", {"plan": "professional"}),
                ("POST", "features", {"disable": ["inbound_rules"], "enable": ["saml_sso"]}),
            ):
                answer = await rest.call(
                    method, f"{path}/{what}", body, key=boss.token, headers=WHY
                )
                assert 200 == answer.status, answer.body
            before = await fresh(rest)
            await until_serial(rest, 1)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            clock.advance(DAY_S)
            silent = await license_of(rest)
            assert 200 == (await rest.get(SUMMARY)).status
            boss = await signed_in(rest)  # a session lasts twelve hours
            wanted = {"clear": ["saml_sso"]}
            refused = await rest.post(f"{path}/features", wanted, key=boss.token, headers=WHY)
            check(refused, 503, "dependency_unavailable")
    assert 0o600 == copy.stat().st_mode & 0o777
    async with opened(settings, clock, database) as rest:
        restarted = await license_of(rest)
        gate = (await rest.get(SUMMARY)).status
        agent = await rest.add_agent("built-while-away")

        async def in_bundle() -> bool:
            answer = await fetch(rest)
            return answer.status == 200 and agent["id"] in tenant_state(rest, answer.body)["agents"]

        await ask_until(in_bundle, bool)
        modes = tenant_state(rest, (await fetch(rest)).body)["modes"]
        with entitlements(env):
            recovered = await fresh(rest)

    assert (True, True, False) == (silent["stale"], restarted["stale"], recovered["stale"])
    usage = {"usage": before["usage"]}
    assert lasting(before) == lasting(silent) == lasting(restarted)
    assert lasting(before) == lasting(recovered) | usage  # an agent more
    assert 200 == gate
    assert {one["key"]: one["mode"] for one in before["features"]} == modes
    assert ("frozen", "on") == (modes["inbound_rules"], modes["saml_sso"])


@promise("plans:outage-changes-nothing")
async def test_without_any_word_no_bundle_loses_a_rule(
    env: dict[str, str], database: Database, clock: ManualClock
) -> None:
    """No copy, no entitlements: what was published last is carried over; a tenant that never was in
    a bundle waits, and hinders nobody.
    """
    settings = load(ControlSettings, env)
    with entitlements(env):
        async with opened(settings, clock, database) as rest:
            await fresh(rest)
            await until_serial(rest, 1)
            published = tenant_state(rest, (await fetch(rest)).body)
    settings.entitlements_copy.unlink()
    async with opened(settings, clock, database) as rest:
        boss = await operator(rest)
        check(await rest.get(LICENSE), 503, "dependency_unavailable")
        check(await rest.get(SUMMARY), 403, "feature_not_included")
        made = await rest.post(TENANTS, {"slug": "new", "name": "N"}, key=boss.token)
        assert 201 == made.status
        await rest.add_agent("one")
        serial = await rest.running.publisher.publish()
        rebuilt = tenant_state(rest, (await fetch(rest)).body)

    assert serial >= 2
    assert published["modes"] == rebuilt["modes"]
    assert 17 == len(rebuilt["modes"])
    assert {**published, "agents": {}} == {**rebuilt, "agents": {}}
    assert 1 == len(rebuilt["agents"])


@promise("plans:check-is-free")
async def test_a_check_costs_no_call_and_a_hair_of_one(
    env: dict[str, str], database: Database, clock: ManualClock, state: Path
) -> None:
    settings = load(ControlSettings, env)
    with entitlements(env):
        async with opened(settings, clock, database) as rest:
            await fresh(rest)
            running, tenant = rest.running, TenantId(rest.running.tenant.id)
            features, counted = running.control.features, running.counters
            before = counted.read()["entitlements.calls"], running.control.pool.counters.statements
            took = []
            for _ in range(10_000):
                began = time.perf_counter_ns()
                checks_of({}, features, tenant).refusal("community_library", "write")
                took.append(time.perf_counter_ns() - began)
            after = counted.read()["entitlements.calls"], running.control.pool.counters.statements
            refused = [await spent(rest, path) for path in ("/api/v1/users", SUMMARY)]
            us = Identity("control", state / "peers" / "control.token")
            calls = []
            async with dial(settings.entitlements_address, us) as link:
                stub = entitlements_pb2_grpc.EntitlementsReaderServiceStub(link.channel)
                asked = wire.CheckFeatureRequest(
                    tenant_id=tenant, feature=wire.FEATURE_COMMUNITY_LIBRARY
                )
                for _ in range(200):
                    began = time.perf_counter_ns()
                    await stub.CheckFeature(asked, metadata=link.metadata(), timeout=5)
                    calls.append(time.perf_counter_ns() - began)

    # Control asks the database for its health beside: at most one question a second.
    assert (0, True) == (after[0] - before[0], after[1] - before[1] <= 1)
    ratio = statistics.median(calls) / statistics.median(took)
    sys.stderr.write(f"a check costs 1/{ratio:.0f} of a call\n")
    assert ratio >= 80
    # A refusal by the plan costs what one by the role does, which comes right before it.
    assert ["role_required", "feature_not_included"] == [code for code, _, _ in refused]
    assert [0, 0] == [calls for _, calls, _ in refused]
    assert refused[0][2] == refused[1][2]


async def spent(rest: Rest, path: str) -> tuple[str, int, int]:
    """Of requests by somebody who may look around: what they are told, calls to entitlements and
    statements. The least of a few times: other things go on beside.
    """
    made = await rest.post("/api/v1/api-keys", {"name": path[-9:], "role": "viewer"})
    counters, pool = rest.running.counters, rest.running.control.pool
    told = (await rest.get(path, key=made.json["key"])).json["code"]
    costs = []
    for _ in range(8):
        before = counters.read()["entitlements.calls"], pool.counters.statements
        for _ in range(10):
            assert told == (await rest.get(path, key=made.json["key"])).json["code"]
        after = counters.read()["entitlements.calls"], pool.counters.statements
        costs.append((after[0] - before[0], after[1] - before[1]))
    return told, max(calls for calls, _ in costs), min(statements for _, statements in costs)
