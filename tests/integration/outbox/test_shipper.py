"""Records on their way to a real gRPC server: in order, again after every loss, until committed."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from behavry.audit.v1 import audit_pb2
from services.common.outbox.outbox import FileOutbox, Tuning
from services.common.outbox.parts import make_part
from services.common.outbox.shipper import IN_FLIGHT, MAX_RECORDS, Shipper, encode_batch
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from tests.fakes.append_server import AppendServer, serving, transport_to
from tests.fakes.outbox import denied, opened, stored_in

TUNING = Tuning(segment_bytes=1 << 18)


@pytest.fixture
def short() -> Iterator[Path]:
    """A socket's path has a limit."""
    directory = Path(tempfile.mkdtemp(prefix="bvo-"))
    yield directory
    shutil.rmtree(directory)


@asynccontextmanager
async def shipping(outbox: FileOutbox, address: str, directory: Path) -> AsyncIterator[Shipper]:
    async with transport_to(address, directory) as transport, asyncio.TaskGroup() as tasks:
        shipper = Shipper(
            outbox, transport, log=get_log("test"), counters=Counters(), gather_s=0.005
        )
        task = tasks.create_task(shipper.run())
        yield shipper
        task.cancel()


async def drained(outbox: FileOutbox) -> None:
    async with asyncio.timeout(10):
        await outbox.drained()


def expected(directory: Path) -> list[bytes]:
    return [one.entry.SerializeToString() for one in stored_in(directory)]


def came(server: AppendServer, outbox: FileOutbox) -> list[bytes]:
    return [entry.SerializeToString() for entry in server.sources[outbox.source].entries]


def test_a_batch_of_stored_records_is_what_protobuf_would_have_made() -> None:
    entries = [audit_pb2.Entry(pos=pos, body=b"x" * pos * 50) for pos in range(1, 9)]
    stored = [audit_pb2.StoredRecord(entry=entry).SerializeToString() for entry in entries]

    request = audit_pb2.AppendRequest.FromString(encode_batch(stored))

    assert audit_pb2.AppendRequest(batch=audit_pb2.Batch(entries=entries)) == request


async def test_records_arrive_in_order_as_they_were_stored(short: Path) -> None:
    server = AppendServer()
    part = make_part("input", b"{}" * 1000, mode="input")
    async with (
        serving(server, short) as address,
        opened(short / "w0", tuning=TUNING) as outbox,
        shipping(outbox, address, short),
    ):
        for _ in range(50):
            await outbox.put(denied(), parts=[part])
        await drained(outbox)

        assert expected(short / "w0") == came(server, outbox)
        assert 0 == outbox.pending
        assert 1 == server.streams


async def test_a_dropped_stream_costs_repetitions_and_no_record(short: Path) -> None:
    server = AppendServer()
    async with serving(server, short) as address, opened(short / "w0", tuning=TUNING) as outbox:
        server.drop_at = 3
        async with shipping(outbox, address, short):
            for round_ in range(8):
                await asyncio.gather(*(outbox.put(denied()) for _ in range(20)))
                if round_ < 3:
                    await server.came(round_ + 1)
            await drained(outbox)

            assert server.streams >= 2
            stored = [entry.pos for entry in server.sources[outbox.source].once()]
            assert list(range(1, outbox.last_pos + 1)) == sorted(stored)


async def test_an_absent_audit_loses_nothing(short: Path) -> None:
    async with (
        opened(short / "w0", tuning=TUNING) as outbox,
        shipping(outbox, f"unix:{short}/a.sock", short),
    ):
        await asyncio.gather(*(outbox.put(denied()) for _ in range(100)))
        assert outbox.pending > 0
        server = AppendServer()
        async with serving(server, short):
            await drained(outbox)

            assert expected(short / "w0") == came(server, outbox)


async def test_a_restart_continues_where_audit_is(short: Path) -> None:
    server = AppendServer()
    async with serving(server, short) as address:
        for _ in range(3):
            async with (
                opened(short / "w0", tuning=TUNING) as outbox,
                shipping(outbox, address, short),
            ):
                await outbox.put(denied())
                await drained(outbox)
        async with (
            opened(short / "w0", tuning=TUNING) as outbox,
            shipping(outbox, address, short),
        ):
            await drained(outbox)

        assert expected(short / "w0")[:-1] == came(server, outbox)  # but for the last "closed"
        assert 4 == len(set(server.sources[outbox.source].boots))


async def test_a_restored_audit_is_refilled(short: Path) -> None:
    server = AppendServer()
    async with serving(server, short) as address, opened(short / "w0", tuning=TUNING) as outbox:
        async with shipping(outbox, address, short):
            await asyncio.gather(*(outbox.put(denied()) for _ in range(50)))
            await drained(outbox)
        source = server.sources[outbox.source]
        source.position, source.entries = 10, source.entries[:10]  # yesterday's backup
        async with shipping(outbox, address, short):
            await outbox.put(denied())
            await server.until(lambda: len(source.once()) == outbox.last_pos)

            assert set(expected(short / "w0")) == set(came(server, outbox))


async def test_positions_that_this_directory_never_gave_are_not_believed(short: Path) -> None:
    server = AppendServer()
    async with serving(server, short) as address, opened(short / "w0", tuning=TUNING) as outbox:
        await outbox.put(denied())
        async with shipping(outbox, address, short):
            await drained(outbox)
        server.sources[outbox.source].position = 1_000
    async with serving(server, short) as address, opened(short / "w0", tuning=TUNING) as outbox:
        source = server.sources[outbox.source]
        source.entries = []
        async with shipping(outbox, address, short):
            await outbox.put(denied())
            await server.came(2)
            await server.holds(outbox.source, outbox.last_pos)

            assert expected(short / "w0") == came(server, outbox)


async def test_batches_and_flight_are_bounded(short: Path) -> None:
    server = AppendServer()
    async with serving(server, short) as address, opened(short / "w0", tuning=TUNING) as outbox:
        for _ in range(6):
            await asyncio.gather(*(outbox.put(denied(text="x" * 900)) for _ in range(2000)))
        server.answering.clear()
        async with shipping(outbox, address, short):
            await server.came(IN_FLIGHT)
            for _ in range(100):  # turns in which a ninth could be sent
                await asyncio.sleep(0)
            assert IN_FLIGHT == server.most_unanswered
            server.answering.set()
            await drained(outbox)

        assert max(len(batch.entries) for batch in server.batches) <= MAX_RECORDS
        assert max(batch.ByteSize() for batch in server.batches) <= 1 << 20
        assert outbox.last_pos == len(server.sources[outbox.source].entries)


async def test_a_record_beyond_a_batch_travels_alone(short: Path) -> None:
    server = AppendServer()
    async with serving(server, short) as address, opened(short / "w0") as outbox:
        async with shipping(outbox, address, short):
            await outbox.put(denied())
            await outbox.put(denied(), parts=[make_part("input", bytes(5 << 20), mode="input")])
            await outbox.put(denied())
            await drained(outbox)

        assert [1] == [len(b.entries) for b in server.batches if b.ByteSize() > 1 << 20]
        assert 4 == len(server.sources[outbox.source].entries)
