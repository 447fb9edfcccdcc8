"""Two processes of control over one database: what one of them is told about a person the other one
knows with the next request (C-ROLE).
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest

from services.control.settings import ControlSettings
from tests.fakes.clock import ManualClock
from tests.fakes.postgres import Database
from tests.integration.control.conftest import Answered, Rest, opened
from tests.integration.control.escalated import asked, decided, joined, run
from tests.integration.control.people import INVITES, USERS, entitle, invited
from tests.integration.control.planes import linked, until_serial
from tests.integration.control.samples import KILL
from tests.integration.control.test_problems import check
from tests.promises import promise

LOWER = ("viewer", "analyst", "policy_author")


@pytest.fixture
async def replica(
    rest: Rest, settings: ControlSettings, clock: ManualClock, control_database: Database
) -> AsyncIterator[Rest]:
    """A second process on the same database."""
    entitle(rest)
    async with opened(settings, clock, control_database) as running:
        entitle(running)
        yield running


async def act(rest: Rest, user: str, verb: str, key: str = "") -> Answered:
    """`verb`: a role, or what ends them."""
    if verb == "delete":
        return await rest.call("DELETE", f"{USERS}/{user}", key=key)
    if verb == "deactivate":
        return await rest.post(f"{USERS}/{user}:deactivate", key=key)
    return await rest.call("PATCH", f"{USERS}/{user}", {"role": verb}, key=key)


async def admins(rest: Rest) -> int:
    connection = await asyncpg.connect(rest.database.admin_dsn)
    try:
        found = await connection.fetchval(
            "SELECT count(*) FROM control.users"
            " WHERE role = 'admin' AND status = 'active' AND tenant_id = $1",
            rest.running.tenant.id,
        )
    finally:
        await connection.close()
    return int(found)


@promise("people:role-counts-at-once")
async def test_what_one_replica_was_told_the_other_one_knows_with_the_next_request(
    rest: Rest, replica: Rest
) -> None:
    """Of somebody's session and of the key that they made; told to either one."""
    places = ((rest, replica), (replica, rest))
    for verb, (there, elsewhere) in itertools.product([*LOWER, "deactivate", "delete"], places):
        where = "here" if there is rest else "there"
        anna = await joined(there, f"anna-{verb}-{where}", "admin")
        ben = await joined(there, f"ben-{verb}-{where}")
        body = {"name": f"{verb}-{where}", "role": "admin"}
        key = (await there.post("/api/v1/api-keys", body, key=anna.token)).json["key"]
        for one in (there, elsewhere):
            for credential in (anna.token, key):
                assert 200 == (await one.get(USERS, key=credential)).status
        assert (await act(there, anna.id, verb)).status in {200, 204}

        refused = 403 if verb in LOWER else 401
        for one in (elsewhere, there):
            seen = await one.get(USERS, key=anna.token)
            granted = await act(one, ben.id, "admin", anna.token)
            assert [refused, refused] == [seen.status, granted.status]
            check(await one.get(USERS, key=key), 401, "unauthenticated")
        assert "analyst" == (await rest.get(f"{USERS}/{ben.id}")).json["role"]
        rest.clock.advance(61)  # sign-ins are limited


@promise("people:role-counts-at-once")
async def test_nobody_grants_above_themselves_at_either_replica(rest: Rest, replica: Rest) -> None:
    """An admin's own key of a lower role is no admin; who was an admin a moment ago neither."""
    anna = await joined(rest, "anna", "admin")
    me = (await rest.get("/api/v1/me", key=anna.token)).json["id"]
    assert 200 == (await act(rest, anna.id, "policy_author")).status
    for one in (replica, rest):
        check(await act(one, me, "admin", anna.token), 403, "role_required")
        check(await invited(one, "x@example.org", "admin", key=anna.token), 403, "role_required")
        body = {"name": "mine", "role": "admin"}
        check(await one.post("/api/v1/api-keys", body, key=anna.token), 403, "role_required")
    made = await rest.post("/api/v1/api-keys", {"name": "low", "role": "policy_author"})
    for one in (replica, rest):
        check(await act(one, me, "admin", made.json["key"]), 403, "role_required")
    assert [] == (await rest.get(INVITES)).json["items"]

    assert 201 == (await invited(replica, "x@example.org", "admin")).status


@promise("people:last-admin-stays")
async def test_of_two_admins_who_act_on_each_other_at_once_one_stays(
    rest: Rest, replica: Rest
) -> None:
    """However each of them goes about it, through another process each."""
    ways = ("viewer", "deactivate", "delete")
    for mine, theirs in itertools.product(ways, repeat=2):
        anna, ben = [await joined(rest, f"{n}-{mine}-{theirs}", "admin") for n in ("anna", "ben")]
        await run(
            rest,
            "UPDATE control.users SET role = 'viewer' WHERE tenant_id = $1 AND id <> ALL($2)",
            rest.running.tenant.id, [anna.id, ben.id],
        )  # fmt: skip
        answers = await asyncio.gather(
            act(rest, ben.id, mine, anna.token), act(replica, anna.id, theirs, ben.token)
        )
        first, second = sorted(answers, key=lambda answer: answer.status)
        assert first.status in {200, 204}, (mine, theirs)
        # Whoever was refused would have taken the last one away, or is no admin any more.
        assert second.status in {401, 403, 409}, (mine, theirs)
        if second.status == 409:
            check(second, 409, "last_admin")
        assert 1 == await admins(rest), (mine, theirs)
        rest.clock.advance(61)  # sign-ins are limited


@promise("people:leave-at-once")
async def test_an_approval_ends_at_its_plane_whichever_replica_was_told(
    rest: Rest, replica: Rest
) -> None:
    """No clock moves here: it goes out because it was committed, not because somebody looked."""
    took = dict[str, float]()
    replicas = {"here": rest, "elsewhere": replica}
    async with linked(rest) as plane:
        for verb, where in itertools.product(("viewer", "deactivate", "delete"), replicas):
            anna = await joined(rest, f"anna-{verb}-{where}", "admin")
            escalation = await asked(rest, plane)
            assert 200 == (await anna.act(escalation, "approve")).status
            given = decided(rest, await plane.next("escalation_decision"))
            began = time.monotonic()
            assert (await act(replicas[where], anna.id, verb)).status in {200, 204}
            ended = decided(rest, await plane.next("escalation_decision"))
            took[f"{verb}, {where}"] = round(time.monotonic() - began, 3)

            assert ("approve", "revoke", escalation) == (
                given["verdict"], ended["verdict"], ended["escalation"],
            )  # fmt: skip
    sys.stderr.write(f"until the plane heard, in s: {took}\n")


@promise("people:leave-at-once")
async def test_a_stop_and_a_suspension_reach_a_plane_whichever_replica_was_told(
    rest: Rest, replica: Rest
) -> None:
    """A bundle that one process built is told of by the other one, too; no clock moves here."""
    async with linked(rest) as plane:  # at either one: they share an address
        for one, number in itertools.product((rest, replica), range(2)):
            name = f"walker-{number}-{id(one)}"
            agent = (await one.post("/api/v1/agents", {"name": name})).json["id"]
            stop = {"scope": "agent", "subject": agent, "reason": "it went astray"}
            for path, body in ((KILL, stop), (f"/api/v1/agents/{agent}:suspend", {})):
                had = one.running.control.signals.serial
                assert (await one.post(path, body)).status in {200, 201}
                await until_serial(one, had + 1)
                newest = one.running.control.signals.serial
                while (await plane.next("bundle_notify")).serial < newest:
                    pass
