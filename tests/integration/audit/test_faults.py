"""Once only, whatever goes wrong: lost replies, two shippers, two writers, a database put back to
yesterday, a record that the database cannot take, a database that is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from behavry.audit.v1 import audit_pb2
from services.audit import store
from services.audit.chain import Head, beginning, link
from services.audit.plan import Plan
from services.common.postgres.pool import Pool, open_pool
from services.common.rpc.errors import known
from tests.fakes.audit import (
    AGENT_CHAIN,
    PATIENCE_S,
    AuditService,
    Shipper,
    Source,
    as_role,
    as_superuser,
    audit_service,
    stored,
)
from tests.fakes.postgres import Database
from tests.fakes.postgres_wire import PostgresWire, in_front_of
from tests.promises import promise

pytestmark = pytest.mark.needs_postgres

TABLES = (
    "events", "parts", "chain_heads", "source_marks", "rejected_records", "sources",
    "source_positions",
)  # fmt: skip


@pytest.fixture
async def wired(audit_database: Database) -> AsyncIterator[tuple[AuditService, PostgresWire]]:
    """The service with a wire between it and its database."""
    dsn = audit_database.dsn("behavry_audit_writer")
    async with (
        in_front_of(dsn) as (wire, through),
        audit_service(audit_database, writer_db_url=through) as audit,
    ):
        yield audit, wire


async def _verdict(audit: AuditService, tenant: str) -> tuple[str, list[tuple[str, int, str]]]:
    async with audit.reader() as (stub, link_):
        started = await stub.StartVerify(
            audit_pb2.StartVerifyRequest(tenant_id=tenant), metadata=link_.metadata(), timeout=5
        )
        watch = audit_pb2.WatchVerifyRequest(tenant_id=tenant, verify_id=started.verify_id)
        steps = [step async for step in stub.WatchVerify(watch, metadata=link_.metadata())]
    return steps[-1].verdict, [(f.chain, f.seq, f.code) for f in steps[-1].findings]


async def _ids(database: Database, tenant: str) -> list[str]:
    rows = await stored(database, tenant)
    return [str(row["event_id"]) for row in rows if row["chain"] == AGENT_CHAIN]


@promise("audit:stored-once")
async def test_a_lost_commit_reply_stores_every_record_once(
    audit_database: Database, wired: tuple[AuditService, PostgresWire]
) -> None:
    audit, wire = wired
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 60)
    async with audit.shipper(source) as shipper:
        for start in range(0, 60, 20):
            wire.lose_commit_replies(1)
            await shipper.ship(entries[start : start + 20])
            assert wire.lost.is_set()  # of a first batch, and of usual ones: each its own way

    assert [entry.event_id for entry in entries] == await _ids(audit_database, tenant)
    assert 60 == audit.running.counters.read()["audit.duplicates"]
    assert ("ok", []) == await _verdict(audit, tenant)


async def test_with_the_mark_switched_off_a_lost_commit_reply_is_not_survived(
    audit_database: Database,
    wired: tuple[AuditService, PostgresWire],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shows that the test above has teeth: it is the mark that tells what was stored."""
    load = store.load

    async def without_marks(*arguments: Any) -> store.Ends:
        ends = await load(*arguments)
        return store.Ends(heads=ends.heads, marks={})

    monkeypatch.setattr(store, "load", without_marks)
    audit, wire = wired
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 20)
    async with audit.shipper(source) as shipper:
        wire.lose_commit_replies(1)
        await shipper.send(entries)
        failure = await shipper.end()

    assert "CHAIN_FENCED" == known(failure).reason


@promise("audit:stored-once")
async def test_two_shippers_alive_on_one_source_store_every_record_once(
    audit_database: Database,
) -> None:
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 200)
    async with audit_service(audit_database) as audit:
        async with audit.shipper(source) as one, audit.shipper(source) as two:

            async def ship(shipper: Shipper) -> None:
                for start in range(0, 200, 20):
                    await shipper.send(entries[start : start + 20])
                await shipper.acked(entries[-1].pos)

            async with asyncio.TaskGroup() as both:
                both.create_task(ship(one))
                both.create_task(ship(two))
        verdict = await _verdict(audit, tenant)

    assert sorted(entry.event_id for entry in entries) == sorted(await _ids(audit_database, tenant))
    assert ("ok", []) == verdict


