"""Escalations over the link: kept once, decided once, told until the plane has it."""

import asyncio
import json
from typing import Any

from joserfc.jwk import ECKey

from behavry.control.v1 import plane_link_pb2 as wire
from services.control.settings import ControlSettings
from tests.fakes.clock import ManualClock
from tests.fakes.postgres import Database
from tests.integration.control.conftest import Rest, opened
from tests.integration.control.escalated import (
    BINDING,
    ESCALATIONS,
    acknowledge,
    asked,
    decided,
    opening,
    report,
    signed_in,
    state_of,
)
from tests.integration.control.planes import PLANE, PROMPT_S, linked, plane_token


async def test_an_opened_escalation_is_in_the_inbox_and_kept_once(rest: Rest) -> None:
    told = opening(rest)
    async with linked(rest) as plane:
        for _ in range(2):
            plane.up.put_nowait(wire.OpenRequest(escalation_opened=told))
            kept = await plane.next("escalation_kept")
            assert (told.id, 0) == (kept.id, kept.version)

    listed = (await rest.get(ESCALATIONS)).json["items"]
    assert [(told.id, "pending", "git", "git_commit", ["policy"])] == [
        (one["id"], one["state"], one["server"], one["tool"], one["codes"]) for one in listed
    ]
    one = (await rest.get(f"{ESCALATIONS}/{told.id}")).json
    assert ({"depth": 2}, None, 900) == (
        one["features"], one["requester"], one["execute_for_seconds"],
    )  # fmt: skip
    assert "binding" not in one


async def test_what_is_decided_reaches_the_plane_signed(rest: Rest) -> None:
    admin = await signed_in(rest)
    now_ms = rest.clock.now_ns() // 10**6
    async with linked(rest) as plane:
        escalation = await asked(rest, plane)
        answer = await admin.act(escalation, "approve")
        decision = await plane.next("escalation_decision")

    assert (200, "approved") == (answer.status, answer.json["state"])
    assert (rest.running.tenant.id, escalation) == (decision.tenant_id, decision.escalation_id)
    assert {
        "v": "behavry.escalation-decision/1",
        "plane": PLANE,
        "tenant": rest.running.tenant.id,
        "escalation": escalation,
        "binding": BINDING,
        "verdict": "approve",
        "uses": 1,
        "decided_at_ms": now_ms,
        "execute_by_ms": now_ms + 900_000,
        "approvers": [admin.id],
    } == decided(rest, decision)


async def test_a_denial_reaches_the_plane_too(rest: Rest) -> None:
    admin = await signed_in(rest)
    async with linked(rest) as plane:
        escalation = await asked(rest, plane)
        answer = await admin.act(escalation, "deny")
        said = decided(rest, await plane.next("escalation_decision"))

    assert (200, "denied") == (answer.status, answer.json["state"])
    assert ("deny", 0, [admin.id]) == (said["verdict"], said["execute_by_ms"], said["approvers"])


async def test_a_decision_is_told_again_until_it_is_acknowledged(rest: Rest) -> None:
    admin = await signed_in(rest)
    async with linked(rest) as plane:
        escalation = await asked(rest, plane)
    await admin.act(escalation, "approve")  # nobody listens
    seen = []
    for _ in range(2):
        async with linked(rest) as plane:
            seen.append(await plane.next("escalation_decision"))
    async with linked(rest) as plane:
        acknowledge(plane, await plane.next("escalation_decision"))
        await report(rest, plane, escalation, "approved", 1)  # heard after the ack
    async with linked(rest) as plane:
        other = await asked(rest, plane)
        await admin.act(other, "deny")
        following = await plane.next("escalation_decision")

    assert seen[0] == seen[1]
    assert other == following.escalation_id


async def test_a_restart_of_control_forgets_no_decision(
    settings: ControlSettings, clock: ManualClock, control_database: Database
) -> None:
    async with opened(settings, clock, control_database) as rest:
        admin = await signed_in(rest)
        async with linked(rest) as plane:
            escalation = await asked(rest, plane)
        await admin.act(escalation, "deny")
    async with opened(settings, clock, control_database) as rest, linked(rest) as plane:
        decision = await plane.next("escalation_decision")
        assert (escalation, "denied") == (
            decision.escalation_id, await state_of(rest, escalation)
        )  # fmt: skip


async def test_what_the_plane_reports_is_what_happened(rest: Rest) -> None:
    admin = await signed_in(rest)
    async with linked(rest) as plane:
        escalation = await asked(rest, plane)
        await admin.act(escalation, "approve")
        await report(rest, plane, escalation, "approved", 1, uses_left=1)
        approved = await state_of(rest, escalation)
        await report(rest, plane, escalation, "consumed", 2)
        await report(rest, plane, escalation, "approved", 1, uses_left=1)  # late, and older

    assert ("approved", "consumed") == (approved, await state_of(rest, escalation))


async def test_a_plane_that_does_not_know_of_the_end_yet_opens_nothing_again(rest: Rest) -> None:
    admin = await signed_in(rest)
    async with linked(rest) as plane:
        escalation = await asked(rest, plane)
        await admin.act(escalation, "approve")
        await admin.act(escalation, "revoke")
        await report(rest, plane, escalation, "approved", 1, uses_left=1)

        assert "revoked" == await state_of(rest, escalation)
        await report(rest, plane, escalation, "consumed", 2)
        assert "consumed" == await state_of(rest, escalation)


