"""Lists, single decisions and heads over a real channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest

from behavry.audit.v1 import audit_pb2
from services.common.postgres.windows import WINDOW
from services.common.rpc.errors import known
from tests.fakes.audit import AGENT_CHAIN, AuditService, Source, audit_service
from tests.fakes.postgres import Database
from tests.promises import promise

pytestmark = pytest.mark.needs_postgres
AGENT = AGENT_CHAIN.removeprefix("agent:")


@pytest.fixture
async def audit(audit_database: Database) -> AsyncIterator[AuditService]:
    async with audit_service(audit_database) as service:
        yield service


async def _call(audit: AuditService, method: str, request: Any, *, peer: str = "control") -> Any:
    async with audit.reader(peer) as (stub, link):
        return await getattr(stub, method)(request, metadata=link.metadata(), timeout=5)


async def _refusal(audit: AuditService, method: str, request: Any, *, peer: str = "control") -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _call(audit, method, request, peer=peer)
    return known(refused.value)


async def _fill(audit: AuditService, tenant: str) -> tuple[audit_pb2.Entry, ...]:
    """An allowed call with its outcome, a denied one, and what control did."""
    actor = {"kind": "agent", "id": AGENT, "name": "demo-agent", "session": "s-1"}
    proxy, control = Source(), Source(kind="control")
    intent = proxy.entry(
        tenant, tool="now", server="time", verdict="allow", actor=actor, parts=[("input", b"{}")]
    )
    outcome = proxy.entry(tenant, type="call.outcome", decision=intent.event_id, status="ok")
    denied = proxy.entry(
        tenant, type="call.denied", tool="reset", server="git", verdict="deny", reason="policy",
        actor=actor,
    )  # fmt: skip
    admin = control.entry(tenant, chain="admin", type="admin.agent.create")
    async with audit.shipper(proxy) as shipper:
        await shipper.ship([intent, outcome, denied])
    async with audit.shipper(control, peer="control") as shipper:
        await shipper.ship([admin])
    return intent, outcome, denied, admin


async def _listed(audit: AuditService, tenant: str, filter: str) -> list[str]:
    request = audit_pb2.ListTracesRequest(tenant_id=tenant, filter=filter)
    answer = await _call(audit, "ListTraces", request)
    return [trace.decision.event_id for trace in answer.traces]


async def test_decisions_are_listed_newest_first_with_their_outcomes(audit: AuditService) -> None:
    tenant = str(uuid4())
    intent, outcome, denied, _ = await _fill(audit, tenant)

    answer = await _call(audit, "ListTraces", audit_pb2.ListTracesRequest(tenant_id=tenant))

    assert [denied.event_id, intent.event_id] == [t.decision.event_id for t in answer.traces]
    assert not answer.traces[0].HasField("outcome")
    assert outcome.event_id == answer.traces[1].outcome.event_id
    assert intent.body == answer.traces[1].decision.body


async def test_qualifiers_narrow_the_list(audit: AuditService) -> None:
    tenant = str(uuid4())
    intent, outcome, denied, admin = (entry.event_id for entry in await _fill(audit, tenant))

    for filter_, expected in {
        f"agent:{AGENT}": [denied, intent],
        "agent:demo-agent": [denied, intent],
        "agent:other": [],
        "verdict:deny": [denied],
        "-verdict:deny": [intent],
        "verdict:deny,allow": [denied, intent],
        "server:time tool:now": [intent],
        "server:time tool:reset": [],
        "reason:policy": [denied],
        "session:s-1 -tool:now": [denied],
        f"decision:{intent}": [intent],
        "type:admin.*": [admin],
        "type:call.outcome": [outcome],
        "time:>=2026-01-01": [denied, intent],
        "time:<2026-01-01": [],
        "time:2026-01-01": [denied, intent],
        "time:2025-12-31..2026-01-01": [],
        'tool:"no\'w"': [],
    }.items():
        assert expected == await _listed(audit, tenant, filter_), filter_


async def test_another_tenant_sees_nothing(audit: AuditService) -> None:
    tenant, other = str(uuid4()), str(uuid4())
    intent, *_ = await _fill(audit, tenant)

    assert [] == await _listed(audit, other, "")
    assert [] == await _listed(audit, other, f"decision:{intent.event_id}")
    request = audit_pb2.GetTraceRequest(tenant_id=other, id=intent.event_id)
    assert "NOT_FOUND" == (await _refusal(audit, "GetTrace", request)).reason


@pytest.mark.parametrize(
    ("filter_", "position"),
    [("colour:red", "0"), ("tool:x nonsense", "7"), ("tool:x -:y", "7"), ("time:soon", "5"),
     ("decision:x", "9"), ("tool:x " * 21, "140")],
)  # fmt: skip
async def test_a_term_it_does_not_know_is_refused_at_its_position(
    audit: AuditService, filter_: str, position: str
) -> None:
    request = audit_pb2.ListTracesRequest(tenant_id=str(uuid4()), filter=filter_)

    refusal = await _refusal(audit, "ListTraces", request)

    assert ("INVALID_FILTER", position) == (refusal.reason, refusal.metadata["position"])


async def test_pages_follow_each_other_and_their_token_opens_no_other_list(
    audit: AuditService,
) -> None:
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 7)
    async with audit.shipper(source) as shipper:
        await shipper.ship(entries)

    seen: list[str] = []
    token, first_token = "", ""
    while True:
        request = audit_pb2.ListTracesRequest(tenant_id=tenant, page_size=3, page_token=token)
        answer = await _call(audit, "ListTraces", request)
        seen += [trace.decision.event_id for trace in answer.traces]
        token = answer.next_page_token
        first_token = first_token or token
        if not token:
            break
    assert [entry.event_id for entry in reversed(entries)] == seen

    for wrong in (
        audit_pb2.ListTracesRequest(tenant_id=str(uuid4()), page_token=first_token),
        audit_pb2.ListTracesRequest(tenant_id=tenant, filter="tool:x", page_token=first_token),
        audit_pb2.ListTracesRequest(tenant_id=tenant, page_token="AAAA"),
        audit_pb2.ListTracesRequest(tenant_id=tenant, page_token="é"),
    ):
        assert "INVALID_PAGE_TOKEN" == (await _refusal(audit, "ListTraces", wrong)).reason


_COPIES = """
INSERT INTO audit.events (tenant_id, chain, incarnation, seq, committed_at, position, event_id,
    body, previous_hash, event_hash, type, agent, agent_name, tool)
