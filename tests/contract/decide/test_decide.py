"""What the proxy may rely on when it asks: equal on the told and on the real authorizer."""

import asyncio
from typing import Any

import grpc
import msgspec
import pytest

from behavry.authorizer.v1 import authorizer_pb2 as wire
from behavry.authorizer.v1 import authorizer_pb2_grpc
from services.proxy import snapshot
from services.proxy.calls import Result
from services.proxy.clients.decide import read
from tests.contract.decide.conftest import Authorizer
from tests.fakes.asks import DIGEST, ask
from tests.fakes.control import AGENT, SCHEMA_HASH, TENANT

OTHER_HASH = "sha256:" + "9" * 64
NOBODY = "0199d0d0-0000-7000-8000-0000000000ff"


@pytest.fixture(autouse=True)
async def with_policy(authorizer: Authorizer) -> None:
    """The first snapshot says that there is a bundle."""
    await part(authorizer, "proxy")


async def part(authorizer: Authorizer, name: str) -> wire.WatchResponse:
    stub = authorizer_pb2_grpc.SnapshotServiceStub(authorizer.proxy.channel)
    call = stub.Watch(wire.WatchRequest(part=name), metadata=authorizer.proxy.metadata())
    async with asyncio.timeout(5):
        async for response in call:
            call.cancel()
            return response
    raise AssertionError("the stream ended")


async def test_an_allow_repeats_the_digest_and_brings_what_was_decided(
    authorizer: Authorizer,
) -> None:
    (verdict,) = await authorizer.decider.ask(ask(arguments=b'{"path":"/tmp/needle"}'))

    decision = read(verdict, DIGEST)
    assert (Result.ALLOW, DIGEST) == (decision.result, verdict.arguments_digest)
    assert b"needle" not in verdict.envelope
    envelope = msgspec.json.decode(verdict.envelope)
    assert "behavry.input/1" == envelope["schema"]
    assert decision.revision.bundle_serial >= 1
    assert decision.revision.policy_revision
    assert "fresh" == decision.revision.policy_state


REFUSED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "an unknown tool": ({"tool": "format_disk"}, {"tool_hidden"}),
    "a changed tool": ({"schema_hash": OTHER_HASH}, {"tool_schema_changed"}),
    "a tool that is not offered": ({"schema_hash": None}, {"tool_schema_changed"}),
    "an unknown server": ({"server": "nowhere"}, {"unknown_server"}),
    "an unknown agent": ({"caller": {"agent_id": NOBODY}}, {"agent_unknown"}),
    "an unknown tenant": (
        {"caller": {"tenant_id": NOBODY}}, {"agent_unknown", "tenant_unset"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "codes"), REFUSED.values(), ids=REFUSED)
async def test_refusals_name_their_reason(
    authorizer: Authorizer, changes: dict[str, Any], codes: set[str]
) -> None:
    (verdict,) = await authorizer.decider.ask(ask(**changes))

    decision = read(verdict, DIGEST)
    assert Result.DENY is decision.result
    assert decision.reason_code in codes
    assert decision.reason_code in decision.codes


async def test_many_in_one_message_are_answered_each_for_itself(authorizer: Authorizer) -> None:
    asked = [ask(tool="read_file" if i % 2 else "format_disk") for i in range(16)]

    verdicts = await authorizer.decider.ask(*asked)

    assert [one.id for one in asked] == [one.id for one in verdicts]
    results = [read(one, DIGEST).result for one in verdicts]
    assert [Result.DENY, Result.ALLOW] * 8 == results


async def test_a_bad_ask_spoils_only_itself(authorizer: Authorizer) -> None:
    good, bad = ask(), ask()
    bad.request = b"{"

    first, second = await authorizer.decider.ask(good, bad)

    assert Result.ALLOW is read(first, DIGEST).result
    assert Result.DENY is read(second, DIGEST).result


async def test_view_and_decide_keep_one_rule(authorizer: Authorizer) -> None:
    offered = [
        ("read_file", SCHEMA_HASH), ("delete_file", SCHEMA_HASH), ("format_disk", SCHEMA_HASH),
    ]  # fmt: skip
    stub = authorizer_pb2_grpc.AuthorizerServiceStub(authorizer.proxy.channel)
    for schema_hash in (SCHEMA_HASH, OTHER_HASH):
        request = wire.ViewRequest(
            tenant_id=TENANT,
            agent_id=AGENT,
            session_id="s",
            server="files",
            tools=[wire.OfferedTool(name=name, schema_hash=schema_hash) for name, _ in offered],
        )
        view = await stub.View(request, timeout=5, metadata=authorizer.proxy.metadata())

        verdicts = await authorizer.decider.ask(
            *(ask(tool=name, schema_hash=schema_hash) for name, _ in offered)
        )
        shown = [
            name
            for (name, _), verdict in zip(offered, verdicts, strict=True)
            if read(verdict, DIGEST).reason_code not in {"tool_hidden", "tool_schema_changed"}
        ]
        assert shown == list(view.visible)


async def test_snapshots_come_at_once_and_whole(authorizer: Authorizer) -> None:
    proxy, jwks = await part(authorizer, "proxy"), await part(authorizer, "jwks")

    known = snapshot.decode(proxy.snapshot)
    tenant = known.tenants[TENANT]
    found = tenant.find("files")
    assert proxy.revision == known.revision
    assert found is not None
    assert found[0] in tenant.agents[AGENT].servers  # type: ignore[index]  # as above
    assert "keys" in msgspec.json.decode(jwks.snapshot)["jwks"]


async def test_reports_are_taken(authorizer: Authorizer) -> None:
    stub = authorizer_pb2_grpc.AuthorizerServiceStub(authorizer.proxy.channel)
    tool = wire.ReportedTool(name="new", schema_hash=OTHER_HASH, definition=b'{"name":"new"}')
    request = wire.ReportToolsRequest(tenant_id=TENANT, server="files", tools=[tool])

    answer = await stub.ReportTools(request, timeout=5, metadata=authorizer.proxy.metadata())

    assert wire.ReportToolsResponse() == answer


async def test_nobody_but_the_proxy_may_ask(authorizer: Authorizer) -> None:
    stub = authorizer_pb2_grpc.AuthorizerServiceStub(authorizer.stranger.channel)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.View(wire.ViewRequest(), timeout=5, metadata=authorizer.stranger.metadata())

    assert grpc.StatusCode.PERMISSION_DENIED is refused.value.code()
