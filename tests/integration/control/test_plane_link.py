"""The link that a data plane holds open: who may open it, what comes down, what goes up."""

import asyncio
from typing import Any

import grpc
import pytest

from behavry.control.v1 import plane_link_pb2 as wire
from services.common.rpc.errors import known
from tests.integration.control.conftest import PUBLIC, Rest
from tests.integration.control.planes import PROMPT_S, linked, plan, plane_token, until_serial

HASH = "sha256:" + "a" * 64


async def test_a_plane_is_greeted_with_the_issuer_and_the_newest_bundle(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    async with linked(rest) as plane:
        assert PUBLIC == (await plane.next("hello_ack")).issuer
        assert 1 == (await plane.next("bundle_notify")).serial


async def test_a_new_bundle_is_told_at_once(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    async with linked(rest) as plane:
        await plane.next("bundle_notify")
        await rest.add_agent()

        assert 2 == (await plane.next("bundle_notify")).serial


async def test_suspending_an_agent_reaches_the_plane_before_any_bundle(rest: Rest) -> None:
    """Nothing can be built here: entitlements never spoke."""
    agent = await rest.add_agent()
    async with linked(rest) as plane:
        await plane.next("hello_ack")
        await rest.post(f"/api/v1/agents/{agent['id']}:suspend")
        told = await plane.next("revocation")

    assert rest.running.tenant.id == told.tenant_id
    assert [agent["id"]] == list(told.agent_ids)
    assert told.min_serial >= 1


async def test_a_revoked_secrets_sessions_reach_the_plane(rest: Rest) -> None:
    agent = await rest.add_agent()
    token = await rest.token(client_id=agent["client_id"], client_secret=agent["client_secret"])
    async with linked(rest) as plane:
        await plane.next("hello_ack")
        path = f"/api/v1/agents/{agent['id']}/secrets/{agent['secret_id']}"
        assert 204 == (await rest.call("DELETE", path)).status
        told = await plane.next("revocation")

    assert [token.json["session_id"]] == list(told.session_ids)
    assert [] == list(told.agent_ids)


async def test_a_plane_that_comes_back_hears_what_no_bundle_says_yet(rest: Rest) -> None:
    agent = await rest.add_agent()
    await rest.post(f"/api/v1/agents/{agent['id']}:suspend")
    signals = []
    for _ in range(2):
        async with linked(rest) as plane:
            told = await plane.next("revocation")
            plane.up.put_nowait(wire.OpenRequest(ack=wire.Ack(signal_id=told.signal_id)))
            signals.append(told.signal_id)

    assert 1 == len(set(signals))


async def test_a_signal_rests_once_a_bundle_says_the_same(rest: Rest) -> None:
    plan(rest)
    await until_serial(rest, 1)
    agent = await rest.add_agent()
    await until_serial(rest, 2)
    await rest.post(f"/api/v1/agents/{agent['id']}:suspend")
    pending = rest.running.control.signals.pending()
    async with linked(rest) as plane:
        while (await plane.next("bundle_notify")).serial < 3:
            continue

    assert [3] == [signal.min_serial for signal in pending]
    assert [] == rest.running.control.signals.pending()


async def test_tools_that_a_plane_saw_reach_the_inbox(rest: Rest) -> None:
    await rest.add_server("time")
    tools = [
        wire.SeenTool(name="now", schema_hash=HASH, definition=b'{"name":"now"}'),
        wire.SeenTool(name="", schema_hash=HASH, definition=b"{}"),
        wire.SeenTool(name="huge", schema_hash=HASH, definition=b"x" * (64 * 1024 + 1)),
    ]
    foreign = wire.ToolsSeen(tenant_id="not a tenant", server="time", tools=tools)
    seen = wire.ToolsSeen(tenant_id=rest.running.tenant.id, server="time", tools=tools)
    async with linked(rest) as plane:
        plane.up.put_nowait(wire.OpenRequest(heartbeat=wire.Heartbeat(engine="up")))
        plane.up.put_nowait(wire.OpenRequest(tools_seen=foreign))
        plane.up.put_nowait(wire.OpenRequest(tools_seen=seen))
        async with asyncio.timeout(PROMPT_S):
            items: list[dict[str, Any]] = []
            while not items:
                items = (await rest.get("/api/v1/servers/time/tools")).json["items"]

    assert [("now", "unclassified", HASH)] == [
        (item["name"], item["state"], item["seen_schema_hash"]) for item in items
    ]


@pytest.mark.parametrize(
    ("peer", "claims", "reason"),
    [
        ("plane", {"aud": "https://elsewhere.example"}, "PEER_UNAUTHENTICATED"),
        ("plane", {"iat": 0, "exp": 300}, "PEER_UNAUTHENTICATED"),
        ("plane", {"sub": "dp-other"}, "PEER_UNAUTHENTICATED"),
        ("proxy", {}, "PEER_UNAUTHENTICATED"),
        ("", {}, "PEER_UNAUTHENTICATED"),
    ],
)
async def test_nobody_but_a_registered_plane_opens_it(
    rest: Rest, peer: str, claims: dict[str, Any], reason: str
) -> None:
    async with linked(rest, plane_token(rest, **claims), peer) as plane:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await plane.next("hello_ack")

    assert reason == known(refused.value).reason


async def test_another_service_of_the_machine_is_not_a_plane(rest: Rest) -> None:
    token = (rest.state / "peers" / "authorizer.token").read_text().strip()
    async with linked(rest, token, "authorizer") as plane:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await plane.next("hello_ack")

    assert "PEER_NOT_ALLOWED" == known(refused.value).reason