SELECT e.tenant_id, 'agent:filler', 1, g, e.committed_at, 0,
    (lpad(to_hex(g), 8, '0') || '-0000-7000-8000-000000000000')::uuid, e.body, e.previous_hash,
    e.event_hash, e.type, e.agent, 'filler', CASE g WHEN 1 THEN 'first' ELSE 'filler' END
FROM (SELECT * FROM audit.events WHERE tenant_id = $1 AND type = 'call.denied' LIMIT 1) e,
    generate_series(1, $2::bigint) g"""


@promise("api:pages-hold-still")
async def test_a_page_looks_at_so_much_of_the_history_and_says_where_it_stopped(
    audit: AuditService, audit_database: Database
) -> None:
    """What fits lies behind more rows than one page may look at."""
    tenant = str(uuid4())
    intent, _, denied, _ = await _fill(audit, tenant)
    admin = await asyncpg.connect(audit_database.admin_dsn)
    await admin.execute(_COPIES, tenant, 2 * WINDOW)
    await admin.close()
    seen: dict[str, list[list[str]]] = {}
    filters = ("tool:first", "tool:nothing", "tool:now,first", "tool:nothing time:>2026-01-01")
    for filter_ in filters:
        seen[filter_], token = [], ""
        while not seen[filter_] or token:
            request = audit_pb2.ListTracesRequest(
                tenant_id=tenant, filter=filter_, page_token=token
            )
            answer = await _call(audit, "ListTraces", request)
            seen[filter_].append([trace.decision.event_id for trace in answer.traces])
            token = answer.next_page_token

    first = "00000001-0000-7000-8000-000000000000"
    assert {
        "tool:first": [[], [], [first]],
        "tool:nothing": [[], [], []],
        "tool:now,first": [[intent.event_id], [], [first]],
        "tool:nothing time:>2026-01-01": [[]],
    } == seen
    assert [denied.event_id] == await _listed(audit, tenant, f"decision:{denied.event_id}")
    assert [first] == await _listed(audit, tenant, f"decision:{first}")


async def test_a_decision_is_found_by_its_id_and_by_its_records(audit: AuditService) -> None:
    tenant = str(uuid4())
    intent, outcome, *_ = await _fill(audit, tenant)

    for id_ in (intent.event_id, outcome.event_id):
        trace = await _call(audit, "GetTrace", audit_pb2.GetTraceRequest(tenant_id=tenant, id=id_))
        assert [intent.event_id, outcome.event_id] == [event.event_id for event in trace.events]
        assert b"{}" == trace.input
    for id_ in (str(uuid4()), "nonsense"):
        request = audit_pb2.GetTraceRequest(tenant_id=tenant, id=id_)
        assert "NOT_FOUND" == (await _refusal(audit, "GetTrace", request)).reason


async def test_heads_are_the_ends_of_the_chains(audit: AuditService) -> None:
    tenant = str(uuid4())
    await _fill(audit, tenant)

    answer = await _call(audit, "ListHeads", audit_pb2.ListHeadsRequest(tenant_id=tenant))

    assert [("admin", 1), (AGENT_CHAIN, 3), ("tenant", 3)] == [
        (head.chain, head.seq) for head in answer.heads
    ]


async def test_only_control_and_the_machines_owner_may_read(audit: AuditService) -> None:
    request = audit_pb2.ListHeadsRequest(tenant_id=str(uuid4()))

    assert [] == list((await _call(audit, "ListHeads", request, peer="operator")).heads)
    for peer in ("proxy", "authorizer", "entitlements"):
        assert "PEER_NOT_ALLOWED" == (await _refusal(audit, "ListHeads", request, peer=peer)).reason


async def test_a_verification_tells_its_progress_and_its_verdict(audit: AuditService) -> None:
    tenant = str(uuid4())
    await _fill(audit, tenant)
    started = await _call(audit, "StartVerify", audit_pb2.StartVerifyRequest(tenant_id=tenant))

    watch = audit_pb2.WatchVerifyRequest(tenant_id=tenant, verify_id=started.verify_id)
    async with audit.reader() as (stub, link):
        steps = [step async for step in stub.WatchVerify(watch, metadata=link.metadata())]

    last = steps[-1]
    assert (True, "ok", "links", 7, 3) == (
        last.done, last.verdict, last.assurance, last.rows_done, last.chains,
    )  # fmt: skip


async def test_a_verification_of_another_tenant_is_unknown(audit: AuditService) -> None:
    started = await _call(
        audit, "StartVerify", audit_pb2.StartVerifyRequest(tenant_id=str(uuid4()))
    )

    watch = audit_pb2.WatchVerifyRequest(tenant_id=str(uuid4()), verify_id=started.verify_id)
    async with audit.reader() as (stub, link):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.WatchVerify(watch, metadata=link.metadata()).read()

    assert "VERIFY_UNKNOWN" == known(refused.value).reason
