"""When bundles are built, and how planes fetch them."""

import asyncio
import json
from typing import Any

import asyncpg
import pytest
from joserfc.jwk import ECKey

from services.common.rego.names import policy_package
from services.control.settings import ControlSettings
from services.control.signals import Stop
from tests.fakes.asking import ask_until
from tests.fakes.clock import ManualClock
from tests.fakes.postgres import Database
from tests.integration.control.conftest import Rest
from tests.integration.control.conftest import opened as opened_control
from tests.integration.control.planes import (
    PROMPT_S,
    fetch,
    opened,
    plan,
    plane_token,
    tenant_state,
    until_serial,
)


async def serials(database: Database) -> list[int]:
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        rows = await connection.fetch("SELECT serial FROM control.bundles ORDER BY serial")
    finally:
        await connection.close()
    return [row["serial"] for row in rows]


async def rename(rest: Rest, old: str, new: str) -> None:
    connection = await asyncpg.connect(rest.database.admin_dsn)
    try:
        await connection.execute("UPDATE control.agents SET name = $2 WHERE name = $1", old, new)
    finally:
        await connection.close()


async def test_before_entitlements_spoke_there_is_no_bundle(rest: Rest) -> None:
    await rest.add_agent()
    early = await fetch(rest)
    plan(rest)
    await until_serial(rest, 1)

    assert (503, "dependency_unavailable") == (early.status, early.json["code"])
    assert 200 == (await fetch(rest)).status
    assert [1] == await serials(rest.database)


