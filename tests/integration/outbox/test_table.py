"""The table outbox: a record exists exactly when its change does, gets its number once, and is sent
until audit has it.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from behavry.audit.v1 import audit_pb2
from services.common.clock import SystemClock
from services.common.ids import NIL_TENANT, TenantId
from services.common.outbox.record import ProfileError, Record, check_profile
from services.common.outbox.table import TableOutbox
from services.common.outbox.transport import GrpcTransport
from services.common.postgres.pool import Pool, open_pool, tenant_tx
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from tests.fakes.append_server import AppendServer, Source, serving, transport_to
from tests.fakes.outbox import ORIGIN, OTHER, TENANT
from tests.fakes.postgres import Database

pytestmark = pytest.mark.needs_postgres


@pytest.fixture
def short() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="bvo-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def dsn(control_database: Database) -> str:
    return control_database.dsn("behavry_control")


def table_outbox() -> TableOutbox:
    return TableOutbox(
        schema="control",
        origin=ORIGIN,
        clock=SystemClock(),
        counters=Counters(),
        log=get_log("test"),
    )


def change(tenant: TenantId = TENANT, **fields: object) -> Record:
    return Record(type="admin.agent.create", tenant=tenant, chain="admin", at_us=1, fields=fields)


async def recorded(pool: Pool, outbox: TableOutbox, tenant: TenantId = TENANT) -> str:
    async with tenant_tx(pool, tenant) as connection:
        event_id = await outbox.put(connection, change(tenant))
    outbox.wake()
    return event_id


async def undone(pool: Pool, outbox: TableOutbox) -> None:
    async with tenant_tx(pool, TENANT) as connection:
        await outbox.put(connection, change(reason="undone"))
        raise ZeroDivisionError


@asynccontextmanager
async def shipping(
    outbox: TableOutbox, dsn: str, transport: GrpcTransport
) -> AsyncIterator[asyncio.Task[None]]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(outbox.run(dsn, transport))
        yield task
        task.cancel()


async def holds(server: AppendServer, count: int) -> Source:
    """Until the one source has sent `count` different records."""
    await server.until(lambda: any(len(s.once()) >= count for s in server.sources.values()))
    (source,) = server.sources.values()
    return source


def changes(source: Source) -> list[audit_pb2.Entry]:
    return [entry for entry in source.once() if entry.tenant_id != NIL_TENANT]


def gap_free(entries: list[audit_pb2.Entry]) -> bool:
    numbers: dict[tuple[str, str], list[int]] = {}
    for entry in entries:
        numbers.setdefault((entry.boot, entry.tenant_id), []).append(entry.n)
    return all(sorted(found) == list(range(1, len(found) + 1)) for found in numbers.values())


async def test_a_record_is_there_exactly_when_its_change_is(dsn: str, short: Path) -> None:
    server, outbox = AppendServer(), table_outbox()
    async with (
        serving(server, short) as address,
        transport_to(address, short) as transport,
        open_pool(dsn) as pool,
        shipping(outbox, dsn, transport),
    ):
        with pytest.raises(ZeroDivisionError):
            await undone(pool, outbox)
        kept = [await recorded(pool, outbox, tenant) for tenant in (TENANT, OTHER, TENANT)]
        source = await holds(server, 4)

    entries = changes(source)
    assert kept == [entry.event_id for entry in entries]
    assert [1, 1, 2] == [entry.n for entry in entries]
    for entry in source.once():
        body = check_profile(entry.body)
        assert (entry.event_id, entry.tenant_id, entry.chain) == (
            body["id"], body["tenant"], body["chain"],
        )  # fmt: skip
        assert (entry.boot, entry.n) == (body["src"]["boot"], body["src"]["n"])
    assert b'"source.opened"' in source.entries[0].body


async def test_a_record_outside_the_profile_undoes_its_change(dsn: str) -> None:
    async with open_pool(dsn) as pool:
        with pytest.raises(ProfileError):
            async with tenant_tx(pool, TENANT) as connection:
                await table_outbox().put(connection, change(score=0.5))


async def test_what_commits_late_is_numbered_late_and_not_lost(dsn: str, short: Path) -> None:
    server, outbox = AppendServer(), table_outbox()
    async with (
        serving(server, short) as address,
        transport_to(address, short) as transport,
        open_pool(dsn) as pool,
        shipping(outbox, dsn, transport),
    ):
        async with tenant_tx(pool, TENANT) as connection:
            early = await outbox.put(connection, change())
            overtaking = [await recorded(pool, outbox) for _ in range(5)]
            await holds(server, 6)
        outbox.wake()
        source = await holds(server, 7)

    assert [*overtaking, early] == [entry.event_id for entry in changes(source)]
    assert gap_free(source.once())


async def test_a_lost_acknowledgement_repeats_the_same_bytes(dsn: str, short: Path) -> None:
    server, outbox = AppendServer(), table_outbox()
    server.drop_at = 0
    async with (
        serving(server, short) as address,
        transport_to(address, short) as transport,
        open_pool(dsn) as pool,
        shipping(outbox, dsn, transport),
    ):
        ids = [await recorded(pool, outbox) for _ in range(3)]
        source = await holds(server, 4)
        await server.until(lambda: server.streams == 2 and source.position == 4)

    sent: dict[str, set[bytes]] = {}
    for entry in source.entries:
        sent.setdefault(entry.event_id, set()).add(entry.SerializeToString())
    assert set(ids) <= set(sent)
    assert {1} == {len(bytes_) for bytes_ in sent.values()}
    assert len(source.entries) > len(sent)


async def test_a_restart_is_a_new_boot_that_sends_what_the_old_one_numbered(
    dsn: str, short: Path
) -> None:
    server = AppendServer()
    server.answering.clear()
    async with (
        serving(server, short) as address,
        transport_to(address, short) as transport,
        open_pool(dsn) as pool,
    ):
        outbox = table_outbox()
        async with shipping(outbox, dsn, transport):
            first = await recorded(pool, outbox)
            await holds(server, 2)
        server.answering.set()
        outbox = table_outbox()
        async with shipping(outbox, dsn, transport):
            second = await recorded(pool, outbox)
            source = await holds(server, 5)

    types = [check_profile(entry.body)["type"] for entry in source.once()]
    assert [
        "source.opened", "admin.agent.create", "source.closed",
        "source.opened", "admin.agent.create",
    ] == types  # fmt: skip
    assert [first, second] == [entry.event_id for entry in changes(source)]
    boots = [entry.boot for entry in source.once()]
    assert boots[0] == boots[2] < boots[3] == boots[4]
    opened = check_profile(source.once()[3].body)
    assert boots[0] == opened["previous_boot"]
    assert {"tenant": TENANT, "n": 1} in opened["last"]
    assert gap_free(source.once())


async def test_two_shippers_take_turns_and_number_everything_once(dsn: str, short: Path) -> None:
    server, first, second = AppendServer(), table_outbox(), table_outbox()
    async with (
        serving(server, short) as address,
        transport_to(address, short) as transport,
        open_pool(dsn) as pool,
        asyncio.TaskGroup() as tasks,
    ):
        leading = tasks.create_task(first.run(dsn, transport))
        await holds(server, 1)
        waiting = tasks.create_task(second.run(dsn, transport))
        for _ in range(5):
            await recorded(pool, first)
        source = await holds(server, 6)
        assert 1 == len(set(source.boots))

        leading.cancel()
        for _ in range(5):
            await recorded(pool, second)
        source = await holds(server, 13)
        waiting.cancel()

    assert 2 == len(set(source.boots))
    assert 10 == len(changes(source))
    assert gap_free(source.once())


async def test_a_shipper_that_lost_its_connection_ends_and_the_next_goes_on(
    control_database: Database, dsn: str, short: Path
) -> None:
    server, outbox = AppendServer(), table_outbox()
    admin = await asyncpg.connect(control_database.admin_dsn)
    async with (
        serving(server, short) as address,
        transport_to(address, short) as transport,
        open_pool(dsn) as pool,
    ):
        failed = asyncio.gather(outbox.run(dsn, transport), return_exceptions=True)
        await recorded(pool, outbox)
        await holds(server, 2)
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'outbox' AND datname = current_database()"
        )
        await recorded(pool, outbox)
        async with asyncio.timeout(5):
            (failure,) = await failed
        assert isinstance(failure, BaseException)
        async with shipping(outbox, dsn, transport):
            source = await holds(server, 4)
    await admin.close()

    assert 2 == len(changes(source))
    assert gap_free(source.once())


async def test_no_tenant_sees_or_changes_what_is_recorded(dsn: str) -> None:
    outbox = table_outbox()
    async with open_pool(dsn) as pool:
        await recorded(pool, outbox)
        async with pool.acquire() as connection:
            assert 0 == await connection.fetchval("SELECT count(*) FROM control.outbox")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await outbox.put(connection, change())
        async with tenant_tx(pool, OTHER) as connection:
            assert 0 == await connection.fetchval("SELECT count(*) FROM control.outbox")
        async with tenant_tx(pool, OTHER) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await outbox.put(connection, change(TENANT))
        async with tenant_tx(pool, TENANT) as connection:
            assert 1 == await connection.fetchval("SELECT count(*) FROM control.outbox")
            assert "UPDATE 0" == await connection.execute("UPDATE control.outbox SET draft = ''")
            assert "DELETE 0" == await connection.execute("DELETE FROM control.outbox")
