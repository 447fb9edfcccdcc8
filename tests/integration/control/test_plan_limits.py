"""What a licence limits, at, above and lowered below what is used (E22): creation is refused on
each way that there is to create; nothing that exists is affected.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from behavry.entitlements.v1 import entitlements_pb2 as wire
from behavry.entitlements.v1 import entitlements_pb2_grpc
from services.common.rpc.client import dial
from services.common.rpc.peers import Identity
from tests.fakes.clock import ManualClock
from tests.fakes.postgres import Database
from tests.integration.control.conftest import Answered
from tests.integration.control.people import TENANTS, WHY
from tests.integration.control.planes import fetch, until_serial
from tests.integration.control.plans import Plans, beside_entitlements
from tests.integration.control.test_problems import check
from tests.promises import promise


@pytest.fixture
async def plans(state: Path, database: Database, clock: ManualClock) -> AsyncIterator[Plans]:
    async with beside_entitlements(state, database, clock) as beside:
        assert 200 == (await beside.plan(plan="professional")).status
        yield beside


def told(answer: Answered) -> tuple[Any, ...]:
    check(answer, 403, "limit_exceeded")
    return tuple(answer.json[name] for name in ("limit", "used", "allowed"))


async def limit(plans: Plans, number: int, **limits: int) -> dict[str, Any]:
    """A licence that takes the place of the one before."""
    token = plans.token(jti=f"l{number}", iat=plans.now_s + number, limits=limits)
    answer = await plans.activate(token)
    assert 200 == answer.status, answer.body
    said: dict[str, Any] = answer.json
    return said


async def enrolled(plans: Plans, name: str) -> Answered:
    made = await plans.rest.post("/api/v1/enrollment-tokens", {"label": name})
    assert 201 == made.status, made.body
    body = {"token": made.json["token"], "name": name}
    return await plans.rest.post("/api/v1/enroll", body, key=None)


@promise("plans:limits-on-creation")
async def test_agents_at_above_and_lowered_below_the_limit(plans: Plans) -> None:
    rest = plans.rest
    await limit(plans, 1, agents=3)
    made = [await rest.add_agent(name) for name in "ab"]
    # One is left: of two that come at once, one is made.
    both = await asyncio.gather(
        *(rest.post("/api/v1/agents", {"name": name}) for name in ("c", "d"))
    )
    assert [201, 403] == sorted(one.status for one in both)
    made += [one.json for one in both if one.status == 201]

    assert ("agents", 3, 3) == told(await rest.post("/api/v1/agents", {"name": "e"}))  # at
    assert ("agents", 3, 3) == told(await enrolled(plans, "e"))
    at = await plans.license()
    lowered = await limit(plans, 2, agents=1)
    assert ("agents", 3, 1) == told(await rest.post("/api/v1/agents", {"name": "e"}))
    assert ("agents", 3, 1) == told(await enrolled(plans, "e"))

    assert ("VALID", "LIMIT_EXCEEDED") == (at["status"], lowered["status"])
    assert at["features"] == lowered["features"]
    for agent in made:  # 0 existing ones affected: read, changed, signed in
        path = f"/api/v1/agents/{agent['id']}"
        assert "active" == (await rest.get(path)).json["status"]
        said = {"client_id": agent["client_id"], "client_secret": agent["client_secret"]}
        assert 200 == (await rest.token(**said)).status
        assert 201 == (await rest.post(f"{path}:rotate", {})).status

    raised = await limit(plans, 3, agents=4)
    assert 201 == (await enrolled(plans, "e")).status  # below
    assert ("VALID", ("agents", 4, 4)) == (
        raised["status"], told(await rest.post("/api/v1/agents", {"name": "f"})),
    )  # fmt: skip


@promise("plans:limits-on-creation")
async def test_planes_above_the_limit_work_on(plans: Plans) -> None:
    """There is one, and nothing creates another yet."""
    rest = plans.rest
    await until_serial(rest, 1)
    before = await fetch(rest)
    said = await limit(plans, 1, data_planes=0)

    assert ("LIMIT_EXCEEDED", 1, 0) == (
        said["status"], said["usage"]["data_planes"], said["limits"]["data_planes"],
    )  # fmt: skip
    assert 200 == before.status == (await fetch(rest)).status
    made = await rest.add_agent("made-meanwhile")
    secrets = {"client_id": made["client_id"], "client_secret": made["client_secret"]}
    assert 200 == (await rest.token(**secrets)).status


async def activated_by_the_host(plans: Plans, token: str) -> None:
    """For the whole installation, past control."""
    us = Identity("control", plans.rest.state / "peers" / "control.token")
    cause = wire.Cause(actor="host", reason="a test", request_id="lowered")
    request = wire.ActivateLicenseRequest(token=token, cause=cause)
    async with dial(plans.rest.running.control.settings.entitlements_address, us) as link:
        stub = entitlements_pb2_grpc.EntitlementsAdminServiceStub(link.channel)
        await stub.ActivateLicense(request, metadata=link.metadata(), timeout=5)


@promise("plans:limits-on-creation")
async def test_tenants_at_above_and_lowered_below_the_limit(plans: Plans) -> None:
    rest, boss = plans.rest, plans.boss

    async def make(slug: str) -> Answered:
        body = {"slug": slug, "name": slug.title()}
        return await rest.post(TENANTS, body, key=boss.token, headers=WHY)

    await limit(plans, 1, tenants=2)
    both = await asyncio.gather(make("second"), make("third"))
    assert [201, 403] == sorted(one.status for one in both)
    [second] = [one.json["id"] for one in both if one.status == 201]

    assert ("tenants", 2, 2) == told(await make("fourth"))  # at
    assert "VALID" == (await plans.license())["status"]
    fewer = plans.token(jti="fewer", iat=plans.now_s + 2, limits={"tenants": 1})
    check(await plans.activate(fewer), 422, "license_subject_mismatch")  # one speaks not for all
    await activated_by_the_host(plans, fewer)
    await plans.until(lambda said: said["status"] == "LIMIT_EXCEEDED")
    assert ("tenants", 2, 1) == told(await make("fourth"))  # lowered below

    for path in (f"{TENANTS}/{second}", f"{TENANTS}/{second}/agents"):
        assert 200 == (await rest.get(path, key=boss.token, headers=WHY)).status
    agents = f"{TENANTS}/{second}/agents"
    assert 201 == (await rest.post(agents, {"name": "x"}, key=boss.token, headers=WHY)).status
