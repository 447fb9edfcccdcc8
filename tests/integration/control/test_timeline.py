"""A paid plan from thirty days before its end to its renewal, on the clock (entitlements.md 10):
what people see, what a plane is told, what is on record; and that nothing which was configured is
another afterwards.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from services.common.ids import TenantId
from services.common.rego.names import policy_package
from services.entitlements.catalog import FEATURE_CATALOG
from tests.fakes.asking import ask_until
from tests.fakes.clock import ManualClock
from tests.fakes.licenses import DAY_S
from tests.fakes.postgres import Database
from tests.integration.control.people import INVITES, USERS, invited
from tests.integration.control.planes import opened, plane_token
from tests.integration.control.plans import LICENSE, SUMMARY, Plans
from tests.integration.control.receivers import HttpReceiver, http_receiver
from tests.integration.control.terms import (
    EDGES,
    NOW_S,
    World,
    activated,
    done,
    edges,
    fresh,
    heard_by,
    notices,
    standing,
    told_to,
    until_edges,
    until_notices,
)
from tests.promises import promise

END: Final = 45
#: Of the fourteen those that are played: each is a step (unit/control/test_license_terms.py).
GRACE_DAYS: Final = (0, 1, 2, 13)
LAPSED: Final = {one.key: one.on_lapse.value for one in FEATURE_CATALOG}
ON: Final = dict.fromkeys(LAPSED, "on")
#: What a tenant has configured, as it is read: compared byte by byte.
CONFIGURED: Final = (
    "/api/v1/policies", "/api/v1/roles", "/api/v1/servers", "/api/v1/agents", USERS,
    "/api/v1/settings/limits", "/api/v1/context-gate/summary",
)  # fmt: skip
POLICY: Final = """package {package}

import rego.v1

