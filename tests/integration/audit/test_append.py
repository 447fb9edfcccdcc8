"""Append over a real channel into a real PostgreSQL: what is stored, acknowledged and refused."""

from __future__ import annotations

from uuid import uuid4

import grpc
import pytest

from services.audit.chain import FIRST_PREVIOUS, event_hash
from services.common.ids import NIL_TENANT
from services.common.rpc.errors import known
from tests.fakes.audit import AGENT_CHAIN, Source, as_role, audit_service, stored
from tests.fakes.postgres import Database

pytestmark = pytest.mark.needs_postgres


async def test_records_are_chained_in_the_order_in_which_they_came(
    audit_database: Database,
) -> None:
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 5)
    async with audit_service(audit_database) as audit, audit.shipper(source) as shipper:
        await shipper.ship(entries)

    rows = [row for row in await stored(audit_database, tenant) if row["chain"] == AGENT_CHAIN]
    assert [entry.body for entry in entries] == [row["body"] for row in rows]
    assert [1, 2, 3, 4, 5] == [row["seq"] for row in rows]
    previous = FIRST_PREVIOUS
    for row in rows:
        assert previous == row["previous_hash"]
        previous = event_hash(
            tenant=tenant,
            chain=AGENT_CHAIN,
            incarnation=1,
            seq=row["seq"],
            committed_at_us=row["committed_at"],
            previous_hash=previous,
            body=row["body"],
        )
        assert previous == row["event_hash"]


async def test_the_opening_of_a_chain_is_recorded_in_the_tenants_own(
    audit_database: Database,
) -> None:
    tenant, source = str(uuid4()), Source()
    async with audit_service(audit_database) as audit, audit.shipper(source) as shipper:
        await shipper.ship(source.calls(tenant, 1))
        await shipper.ship(source.calls(tenant, 1))

    rows = await stored(audit_database, tenant)
    assert [
        (AGENT_CHAIN, "call.intent"),
        (AGENT_CHAIN, "call.intent"),
        ("tenant", "chain.opened"),
        ("tenant", "chain.opened"),
    ] == [(row["chain"], row["type"]) for row in rows]


async def test_a_resent_batch_is_acknowledged_and_stored_once(audit_database: Database) -> None:
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 20)
    async with audit_service(audit_database) as audit:
        for _ in range(2):
            async with audit.shipper(source) as shipper:
                await shipper.ship(entries)
        counted = audit.running.counters.read()

    rows = [row for row in await stored(audit_database, tenant) if row["chain"] == AGENT_CHAIN]
    assert 20 == len(rows)
    assert 20 == counted["audit.duplicates"]


async def test_the_position_is_where_to_resend_from(audit_database: Database) -> None:
    tenant, source = str(uuid4()), Source()
    async with audit_service(audit_database) as audit:
        async with audit.shipper(source) as shipper:
            assert 0 == shipper.position
            await shipper.ship(source.calls(tenant, 7))
            await audit.running.writer.save_positions_now()
        async with audit.shipper(source) as shipper:
            assert 7 == shipper.position


async def test_a_source_belongs_to_the_peer_that_opened_it(audit_database: Database) -> None:
    source = Source()
    async with audit_service(audit_database) as audit:
        async with audit.shipper(source, peer="proxy"):
            pass
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async with audit.shipper(source, peer="control"):
                pass

    assert "SOURCE_FOREIGN" == known(refused.value).reason


async def test_a_record_without_a_tenant_ends_the_stream(audit_database: Database) -> None:
    source = Source()
    entry = source.entry(str(uuid4()))
    entry.tenant_id = ""
    async with audit_service(audit_database) as audit, audit.shipper(source) as shipper:
        await shipper.send([entry])
        failure = await shipper.end()

    assert "TENANT_UNSET" == known(failure).reason


async def test_without_a_known_tenant_the_chain_is_system(audit_database: Database) -> None:
    source = Source()
    async with audit_service(audit_database) as audit, audit.shipper(source) as shipper:
        await shipper.ship([source.entry(NIL_TENANT, chain="system", type="auth.failed")])

    rows = await stored(audit_database, NIL_TENANT)
    assert ["chain.opened", "auth.failed"] == [row["type"] for row in rows]


@pytest.mark.parametrize(
    ("peer", "type_", "taken"),
    [
        ("proxy", "call.denied", True),
        ("proxy", "admin.agent.create", False),
        ("proxy", "record.rejected", False),
        ("control", "admin.agent.create", True),
        ("control", "call.intent", False),
        ("authorizer", "bundle.activated", True),
        ("authorizer", "user.signin", False),
        ("authorizer", "heartbeat", True),
    ],
)
async def test_a_peer_writes_only_its_own_types(
    audit_database: Database, peer: str, type_: str, *, taken: bool
) -> None:
    tenant, source = str(uuid4()), Source(kind=peer)
    entry = source.entry(tenant, chain="tenant", type=type_)
    async with audit_service(audit_database) as audit, audit.shipper(source, peer=peer) as shipper:
        await shipper.ship([entry])

    types = [row["type"] for row in await stored(audit_database, tenant)]
    assert taken == (type_ in types and "record.rejected" not in types)
    assert taken != (types[-1] == "record.rejected")


async def test_a_bad_record_is_kept_aside_and_its_neighbours_are_chained(
    audit_database: Database,
) -> None:
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 3)
    entries[1].body = entries[1].body.replace(b'"plane"', b'"Plane"')
    async with audit_service(audit_database) as audit:
        for _ in range(2):  # rejected once, however often it is sent
            async with audit.shipper(source) as shipper:
                await shipper.ship(entries)

    rows = await stored(audit_database, tenant)
    assert 2 == sum(row["chain"] == AGENT_CHAIN for row in rows)
    assert 1 == sum(row["type"] == "record.rejected" for row in rows)
    async with as_role(audit_database, "behavry_audit_reader", tenant) as connection:
        kept = await connection.fetch("SELECT n, reason, body FROM audit.rejected_records")
    assert [(2, "profile", entries[1].body)] == [tuple(row) for row in kept]


async def test_a_part_lies_beside_the_record_that_commits_to_it(audit_database: Database) -> None:
    tenant, source = str(uuid4()), Source()
    good = source.entry(tenant, parts=[("arguments", b'{"a":1}'), ("input", b"{}")])
    forged = source.entry(tenant, parts=[("arguments", b'{"a":1}')])
    forged.parts[0].stored = b'{"a":2}'
    async with audit_service(audit_database) as audit, audit.shipper(source) as shipper:
        await shipper.ship([good, forged])

    async with as_role(audit_database, "behavry_audit_reader", tenant) as connection:
        parts = await connection.fetch("SELECT event_id, kind, stored FROM audit.parts ORDER BY 2")
        reasons = await connection.fetch("SELECT reason FROM audit.rejected_records")
    assert [
        (good.event_id, "arguments", b'{"a":1}'),
        (good.event_id, "input", b"{}"),
    ] == [(str(row["event_id"]), row["kind"], row["stored"]) for row in parts]
    assert ["part_mismatch"] == [row["reason"] for row in reasons]


async def test_two_tenants_in_one_batch_are_acknowledged_together(
    audit_database: Database,
) -> None:
    one, two, source = str(uuid4()), str(uuid4()), Source()
    entries = [source.entry(tenant) for tenant in (one, two, one, two)]
    async with audit_service(audit_database) as audit, audit.shipper(source) as shipper:
        await shipper.ship(entries)

    for tenant in (one, two):
        rows = await stored(audit_database, tenant)
        assert [1, 2] == [row["seq"] for row in rows if row["chain"] == AGENT_CHAIN]
