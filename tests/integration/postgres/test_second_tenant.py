"""The second tenant that every database holds (databases.py): it has of everything, and whoever
lets something of it through, or changes it, is found out. The twins of what other tests rely on.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from behavry.audit.v1 import audit_pb2
from behavry.entitlements.v1 import entitlements_pb2 as wire
from services.common.postgres import roles
from tests.fakes import databases, planted
from tests.fakes.audit import Source, as_role, audit_service
from tests.fakes.clock import ManualClock
from tests.fakes.lending import Lending
from tests.fakes.neighbour import MARK, TENANT, Crossed, marked_id
from tests.fakes.postgres import Database
from tests.integration.entitlements.desk import Told, serving

pytestmark = pytest.mark.needs_postgres

#: Control's rows are the business of integration/control.
SERVICES = ("audit", "entitlements")


async def as_admin(database: Database, statement: str, *values: object) -> None:
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(statement, *values)
    finally:
        await connection.close()


async def test_it_has_rows_in_every_table_with_tenants(database: Database) -> None:
    assert set(SERVICES) <= set(roles.SCHEMAS)
    connection = await asyncpg.connect(database.admin_dsn)
    tables = await planted.tables_of(connection, SERVICES)
    found = await planted.state_of(connection, tables)
    await connection.close()

    assert len(tables) >= 10
    assert [] == [table for table, state in found.items() if state.startswith("0 ")]


async def test_its_chains_verify_and_are_its_own(audit_database: Database) -> None:
    """Their verdict, asked for by itself: whoever else asked was told nothing of seven records."""
    async with audit_service(audit_database) as audit, audit.link("control") as link:
        stub = audit.reader_stub(link)
        started = await stub.StartVerify(
            audit_pb2.StartVerifyRequest(tenant_id=TENANT), metadata=link.metadata(), timeout=5
        )
        watch = audit_pb2.WatchVerifyRequest(tenant_id=TENANT, verify_id=started.verify_id)
        steps = [step async for step in stub.WatchVerify(watch, metadata=link.metadata())]

    assert ("ok", []) == (steps[-1].verdict, list(steps[-1].findings))
    assert steps[-1].chains >= 4


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit.parts SET stored = 'x' WHERE tenant_id = $1",
        "DELETE FROM audit.chain_heads WHERE tenant_id = $1",
        "INSERT INTO audit.source_marks VALUES ($1, gen_random_uuid(), gen_random_uuid(), 1)",
    ],
    ids=["changed", "gone", "more"],
)
def test_a_row_of_it_that_changed_fails_the_test(lending: Lending, change: str) -> None:
    """The end of the fixture is where."""
    made = databases.beside(lending, "audit")
    database = next(made)
    asyncio.run(as_admin(database, change, TENANT))

    with pytest.raises(AssertionError):
        next(made)


async def test_audits_answers_are_looked_at(audit_database: Database) -> None:
    """Its records under another tenant's name: what a query without its tenant would find."""
    tenant, source = str(uuid4()), Source()
    async with audit_service(audit_database) as audit:
        async with audit.shipper(source) as shipper:
            await shipper.ship(source.calls(tenant, 1))
        await as_admin(
            audit_database, "UPDATE audit.events SET tenant_id = $1 WHERE tenant_id = $2",
            tenant, TENANT,
        )  # fmt: skip
        audit_database.may_change["audit.events"] = "the planted leak"
        id_ = marked_id(0x20)
        async with audit.reader() as (stub, link):
            for method, request in (
                ("ListTraces", audit_pb2.ListTracesRequest(tenant_id=tenant)),
                ("GetTrace", audit_pb2.GetTraceRequest(tenant_id=tenant, id=id_)),
            ):
                with pytest.raises(Crossed):
                    await getattr(stub, method)(request, metadata=link.metadata(), timeout=5)
        with pytest.raises(Crossed):
            async with as_role(audit_database, "behavry_audit_reader", tenant) as connection:
                await connection.fetch("SELECT body FROM audit.events")


async def test_entitlements_answers_are_looked_at(
    tmp_path: Path, entitlements_database: Database
) -> None:
    async with serving(tmp_path, entitlements_database, ManualClock()) as desk:
        tenant = await desk.tenant()
        assert [] == await desk.history(tenant)
        await as_admin(
            entitlements_database,
            "UPDATE entitlements.overrides SET tenant_id = $1 WHERE tenant_id = $2",
            tenant, TENANT,
        )  # fmt: skip
        entitlements_database.may_change["entitlements.overrides"] = "the planted leak"

        with pytest.raises(Crossed):
            await desk.history(tenant)


async def test_what_a_watch_tells_of_others_is_looked_at() -> None:
    """Control hears of every tenant; of the second one, by its own news alone."""
    own = wire.TenantEntitlements(tenant_id=TENANT)
    leak = wire.TenantEntitlements(tenant_id=str(uuid4()), license=wire.License(customer=MARK))
    messages = iter([own, leak])

    class Stream:
        async def read(self) -> object:
            return wire.WatchEntitlementsResponse(tenant=next(messages))

    told = Told(Stream())
    with pytest.raises(Crossed):
        await told.read()

    assert [TENANT] == [one.tenant_id for one in told.beside]