async def test_two_writers_on_one_tenant_make_one_unbroken_chain(audit_database: Database) -> None:
    tenant = str(uuid4())
    async with audit_service(audit_database) as first, audit_service(audit_database) as second:

        async def ship(audit: AuditService) -> None:
            source = Source()
            async with audit.shipper(source) as shipper:
                for _ in range(25):
                    await shipper.ship(source.calls(tenant, 4))

        async with asyncio.TaskGroup() as both:
            both.create_task(ship(first))
            both.create_task(ship(second))
        verdict = await _verdict(first, tenant)
        fenced = [audit.running.counters.read()["audit.fenced"] for audit in (first, second)]

    assert 200 == len(await _ids(audit_database, tenant))
    assert ("ok", []) == verdict
    assert [0, 0] == fenced


async def test_records_that_come_late_are_appended_once_and_a_jump_is_noted(
    audit_database: Database,
) -> None:
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 6)
    async with audit_service(audit_database) as audit:
        async with audit.shipper(source) as shipper:
            await shipper.ship([entries[0], entries[4], entries[5]])
            await shipper.ship(entries[1:4])
            await shipper.ship(entries)
        verdict = await _verdict(audit, tenant)

    assert [entries[i].event_id for i in (0, 4, 5, 1, 2, 3)] == await _ids(audit_database, tenant)
    types = [row["type"] for row in await stored(audit_database, tenant)]
    assert 1 == types.count("source.gap")
    assert ("ok", []) == verdict


async def test_a_jump_that_was_noted_is_no_finding(audit_database: Database) -> None:
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 6)
    async with audit_service(audit_database) as audit:
        async with audit.shipper(source) as shipper:
            await shipper.ship([entries[0], entries[5]])
        verdict = await _verdict(audit, tenant)

    assert ("ok", []) == verdict


async def test_another_body_under_a_stored_id_is_a_conflict_told_once(
    audit_database: Database,
) -> None:
    tenant, source = str(uuid4()), Source()
    entry = source.entry(tenant, tool="read")
    other = audit_pb2.Entry()
    other.CopyFrom(entry)
    other.body = entry.body.replace(b'"read"', b'"kill"')
    async with audit_service(audit_database) as audit:
        async with audit.shipper(source) as shipper:
            await shipper.ship([entry])
            await shipper.ship([other])
            await shipper.ship([other])
        verdict = await _verdict(audit, tenant)

    rows = await stored(audit_database, tenant)
    assert [entry.body] == [row["body"] for row in rows if row["chain"] == AGENT_CHAIN]
    assert 1 == sum(row["type"] == "source.conflict" for row in rows)
    assert ("ok", []) == verdict


@promise("audit:stored-once")
async def test_a_database_put_back_to_yesterday_is_noticed_and_refilled(
    audit_database: Database,
) -> None:
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 51, parts=[("input", b"{}")])
    async with audit_service(audit_database) as audit:
        async with audit.shipper(source) as shipper:
            await shipper.ship(entries[:20])
            await audit.running.writer.save_positions_now()
            await _back_up(audit_database)
            await shipper.ship(entries[20:50])
            await _put_back(audit_database)
            await shipper.send(entries[50:])
            failure = await shipper.end()
        async with audit.shipper(source) as shipper:
            position = shipper.position
            await shipper.ship([entry for entry in entries if entry.pos > position])
        verdict = await _verdict(audit, tenant)

    assert "CHAIN_FENCED" == known(failure).reason
    assert 20 == position
    assert [entry.event_id for entry in entries] == await _ids(audit_database, tenant)
    assert ("ok", []) == verdict


async def test_a_database_put_back_is_noticed_even_where_no_chain_tells(
    audit_database: Database,
) -> None:
    """Only another tenant's records come after the restore: the position itself is behind."""
    tenant, other, source = str(uuid4()), str(uuid4()), Source()
    async with audit_service(audit_database) as audit:
        async with audit.shipper(source) as shipper:
            await shipper.ship(source.calls(tenant, 20))
            await audit.running.writer.save_positions_now()
            await _back_up(audit_database)
            await shipper.ship(source.calls(tenant, 30))
            await audit.running.writer.save_positions_now()
            await _put_back(audit_database)
            await shipper.send(source.calls(other, 1))
            failure = await shipper.end()
        async with audit.shipper(source) as shipper:
            assert 20 == shipper.position

    assert "CHAIN_FENCED" == known(failure).reason


async def test_a_shipper_from_zero_stores_nothing_twice(audit_database: Database) -> None:
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 100)
    for _ in range(3):  # each time a new process that remembers nothing
        async with audit_service(audit_database) as audit, audit.shipper(source) as shipper:
            await shipper.ship(entries)

    assert [entry.event_id for entry in entries] == await _ids(audit_database, tenant)


