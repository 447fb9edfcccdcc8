"""The document of limits: read with its tag, written by who has read it, carried by the bundle."""

from typing import Any

from services.control.tenant_limits import SHIPPED
from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.planes import plan
from tests.integration.control.test_problems import key_of
from tests.integration.control.test_servers import see
from tests.integration.control.test_stops import next_state

LIMITS = "/api/v1/settings/limits"


def changed(**rates: Any) -> dict[str, Any]:
    return {**SHIPPED, "rates": {**SHIPPED["rates"], **rates}}


async def put(rest: Rest, document: Any, tag: str | None = '"0"', key: str = "") -> Answered:
    return await rest.put(LIMITS, document, key=key, headers={"if-match": tag} if tag else None)


async def test_a_tenant_begins_with_the_shipped_limits(rest: Rest) -> None:
    plan(rest)
    answer = await rest.get(LIMITS)
    state = await next_state(rest)

    assert (200, '"0"', SHIPPED) == (answer.status, answer.headers["etag"], answer.json)
    assert SHIPPED["rates"] == state["limits"]
    assert SHIPPED["escalations"] == state["escalations"]


async def test_new_limits_are_in_the_next_bundle_and_in_its_policy_revision(rest: Rest) -> None:
    plan(rest)
    await rest.add_server("time")
    before = await next_state(rest)
    document = changed(agent_per_minute=60, tools={"time": {"now": 6}})
    answer = await put(rest, document)
    after = await next_state(rest)

    assert (200, '"1"', document) == (answer.status, answer.headers["etag"], answer.json)
    assert document == (await rest.get(LIMITS)).json
    assert document["rates"] == after["limits"]
    assert before["policy_revision"] != after["policy_revision"]
    [record] = [r for r in await rest.records() if r["type"] == "admin.limits.updated"]
    assert [
        {"field": "rates.agent_per_minute", "old": 300, "new": 60},
        {"field": "rates.tools", "old": {}, "new": {"time": {"now": 6}}},
    ] == record["changes"]


async def test_times_of_escalations_supersede_no_approval(rest: Rest) -> None:
    """They decide nothing about a call."""
    plan(rest)
    before = await next_state(rest)
    longer = {**SHIPPED["escalations"], "execute_seconds": 1800}
    assert 200 == (await put(rest, {**SHIPPED, "escalations": longer})).status
    after = await next_state(rest)

    assert 1800 == after["escalations"]["execute_seconds"]
    assert before["policy_revision"] == after["policy_revision"]


async def test_a_tool_seen_for_the_first_time_supersedes_none_and_a_classified_one_does(
    rest: Rest,
) -> None:
    plan(rest)
    await rest.add_server("time")
    revisions = [(await next_state(rest))["policy_revision"]]
    await see(rest, "now")
    revisions.append((await next_state(rest))["policy_revision"])
    await rest.put("/api/v1/servers/time/tools/now", {"action": "read"})
    revisions.append((await next_state(rest))["policy_revision"])

    assert revisions[0] == revisions[1]
    assert revisions[1] != revisions[2]


async def test_who_has_not_read_it_does_not_write_it(rest: Rest) -> None:
    blind = await put(rest, SHIPPED, tag=None)
    early = await put(rest, SHIPPED, tag='"1"')
    first = await put(rest, changed(agent_burst=10))
    stale = await put(rest, SHIPPED)
    again = await put(rest, changed(agent_burst=20), tag=stale.headers["etag"])

    assert [428, 412, 200, 412, 200] == [
        answer.status for answer in (blind, early, first, stale, again)
    ]
    assert ["precondition_required", "stale_revision"] == [
        answer.json["code"] for answer in (blind, early)
    ]
    assert ('"0"', '"1"', '"2"') == tuple(
        answer.headers["etag"] for answer in (early, stale, again)
    )
    assert 20 == (await rest.get(LIMITS)).json["rates"]["agent_burst"]


OUT_OF_RANGE: list[tuple[str, dict[str, Any], str]] = [
    ("rates", {"agent_per_minute": 0}, "/rates/agent_per_minute"),
    ("rates", {"tenant_per_minute": 1_000_001}, "/rates/tenant_per_minute"),
    ("rates", {"agent_burst": 1.5}, "/rates/agent_burst"),
    ("rates", {"tools": {"nowhere": {"now": 1}}}, "/rates/tools"),
    ("rates", {"tools": {"Not a slug": {"now": 1}}}, "/rates/tools"),
    ("escalations", {"execute_seconds": 59}, "/escalations/execute_seconds"),
    ("escalations", {"execute_seconds": 86_401}, "/escalations/execute_seconds"),
    (
        "escalations",
        {"decide_seconds": {"low": 59, "medium": 60, "high": 60, "critical": 60}},
        "/escalations/decide_seconds/low",
    ),
    (
        "escalations",
        {"decide_seconds": {"low": 604_801, "medium": 60, "high": 60, "critical": 60}},
        "/escalations/decide_seconds/low",
    ),
]


async def test_what_is_out_of_range_is_refused_by_pointer(rest: Rest) -> None:
    for part, value, pointer in OUT_OF_RANGE:
        answer = await put(rest, {**SHIPPED, part: {**SHIPPED[part], **value}})
        assert (422, pointer) == (answer.status, answer.json["errors"][0]["pointer"])

    assert '"0"' == (await rest.get(LIMITS)).headers["etag"]


async def test_limits_are_an_admins(rest: Rest) -> None:
    author = await key_of(rest, "policy_author")

    assert 403 == (await rest.get(LIMITS, key=author)).status
    assert 403 == (await put(rest, SHIPPED, key=author)).status


async def test_one_tenants_limits_are_not_the_others(rest: Rest, other_key: str) -> None:
    await put(rest, changed(agent_burst=10))
    theirs = await rest.get(LIMITS, key=other_key)
    assert ('"0"', SHIPPED) == (theirs.headers["etag"], theirs.json)

    assert 200 == (await put(rest, changed(agent_burst=7), key=other_key)).status
    assert 10 == (await rest.get(LIMITS)).json["rates"]["agent_burst"]