verdicts contains {{"result": "deny", "code": "hit", "reason": "r", "obligations": []}} if {{
	input.request.tool == "rm"
}}
"""

pytestmark = pytest.mark.needs_regorus


@dataclass(kw_only=True)
class Played:
    """The installation whose clock goes through the days, and who is told outside."""

    world: World
    plans: Plans
    receiver: HttpReceiver
    #: Seconds from a boundary to the first answer after it.
    took: list[float] = field(default_factory=list)

    async def to(self, days: float, status: str) -> dict[str, Any]:
        self.world.go_to(days)
        began = time.monotonic()  # the world's time, not the test's clock
        said = await standing(self.plans, status)
        self.took.append(time.monotonic() - began)
        return said

    async def configured(self) -> dict[str, bytes]:
        rest = self.plans.rest
        return {path: (await rest.get(path)).body for path in CONFIGURED}

    async def bundle(self, true: Callable[[dict[str, str]], bool]) -> tuple[dict[str, Any], bytes]:
        """(the tenant's modes, everything else that the newest bundle says), modes being as they
        should; signed anew where its time has come.
        """
        rest = self.plans.rest

        async def fetched() -> tuple[dict[str, Any], bytes]:
            await rest.running.publisher.publish()
            headers = {"authorization": f"Bearer {plane_token(rest)}"}
            answer = await rest.get("/api/v1/policy/bundle", key=None, headers=headers)
            if answer.status != 200:
                return {}, b""
            files = opened(answer.body)
            state = json.loads(files.pop("data.json"))["behavry"]["state"]
            modes = state["tenants"][self.plans.tenant].pop("modes")
            del state["serial"], files[".manifest"], files[".signatures.json"]
            rest_of_it = {name: body.decode() for name, body in files.items()}
            return modes, json.dumps([state, rest_of_it], sort_keys=True).encode()

        return await ask_until(fetched, lambda found: true(found[0]))


@pytest.fixture
async def played(state: Path, database: Database, clock: ManualClock) -> AsyncIterator[Played]:
    world = World(state=state, database=database, clock=clock)
    async with world.entitlements(), world.control() as plans, http_receiver() as receiver:
        await fresh(plans)
        await told_to(plans.rest, receiver)
        token = plans.token(tenant=plans.tenant, plan="enterprise", exp=NOW_S + END * DAY_S)
        await activated(plans, token)
        await configure(plans)
        yield Played(world=world, plans=plans, receiver=receiver)


async def configure(plans: Plans) -> None:
    rest = plans.rest
    await rest.add_role("developer", "git:read")
    await rest.add_agent("one", roles=["developer"])
    await rest.add_server("time")
    package = policy_package(TenantId(plans.tenant), "guard")
    tests = [{"name": "rm", "input": {"request": {"tool": "rm"}}, "expect": "deny"}]
    body = {"key": "guard", "source": POLICY.format(package=package), "tests": tests}
    policy = (await rest.post("/api/v1/policies", body)).json
    key = {"idempotency-key": str(uuid4())}
    enforced = await rest.post(f"/api/v1/policies/{policy['id']}:enforce", headers=key)
    assert 200 == enforced.status, enforced.body
    assert 201 == (await invited(rest, "ann@corp.example", "analyst")).status


async def writes(plans: Plans, name: str) -> int:
    """Something that needs a feature: inviting a person."""
    return (await invited(plans.rest, f"{name}@corp.example")).status


@promise("plans:timeline")
async def test_a_term_from_thirty_days_before_its_end_to_its_renewal(
    played: Played, record_property: Callable[[str, object], None]
) -> None:
    plans, rest = played.plans, played.plans.rest
    heard = heard_by(plans)
    modes, enforced = await played.bundle(bool)
    before = await played.configured()
    assert ON == modes

    # -30 .. -16: EXPIRING, notices; as configured
    said = await played.to(END - 30, "EXPIRING")
    assert (30, True) == (said["days_left"], all(one["allowed"] for one in said["features"]))
    await until_notices(played.receiver, 1)
    # -15 .. 0: the banner's days
    for days in (15, 7, 1):
        played.world.go_to(END - days)
        assert days == (await plans.license())["days_left"]
        await until_notices(played.receiver, 2 + (15, 7, 1).index(days))
    assert (modes, enforced) == await played.bundle(bool)
    assert 4 == len(notices(played.receiver))
    # 0 .. 14: GRACE, daily notice, everything writable; as configured
    for number, day in enumerate(GRACE_DAYS):
        said = await played.to(END + day, "GRACE")
        assert {"GRACE"} == {one["source"] for one in said["features"]}
        await until_notices(played.receiver, 5 + number)
    assert 201 == await writes(plans, "in-grace")
    before = await played.configured()
    assert (ON, enforced) == await played.bundle(bool)
    # 14: EXPIRED, all modes in one revision, a record per feature; a bundle with the lapse modes
    said = await played.to(END + 14, "EXPIRED")
    assert LAPSED == {one["key"]: one["mode"] for one in said["features"]}
    assert (LAPSED, enforced) == await played.bundle(LAPSED.__eq__)
    await until_notices(played.receiver, 5 + len(GRACE_DAYS))
    changed = [one for one in await rest.records() if one["type"] == "entitlement.lapsed"]
    assert sorted(LAPSED) == sorted(one["feature"] for one in changed)
    assert {said["revision"]} == {one["revision"] for one in changed}
    # later: reads, permitted deletes, nothing removed; unchanged
    await played.to(END + 60, "EXPIRED")
    assert 403 == await writes(plans, "too-late")
    assert 200 == (await rest.get(SUMMARY)).status
    assert before == await played.configured()
    assert (LAPSED, enforced) == await played.bundle(bool)
    (ann, *_) = (await rest.get(INVITES)).json["items"]
    assert 204 == (await rest.call("DELETE", f"{INVITES}/{ann['id']}")).status
    # renewal: on again in one revision, editable as it was; a new bundle
    renewed = plans.token(
        tenant=plans.tenant, plan="enterprise", jti="licence-2", exp=NOW_S + 500 * DAY_S
    )
    await activated(plans, renewed)
    assert (ON, enforced) == await played.bundle(ON.__eq__)
    assert before == await played.configured()
    assert 201 == await writes(plans, "renewed")

    assert list(EDGES) == [one["type"] for one in await edges(rest)]
    assert ["license.expiring"] * 4 + ["license.grace"] * len(GRACE_DAYS) + ["license.lapsed"] == [
        one["event"] for one in notices(played.receiver)
    ]
    seen = [held.modes() for held in heard]
    turns = [now for was, now in zip([ON, *seen], seen, strict=False) if was != now]
    assert [LAPSED, ON] == turns
    record_property("slowest_change_s", max(played.took))
    assert sorted(played.took)[len(played.took) // 2] < 2


@promise("plans:timeline")
async def test_a_trial_has_no_grace_and_a_downgrade_takes_effect_at_once(
    state: Path, database: Database, clock: ManualClock
) -> None:
    world = World(state=state, database=database, clock=clock)
    async with world.entitlements(), world.control() as plans:
        await fresh(plans)
        heard = heard_by(plans)
        await done(lambda: plans.plan(plan="enterprise"))
        down = (await done(lambda: plans.plan(plan="professional"))).json
        enterprise = {one.key for one in FEATURE_CATALOG if one.plan == "enterprise"}
        assert LAPSED | dict.fromkeys(LAPSED.keys() - enterprise, "on") == {
            one["key"]: one["mode"] for one in down["features"]
        }
        ends = await done(lambda: plans.plan(plan="trial", expires_at="2026-01-11T00:00:00Z"))
        assert ends.json["expires_at"] == ends.json["grace_ends_at"]
        world.go_to(10)
        lapsed = await standing(plans, "EXPIRED")
        *_, record = await until_edges(plans.rest, 2)

    assert LAPSED == {one["key"]: one["mode"] for one in lapsed["features"]}
    assert "license.lapsed" == record["type"]
    assert "GRACE" not in {held.status for held in heard}


@promise("plans:clock-revives-nothing")
async def test_a_clock_set_back_and_forward_over_each_boundary_revives_nothing(
    played: Played,
) -> None:
    """The wall clock alone jumps; what is told, recorded and published stays with the latest that
    it has been.
    """
    world, plans = played.world, played.plans
    wall_ns, features = world.clock.wall_ns, plans.rest.running.control.features
    heard, allowed = heard_by(plans), 17
    for days, status in ((END - 30, "EXPIRING"), (END, "GRACE"), (END + 14, "EXPIRED")):
        world.clock.set_wall(wall_ns + days * DAY_S * 10**9)
        began = time.monotonic()
        there = await standing(plans, status)
        played.took.append(time.monotonic() - began)
        now_allowed = sum(one["allowed"] for one in there["features"])
        assert now_allowed <= allowed
        allowed = now_allowed
        recorded = await until_edges(plans.rest, 1 + EDGES.index(_event(status)))
        world.clock.set_wall(wall_ns)
        suspect = "EXPIRED" if status == "EXPIRED" else "CLOCK_SUSPECT"
        back = await standing(plans, suspect)
        assert there["features"] == back["features"]
        assert recorded == await edges(plans.rest)
    assert "EXPIRED" == (await plans.license())["status"]
    held = features.of(plans.rest.running.tenant.id)
    assert held is not None
    revisions = [one.revision for one in heard]

    assert LAPSED == held.modes()
    assert sorted(revisions) == revisions
    assert sorted(played.took)[1] < 2
    assert 200 == (await plans.rest.get(LICENSE)).status


def _event(status: str) -> str:
    return {"EXPIRING": EDGES[0], "GRACE": EDGES[1], "EXPIRED": EDGES[2]}[status]