async def test_a_record_that_the_database_cannot_take_stands_alone(
    audit_database: Database,
) -> None:
    await as_superuser(
        audit_database,
        """CREATE FUNCTION audit.choke() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.tool IN ('tool_13', 'tool_77') THEN
                RAISE EXCEPTION USING ERRCODE = 'data_exception';
            END IF; RETURN NEW; END $$""",
        """CREATE TRIGGER choke BEFORE INSERT ON audit.events_default
            FOR EACH ROW EXECUTE FUNCTION audit.choke()""",
    )
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 100)
    async with audit_service(audit_database) as audit:
        async with audit.shipper(source) as shipper:
            await shipper.ship(entries)
            await shipper.ship(entries)
        verdict = await _verdict(audit, tenant)

    good = [entry.event_id for i, entry in enumerate(entries) if i not in {13, 77}]
    assert good == await _ids(audit_database, tenant)
    async with as_role(audit_database, "behavry_audit_reader", tenant) as connection:
        kept = await connection.fetch("SELECT n, reason FROM audit.rejected_records ORDER BY n")
    assert [(14, "data_error"), (78, "data_error")] == [tuple(row) for row in kept]
    rows = await stored(audit_database, tenant)
    assert 2 == sum(row["type"] == "record.rejected" for row in rows)
    assert ("ok", []) == verdict


async def test_while_the_database_is_away_nothing_is_acknowledged_and_then_everything(
    audit_database: Database, wired: tuple[AuditService, PostgresWire]
) -> None:
    audit, wire = wired
    tenant, source = str(uuid4()), Source()
    entries = source.calls(tenant, 30)
    async with audit.shipper(source) as shipper:
        await shipper.ship(entries[:10])
        await _health(audit, serving=True)
        wire.cut()
        await shipper.send(entries[10:])
        await _health(audit, serving=False)
        assert 10 == len(await _ids(audit_database, tenant))
        wire.mend()
        await shipper.acked(entries[-1].pos)

    assert [entry.event_id for entry in entries] == await _ids(audit_database, tenant)
    await _health(audit, serving=True)
    assert ("ok", []) == await _verdict(audit, tenant)


async def test_the_service_starts_while_the_database_is_away(
    audit_database: Database,
) -> None:
    dsn = audit_database.dsn("behavry_audit_writer")
    tenant, source = str(uuid4()), Source()
    async with in_front_of(dsn) as (wire, through):
        wire.cut()
        async with audit_service(audit_database, writer_db_url=through) as audit:
            await _health(audit, serving=False)
            wire.mend()
            async with audit.shipper(source) as shipper:
                await shipper.ship(source.calls(tenant, 3))

    assert 3 == len(await _ids(audit_database, tenant))


async def test_a_head_that_moved_behind_the_writers_back_keeps_it_out(
    audit_database: Database,
) -> None:
    tenant = str(uuid4())
    first = beginning(AGENT_CHAIN)
    one = link(first, tenant=tenant, body=b"{}", now_us=1).head
    two = link(one, tenant=tenant, body=b"{}", now_us=1).head
    async with open_pool(audit_database.dsn("behavry_audit_writer"), max_size=1) as pool:
        await _move(pool, tenant, first, one)
        for stale in (first, one._replace(event_hash=bytes(32))):
            with pytest.raises(store.Fenced):
                await _move(pool, tenant, stale, two)
        async with store.transaction(pool, tenant) as connection:
            ends = await store.load(connection, tenant, [AGENT_CHAIN], [])

    assert {AGENT_CHAIN: one} == ends.heads


async def _move(pool: Pool, tenant: str, old: Head, new: Head) -> None:
    async with store.transaction(pool, tenant) as connection:
        await store.write(connection, tenant, Plan(rows=[], heads=[(old, new)], marks=[]))


async def _health(audit: AuditService, *, serving: bool) -> None:
    """Waits until `dep.postgres` says so; the service as a whole serves all along."""
    wanted = (
        health_pb2.HealthCheckResponse.SERVING
        if serving
        else health_pb2.HealthCheckResponse.NOT_SERVING
    )
    async with grpc.aio.insecure_channel(audit.running.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        whole = await stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=PATIENCE_S)
        assert health_pb2.HealthCheckResponse.SERVING == whole.status
        request = health_pb2.HealthCheckRequest(service="dep.postgres")
        async with asyncio.timeout(PATIENCE_S):
            while (await stub.Check(request)).status != wanted:
                pass


async def _back_up(database: Database) -> None:
    await as_superuser(
        database,
        "CREATE SCHEMA backup",
        *(f"CREATE TABLE backup.{table} AS TABLE audit.{table}" for table in TABLES),
    )


async def _put_back(database: Database) -> None:
    await as_superuser(
        database,
        *(f"TRUNCATE audit.{table}" for table in TABLES),
        *(f"INSERT INTO audit.{table} SELECT * FROM backup.{table}" for table in TABLES),
    )
