"""What holds of every route, also of one that is added tomorrow: a POST is done once per key, a
list holds still while it grows, a GET costs two statements.

The routes come from the published description; what is sent to them, from samples.py.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final
from uuid import uuid4

import asyncpg
import pytest

from services.common.postgres.connection import Counters
from tests.altered import altered
from tests.fakes.gateway import until_true
from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.people import entitle, operator
from tests.integration.control.planes import linked
from tests.integration.control.receivers import http_receiver
from tests.integration.control.samples import (
    LISTS,
    NOT_WALKED,
    SAMPLES,
    WITHOUT_SAMPLE,
    Sample,
    World,
)
from tests.integration.control.test_problems import Operation, check, operations
from tests.promises import promise

pytestmark = pytest.mark.needs_regorus

#: The keys themselves, and what goes out or ages beside requests.
NOT_COUNTED: Final = {"idempotency", "schema_migrations", "bundles", "license_terms"}
#: control.md 2.1.
MANDATORY: Final = {
    "approve_escalation", "deny_escalation", "roll_policy_back", "redeliver_notification",
    "create_invite", "enforce_policy", "shadow_policy",
}  # fmt: skip
#: Answered by entitlements or audit, or of a job that only audit starts.
NEIGHBOURS_SAY: Final = {
    "get_license", "list_plan_features", "list_traces", "get_trace", "list_audit_heads", "get_job",
}  # fmt: skip
#: The credential, and the rows. BEGIN, the tenant's name and COMMIT are beside them.
STATEMENTS: Final = 2
OF_TRANSACTION: Final = 3


@pytest.fixture
async def world(rest: Rest) -> AsyncIterator[World]:
    admin = await asyncpg.connect(rest.database.admin_dsn)
    async with http_receiver() as receiver, linked(rest) as plane:
        entitle(rest)
        person = await operator(rest)
        yield World(rest=rest, person=person, plane=plane, receiver=receiver.url, admin=admin)
    await admin.close()


async def rows(world: World) -> Counter[str]:
    """How many each table has. Every act leaves a record, so none goes unseen."""
    named = await world.admin.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'control' ORDER BY 1"
    )
    names = [row["tablename"] for row in named if row["tablename"] not in NOT_COUNTED]
    counts = ", ".join(f"(SELECT count(*) FROM control.{name}) AS {name}" for name in names)
    return Counter(dict(await world.admin.fetchrow(f"SELECT {counts}") or {}))


def grown(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


async def send(world: World, one: Operation, sample: Sample, key: str | None) -> Answered:
    """By the admin's API key; by the admin where it takes a person."""
    headers = {} if key is None else {"idempotency-key": key}
    who = world.person.token if one.human else ""
    return await world.rest.post(sample.path, sample.body, key=who, headers=headers)


async def posts(rest: Rest) -> list[Operation]:
    return [one for one in await operations(rest) if one.method == "POST"]


async def test_each_route_has_a_sample_or_a_reason(rest: Rest) -> None:
    described = (await rest.get("/openapi.json", key=None)).json["paths"].values()
    named = {methods["post"]["operationId"] for methods in described if "post" in methods}

    assert named == set(SAMPLES) | set(WITHOUT_SAMPLE)
    assert not set(SAMPLES) & set(WITHOUT_SAMPLE)
    assert set(await lists(rest)) == set(LISTS) | set(NOT_WALKED)


@promise("api:done-once")
async def test_each_post_is_done_once_per_key(world: World) -> None:
    """The same again, five at once, another body: one effect, and the first answer to each."""
    for one in await posts(world.rest):
        if one.name not in SAMPLES:
            continue
        sample, key = await SAMPLES[one.name](world), str(uuid4())
        before = await rows(world)
        first = await send(world, one, sample, key)
        assert first.status in {200, 201, 202, 204}, (one.name, first.body)
        done = await rows(world)
        again = await send(world, one, sample, key)
        assert (first.status, "true") == (again.status, again.headers["idempotency-replayed"])
        assert first.json == (again.json or {}) | {n: first.json[n] for n in sample.secrets} or (
            first.json is again.json is None
        ), one.name
        assert all(again.json[name] is None for name in sample.secrets), one.name
        assert done == await rows(world), one.name

        other = Sample(path=sample.path, body={**(sample.body or {}), "other": 1})
        check(await send(world, one, other, key), 422, "idempotency_mismatch")
        elsewhere = Sample(path=f"{sample.path}?x=1", body=sample.body)
        check(await send(world, one, elsewhere, key), 422, "idempotency_mismatch")
        assert done == await rows(world), one.name

        await many_at_once(world, one, grown(before, done))