async def test_a_revocation_overtakes_an_approval_that_was_never_told(rest: Rest) -> None:
    admin = await signed_in(rest)
    async with linked(rest) as plane:
        escalation = await asked(rest, plane)
    await admin.act(escalation, "approve")
    await admin.act(escalation, "revoke")
    async with linked(rest) as plane:
        first = await plane.next("escalation_decision")

    assert "revoke" == decided(rest, first)["verdict"]


async def test_what_the_plane_ended_need_not_be_decided(rest: Rest) -> None:
    admin = await signed_in(rest)
    async with linked(rest) as plane:
        escalation = await asked(rest, plane)
        await admin.act(escalation, "approve")
        await plane.next("escalation_decision")
        await report(rest, plane, escalation, "expired", 1)
        other = await asked(rest, plane)
        await admin.act(other, "deny")
    async with linked(rest) as plane:
        decision = await plane.next("escalation_decision")

    assert other == decision.escalation_id
    assert 409 == (await admin.act(escalation, "revoke")).status


async def test_what_cannot_be_one_is_not_kept_and_ends_no_link(rest: Rest) -> None:
    spoilt: list[dict[str, Any]] = [
        {"id": "1"},
        {"tenant_id": ""},
        {"tenant_id": "0199d0d0-0000-7000-8000-0000000000ff"},
        {"agent_id": "x"},
        {"binding": ""},
        {"binding": "b" * 300},
        {"decide_by_ms": 0},
        {"opened_at_ms": 1 << 62},
    ]
    async with linked(rest) as plane:
        for fields in spoilt:
            plane.up.put_nowait(wire.OpenRequest(escalation_opened=opening(rest, **fields)))
        good = await asked(rest, plane)  # the next thing that is said to be kept

    assert [good] == [one["id"] for one in (await rest.get(ESCALATIONS)).json["items"]]


async def test_odd_but_true_tellings_are_kept_within_bounds(rest: Rest) -> None:
    async with linked(rest) as plane:
        escalation = await asked(
            rest, plane, resource="a\0b", features=b"{", tool="x" * 20_000, quorum=4_000_000_000,
            execute_for_s=4_000_000_000, codes=[str(n) for n in range(200)],
        )  # fmt: skip
    one = (await rest.get(f"{ESCALATIONS}/{escalation}")).json

    assert ("a\u2400b", None, 8192, 5, 86_400, 64) == (
        one["resource"], one["features"], len(one["tool"]), one["quorum"],
        one["execute_for_seconds"], len(one["codes"]),
    )  # fmt: skip


async def test_a_change_of_what_was_never_opened_is_not_kept(rest: Rest) -> None:
    unknown = wire.EscalationChanged(
        id="0199d0d0-0000-7000-8000-0000000000ff", tenant_id=rest.running.tenant.id,
        state="expired", version=1,
    )  # fmt: skip
    async with linked(rest) as plane:
        plane.up.put_nowait(wire.OpenRequest(escalation_changed=unknown))
        await asked(rest, plane)


async def test_many_at_once_are_all_kept(rest: Rest) -> None:
    told = [opening(rest) for _ in range(60)]
    async with linked(rest) as plane:
        for one in told:
            plane.up.put_nowait(wire.OpenRequest(escalation_opened=one))
        kept = [(await plane.next("escalation_kept")).id for _ in told]

    assert sorted(kept) == sorted(one.id for one in told)


async def test_whoever_listens_hears_of_each_change(rest: Rest) -> None:
    """Notifications wake by this."""
    signals = rest.running.control.signals
    admin = await signed_in(rest)
    heard = signals.listen()
    counts = [signals.escalations]
    async with linked(rest) as plane:
        escalation = await asked(rest, plane)
        counts.append(signals.escalations)
        await admin.act(escalation, "deny")
        async with asyncio.timeout(PROMPT_S):
            await heard.wait()
        counts.append(signals.escalations)
        await report(rest, plane, escalation, "denied", 1)
        counts.append(signals.escalations)
    signals.forget(heard)

    assert counts == sorted(set(counts))  # a decision is heard from the database, too


async def test_another_plane_hears_and_says_nothing_of_ours(
    settings: ControlSettings, clock: ManualClock, control_database: Database
) -> None:
    """It is registered, and no tenant is its own."""
    key = ECKey.generate_key("P-256")
    keys = json.loads(settings.plane_keys.read_bytes())
    keys["dp-other"] = key.as_dict(private=False)
    settings.plane_keys.write_text(json.dumps(keys))
    async with opened(settings, clock, control_database) as rest:
        admin = await signed_in(rest)
        agent = await rest.add_agent()
        token = plane_token(rest, key=key, kid="dp-other", iss="dp-other", sub="dp-other")
        async with linked(rest) as plane, linked(rest, token) as other:
            escalation = await asked(rest, plane)
            await admin.act(escalation, "approve")
            said = wire.EscalationChanged(
                id=escalation, tenant_id=rest.running.tenant.id, state="consumed", version=9
            )
            other.up.put_nowait(wire.OpenRequest(escalation_changed=said))
            other.up.put_nowait(wire.OpenRequest(escalation_opened=opening(rest)))
            decision = await plane.next("escalation_decision")
            await rest.post(f"/api/v1/agents/{agent['id']}:suspend")
            await other.hears_no("escalation_decision", before="revocation")

        assert escalation == decision.escalation_id
        assert ("approved", 1) == (
            await state_of(rest, escalation), len((await rest.get(ESCALATIONS)).json["items"])
        )  # fmt: skip