async def test_a_change_makes_one_bundle_that_holds_it(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    agent = await rest.add_agent("worker")
    await until_serial(rest, 2)
    state = tenant_state(rest, (await fetch(rest)).body)

    assert "worker" == state["agents"][agent["id"]]["name"]
    assert {"context_gate": "on"} == state["modes"]
    assert [1, 2] == await serials(rest.database)


async def test_unchanged_content_makes_none(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)

    assert 1 == await rest.running.publisher.publish()
    assert [1] == await serials(rest.database)


async def test_a_right_taken_and_given_back_makes_a_bundle_that_settles_the_signal(
    rest: Rest,
) -> None:
    """The content is as before, but planes hold the signal until a newer bundle is there."""
    plan(rest)
    agent = await rest.add_agent()
    while not rest.running.control.signals.serial:
        await rest.running.publisher.publish()
    serial = await rest.running.publisher.publish()
    for verb in ("suspend", "resume"):
        assert 200 == (await rest.post(f"/api/v1/agents/{agent['id']}:{verb}")).status
    await until_serial(rest, serial + 1)
    state = tenant_state(rest, (await fetch(rest)).body)

    assert [] == rest.running.control.signals.pending()
    assert "active" == state["agents"][agent["id"]]["status"]


async def test_a_bundle_is_signed_anew_at_half_its_life(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    rest.clock.advance(16 * 86_400)

    assert 2 == await rest.running.publisher.publish()


async def test_quick_edits_make_fewer_bundles(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    names = set("abcdefgh")
    await asyncio.gather(*(rest.add_role(name, "time:read") for name in names))

    async def roles() -> set[str]:
        return set(tenant_state(rest, (await fetch(rest)).body)["roles"])

    await ask_until(roles, lambda known: names <= known)
    # One where all come within the time that edits are gathered; a busy machine may need another.
    assert len(await serials(rest.database)) - 1 < len(names)


async def test_a_new_plan_reaches_the_planes(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    plan(rest, mode="off", revision=2)
    await until_serial(rest, 2)

    assert {"context_gate": "off"} == tenant_state(rest, (await fetch(rest)).body)["modes"]


async def test_an_edit_that_cannot_be_built_keeps_the_bundle_before_it(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    await rest.add_agent("worker")
    await until_serial(rest, 2)
    good = (await fetch(rest)).headers["etag"]
    # No route lets such a name in; a value that looks like a secret must not leave all the same.
    await rename(rest, "worker", "bhv_sk_" + "a" * 20)
    await rest.add_role("more", "time:read")
    assert 2 == await rest.running.publisher.publish()
    assert (2, good) == (rest.running.control.signals.serial, (await fetch(rest)).headers["etag"])

    await rename(rest, "bhv_sk_" + "a" * 20, "worker")
    await rest.add_role("again", "time:read")
    assert 2 < await rest.running.publisher.publish()
    assert {"more", "again"} <= set(tenant_state(rest, (await fetch(rest)).body)["roles"])


@pytest.mark.needs_regorus
async def test_an_enforced_policy_is_in_the_next_bundle_and_a_draft_in_none(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    package = policy_package(rest.running.tenant.id, "guard")
    text = (
        f"package {package}\n\nimport rego.v1\n\n"
        'verdicts contains {"result": "deny", "code": "hit", "reason": "r", "obligations": []}'
        ' if input.request.tool == "rm"\n'
    )
    tests = [{"name": "rm", "input": {"request": {"tool": "rm"}}, "expect": "deny"}]
    body = {"key": "guard", "source": text, "tests": tests}
    policy = (await rest.post("/api/v1/policies", body)).json
    draft = tenant_state(rest, (await fetch(rest)).body)
    key = {"idempotency-key": "k"}
    await rest.post(f"/api/v1/policies/{policy['id']}:enforce", headers=key)
    await until_serial(rest, 2)
    archive = (await fetch(rest)).body
    enforced = tenant_state(rest, archive)

    assert [] == draft["policies"]
    assert [("guard", 1, "enforce", package)] == [
        (one["key"], one["version"], one["state"], one["package"]) for one in enforced["policies"]
    ]
    assert draft["policy_revision"] != enforced["policy_revision"]
    assert text.encode() in opened(archive).values()


async def test_a_bundle_says_whose_it_is_and_what_it_is(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    answer = await fetch(rest)
    manifest = json.loads(opened(answer.body)[".manifest"])

    assert "application/vnd.openpolicyagent.bundles" == answer.headers["content-type"]
    assert answer.headers["etag"].startswith('"sha256:')
    assert ["behavry"] == manifest["roots"]
    assert manifest["revision"].startswith("1-")
    assert ("dp-local", "local", 1) == tuple(
        manifest["metadata"][name] for name in ("plane_id", "environment", "serial")
    )


async def test_a_known_bundle_is_not_sent_again(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    tag = (await fetch(rest)).headers["etag"]
    same = await fetch(rest, **{"if-none-match": tag})
    other = await fetch(rest, **{"if-none-match": '"sha256:00"'})

    assert (304, b"", tag) == (same.status, same.body, same.headers["etag"])
    assert 200 == other.status


async def test_a_plane_that_waits_hears_of_a_change_at_once(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    tag = (await fetch(rest)).headers["etag"]
    async with asyncio.timeout(PROMPT_S), asyncio.TaskGroup() as group:
        waiting = group.create_task(
            fetch(rest, **{"if-none-match": tag, "prefer": "modes=snapshot;wait=30"})
        )
        await rest.add_agent("worker")
    answer = waiting.result()

    assert 200 == answer.status
    assert tag != answer.headers["etag"]


async def test_a_plane_that_waits_in_vain_is_told_so(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    tag = (await fetch(rest)).headers["etag"]
    answer = await fetch(rest, **{"if-none-match": tag, "prefer": "wait=0"})

    assert 304 == answer.status


#: Claims that differ from a good token's; times are seconds from now.
REFUSED: dict[str, dict[str, Any]] = {
    "an expired one": {"iat": -400, "exp": -100},
    "one from the future": {"iat": 100, "exp": 300},
    "a foreign audience": {"aud": "https://elsewhere.example"},
    "no audience": {"aud": None},
    "a list of audiences": {"aud": ["http://127.0.0.1:8701", "https://elsewhere.example"]},
    "another subject": {"sub": "dp-other"},
    "too long a life": {"exp": 301},
    "times that are no numbers": {"exp": "soon"},
    "no times": {"exp": None, "iat": None},
}


async def test_nobody_but_a_registered_plane_gets_a_bundle(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    now_s = rest.clock.now_ns() // 10**9
    tokens = {"no token": "", "no JWT": "x.y.z"}
    for name, wrong in REFUSED.items():
        claims: dict[str, Any] = {
            claim: now_s + value if isinstance(value, int) else value
            for claim, value in wrong.items()
        }
        tokens[name] = plane_token(rest, **claims)
    tokens["another key"] = plane_token(rest, key=ECKey.generate_key("P-256"))
    tokens["an unknown plane"] = plane_token(rest, kid="dp-other", sub="dp-other", iss="dp-other")
    tokens["a cut signature"] = plane_token(rest)[:-2]
    tokens["no signature"] = plane_token(rest).rpartition(".")[0] + "."
    tokens["an admin's key"] = rest.key

    for name, token in tokens.items():
        answer = await fetch(rest, token)
        assert (401, "unauthenticated") == (answer.status, answer.json["code"]), name
    assert 200 == (await fetch(rest, plane_token(rest))).status


async def test_a_token_serves_until_it_ends(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    token = plane_token(rest)
    rest.clock.advance(299)
    assert 200 == (await fetch(rest, token)).status

    rest.clock.advance(60)
    assert 401 == (await fetch(rest, token)).status


async def test_a_restarted_control_counts_signals_from_the_stored_bundle(
    settings: ControlSettings, clock: ManualClock, control_database: Database
) -> None:
    """Entitlements may be away then: nothing can be built, and a plane already holds serial 2."""
    async with opened_control(settings, clock, control_database) as first:
        plan(first)
        await until_serial(first, 1)
        agent = await first.add_agent("worker")
        await until_serial(first, 2)
    async with opened_control(settings, clock, control_database) as second:
        assert 200 == (await second.post(f"/api/v1/agents/{agent['id']}:suspend")).status
        [signal] = second.running.control.signals.pending()

    assert (agent["id"],) == signal.agents
    assert signal.min_serial > 2


async def test_a_restarted_control_says_again_what_stands_still_until_a_bundle_says_it(
    settings: ControlSettings, clock: ManualClock, control_database: Database
) -> None:
    """It may have ended between its answer and the plane's hearing of it."""
    async with opened_control(settings, clock, control_database) as first:
        body = {"scope": "class", "subject": "default", "reason": "no more of these"}
        assert 201 == (await first.post("/api/v1/kill-switch", body)).status
    async with opened_control(settings, clock, control_database) as second:
        [signal] = second.running.control.signals.pending()
        plan(second)
        await until_serial(second, 1)
        state = tenant_state(second, (await fetch(second)).body)
        settled = second.running.control.signals.pending()

    assert (Stop(scope="class", subject="default"),) == signal.stops
    assert [{"scope": "class", "subject": "default"}] == state["stops"]
    assert [] == settled