async def many_at_once(world: World, one: Operation, effect: dict[str, int]) -> None:
    sample, key = await SAMPLES[one.name](world), str(uuid4())
    before = await rows(world)
    answers = await asyncio.gather(*(send(world, one, sample, key) for _ in range(5)))
    assert {a.status for a in answers} <= {200, 201, 202, 204, 409}, one.name
    for answer in answers:
        if answer.status == 409:
            check(answer, 409, "idempotency_in_flight")
    assert {409} != {a.status for a in answers}, one.name
    assert effect == grown(before, await rows(world)), one.name
    told = [a for a in answers if a.status != 409 and "idempotency-replayed" not in a.headers]
    assert 1 == len(told), one.name


async def test_where_a_key_is_mandatory_nothing_happens_without_one(world: World) -> None:
    keyed = [one for one in await posts(world.rest) if one.keyed and one.name in SAMPLES]
    for one in keyed:
        sample = await SAMPLES[one.name](world)
        before = await rows(world)
        check(await send(world, one, sample, None), 400, "idempotency_key_required")
        assert before == await rows(world), one.name

    assert MANDATORY <= {one.name for one in keyed}


async def test_a_session_that_ends_with_its_request_ends_once(world: World) -> None:
    rest, person, key = world.rest, world.person, {"idempotency-key": "k1"}
    before = await rows(world)
    said = {"password": person.password}
    path = "/api/v1/auth/step-up"
    answers = await asyncio.gather(
        *(rest.post(path, said, key=person.token, headers=key) for _ in range(5))
    )
    done = [a for a in answers if a.status == 200]
    # Whoever was let in before the session ended, and came second, is told what the first was told.
    (first,) = [a for a in done if "idempotency-replayed" not in a.headers]
    assert {None} >= {a.json["token"] for a in done if a is not first}
    again = await rest.post(path, said, key=first.json["token"], headers=key)
    after = await rows(world)

    assert {a.status for a in answers} <= {200, 401, 409}
    assert (200, None, "true") == (
        again.status, again.json["token"], again.headers["idempotency-replayed"]
    )  # fmt: skip
    assert 1 == grown(before, after)["outbox"]

    out = await asyncio.gather(
        *(rest.post("/api/v1/auth/logout", key=first.json["token"], headers=key) for _ in range(5))
    )
    assert {204} < {a.status for a in out} | {401} <= {204, 401, 409}
    assert 1 == grown(after, await rows(world))["outbox"]


# Lists ----------------------------------------------------------------------------------------


async def lists(rest: Rest) -> dict[str, list[str]]:
    """The parameters of each GET that has pages, by operation."""
    paths = (await rest.get("/openapi.json", key=None)).json["paths"].values()
    found = {}
    for one in (methods["get"] for methods in paths if "get" in methods):
        names = [parameter["name"] for parameter in one.get("parameters", ())]
        if "page_size" in names:
            found[one["operationId"]] = names
    return found


@promise("api:pages-hold-still")
async def test_each_list_holds_still_while_it_grows(world: World) -> None:
    """Rows come before, between and behind those that were there, after each page."""
    for name, listed in LISTS.items():
        path = await listed.path(world)
        for letter in "bdfhj":
            await listed.add(world, f"{letter}-was-there")
        there = await keys_of(world, f"{path}?page_size=500", listed.key)
        seen, token, letters = [], "", iter("acegikmoqs")
        while True:
            page = (await world.rest.get(f"{path}?page_size=2&page_token={token}")).json
            seen += [str(item[listed.key]) for item in page["items"]]
            token = page["next_page_token"]
            if not token:
                break
            if came := next(letters, ""):
                await listed.add(world, f"{came}-came")

        assert not [key for key, times in Counter(seen).items() if times > 1], name
        assert not set(there) - set(seen), name
        assert there == [key for key in seen if key in set(there)], name


async def keys_of(world: World, path: str, key: str) -> list[str]:
    return [str(item[key]) for item in (await world.rest.get(path)).json["items"]]


@promise("api:pages-hold-still")
async def test_a_page_token_is_worth_nothing_elsewhere(world: World, other_key: str) -> None:
    described, paths, tokens = await lists(world.rest), {"list_traces": "/api/v1/traces"}, {}
    for name, listed in LISTS.items():
        paths[name] = path = await listed.path(world)
        for letter in "xyz":
            await listed.add(world, f"{letter}-row")
        tokens[name] = (await world.rest.get(f"{path}?page_size=1")).json["next_page_token"]

    for name, path in paths.items():
        own = tokens.get(name, "A" * 43)
        wrong = [token for of, token in tokens.items() if of != name]
        wrong += [altered(own), own[:-2], f"{own}AAAA", "x", "%00", "%C3%A9"]
        for token in wrong:
            answer = await world.rest.get(f"{path}?page_token={token}")
            check(answer, 400, "invalid_page_token")
        if "filter" in described[name]:
            answer = await world.rest.get(f"{path}?page_token={own}&filter=tool:x")
            check(answer, 400, "invalid_page_token")
        answer = await world.rest.get(f"{path}?page_token={own}", key=other_key)
        assert (answer.status, answer.json["code"]) in {
            (400, "invalid_page_token"), (404, "not_found"), (403, "feature_not_included"),
        }, name  # fmt: skip
        if name in tokens:
            assert 200 == (await world.rest.get(f"{path}?page_token={own}")).status, name


# What a GET costs -----------------------------------------------------------------------------


@promise("api:two-statements")
async def test_each_get_costs_two_statements(world: World) -> None:
    ids = {
        "agent_id": await world.agent(),
        "switch_id": await world.kill_switch(),
        "user_id": await world.user(),
        "destination_id": await world.destination("told"),
        "escalation_id": await world.escalation(),
        "policy_id": (await world.policy())["id"],
        "name": "reader",
        "server": "time",
    }
    await world.rest.add_role("reader")
    await world.rest.add_server("time")
    counters = world.rest.running.control.pool.counters
    costs, answered = {}, set()
    for one in await operations(world.rest):
        if one.method != "GET" or one.role is None or "{tenant_id}" in one.path:
            continue  # a super-admin's reason is kept before anything is read
        path = one.path.format_map(Counted(ids))
        key = world.person.token if one.human else ""
        sees = one.name == "list_tenants"
        get = partial(world.rest.get, path, key=key, sees_neighbour=sees)
        costs[one.name], status = await _cheapest(get, counters)
        if status == 200:
            answered.add(one.name)

    assert {} == {n: c for n, c in costs.items() if c > STATEMENTS + OF_TRANSACTION}
    assert set(costs) - answered <= NEIGHBOURS_SAY


async def _cheapest(get: Callable[[], Awaitable[Answered]], counters: Counters) -> tuple[int, int]:
    """Statements and status of the cheapest of many tries: what runs beside requests is counted
    with them.
    """
    tries: list[tuple[int, int]] = []

    async def is_cheap() -> bool:
        before = counters.statements
        status = (await get()).status
        tries.append((counters.statements - before, status))
        return tries[-1][0] <= STATEMENTS + OF_TRANSACTION

    with suppress(TimeoutError):
        await until_true(is_cheap)
    return min(tries)


async def test_an_answer_waits_for_no_acknowledgement_of_its_head(world: World) -> None:
    """A client's kernel delays those by 40 ms; the quickest of ten answers knows nothing of it."""
    took = []
    for _ in range(10):
        began = time.monotonic()
        await world.rest.get("/api/v1/me")
        took.append(time.monotonic() - began)

    assert min(took) < 0.02


class Counted(dict[str, str]):
    """Ids by parameter; of what is not there, one that nothing has."""

    def __missing__(self, name: str) -> str:
        return "00000000-0000-7000-8000-000000000000"
