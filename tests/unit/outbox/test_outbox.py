"""One outbox, one directory: numbers, durability, open calls, what a restart makes of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from behavry.audit.v1 import audit_pb2
from services.common.ids import NIL_TENANT
from services.common.outbox.files import DirectoryLock, DirectoryTaken
from services.common.outbox.outbox import MARK_EVERY, Tuning
from services.common.outbox.parts import make_part
from services.common.outbox.pressure import Budget
from services.common.outbox.record import ProfileError, check_profile
from services.common.telemetry.counters import Counters
from tests.fakes.clock import ManualClock
from tests.fakes.disk import ScriptedFiles
from tests.fakes.outbox import (
    OTHER,
    TENANT,
    denied,
    intent,
    numbers_are_gap_free,
    opened,
    outcome,
    record,
    stored_in,
    types_in,
)


async def test_a_record_is_stored_as_a_canonical_body_beside_its_number(tmp_path: Path) -> None:
    part = make_part("input", b"{}", mode="input")
    async with opened(tmp_path) as outbox:
        event_id = await outbox.put(intent(input={"commit": part.commit, "size": 2}), parts=[part])
        source, boot = outbox.source, outbox.boot

    stored = next(one for one in stored_in(tmp_path) if one.entry.event_id == event_id)
    body = check_profile(stored.entry.body)
    assert (TENANT, 1, boot) == (stored.entry.tenant_id, stored.entry.n, stored.entry.boot)
    assert stored.pos == stored.entry.pos
    assert {
        "kind": "proxy", "id": source, "boot": boot, "n": 1, "version": "0.0.0",
    } == body["src"]  # fmt: skip
    assert ("behavry.record/1", "call.intent", event_id) == (body["v"], body["type"], body["id"])
    assert [audit_pb2.Part(kind="input", mode="input", salt=part.salt, stored=b"{}")] == list(
        stored.entry.parts
    )


async def test_numbers_have_no_gap_per_tenant(tmp_path: Path) -> None:
    async with opened(tmp_path) as outbox:
        await asyncio.gather(
            *(
                outbox.put(record("call.denied", tenant=[TENANT, OTHER][number % 2]))
                for number in range(100)
            )
        )

    stored = stored_in(tmp_path)
    assert numbers_are_gap_free(stored)
    assert 50 == max(one.entry.n for one in stored if one.entry.tenant_id == OTHER)


async def test_a_record_outside_the_profile_takes_no_number(tmp_path: Path) -> None:
    async with opened(tmp_path) as outbox:
        with pytest.raises(ProfileError):
            await outbox.put(denied(score=0.5))
        await outbox.put(denied(score=5))

    assert numbers_are_gap_free(stored_in(tmp_path))


async def test_an_intent_is_synced_before_it_is_acknowledged(tmp_path: Path) -> None:
    files = ScriptedFiles()
    async with opened(tmp_path, files=files) as outbox:
        for _ in range(50):
            before = len(files.operations)
            await outbox.put(intent())
            done = files.operations[before:]
            assert ["write", "sync_data"] == done[:2]


async def test_an_outcome_is_written_at_once_and_synced_soon(tmp_path: Path) -> None:
    files = ScriptedFiles()
    synced = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(operation: str) -> None:
        if operation == "sync_data":
            loop.call_soon_threadsafe(synced.set)

    async with opened(tmp_path, files=files) as outbox:
        event_id = await outbox.put(intent())
        files.hook = tell
        before = len(files.operations)
        await outbox.put(outcome(event_id), durable=False)
        assert ["write"] == files.operations[before:]

        began = loop.time()
        async with asyncio.timeout(5):
            await synced.wait()

    assert loop.time() - began < 0.5  # 50 ms on a machine that has nothing else to do


async def test_all_who_wait_share_one_write_and_one_sync(tmp_path: Path) -> None:
    counters = Counters()
    async with opened(tmp_path, counters=counters) as outbox:
        before = counters.counter("outbox.syncs").value
        await asyncio.gather(*(outbox.put(intent()) for _ in range(256)))

        assert counters.counter("outbox.syncs").value - before <= 3


async def test_a_lone_caller_costs_one_sync_per_record(tmp_path: Path) -> None:
    counters = Counters()
    async with opened(tmp_path, counters=counters) as outbox:
        before = counters.counter("outbox.syncs").value
        for _ in range(100):
            await outbox.put(denied())

        assert 100 == counters.counter("outbox.syncs").value - before


async def test_process_durability_acknowledges_after_the_write(tmp_path: Path) -> None:
    files = ScriptedFiles()
    tuning = Tuning(durability="process", segment_bytes=1 << 20)
    async with opened(tmp_path, files=files, tuning=tuning) as outbox:
        before = len(files.operations)
        await outbox.put(intent())

        assert ["write"] == files.operations[before:]


async def test_a_vanished_caller_cancels_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as outbox:
        task = asyncio.get_running_loop().create_task(outbox.put(intent()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await outbox.flush()
        assert 1 == len(outbox.open_intents)

    assert "call.intent" in types_in(tmp_path)


async def test_segments_roll_and_nothing_is_lost_between_them(tmp_path: Path) -> None:
    async with opened(tmp_path, tuning=Tuning(segment_bytes=4096)) as outbox:
        ids = [await outbox.put(denied(reason="r" * 500)) for _ in range(40)]
        big = await outbox.put(denied(reason="b" * 9000))

    assert len(list(tmp_path.glob("*.seg"))) > 5
    stored = stored_in(tmp_path)
    assert [*ids, big] == [one.entry.event_id for one in stored if one.type == "call.denied"]
    assert list(range(1, len(stored) + 1)) == [one.pos for one in stored]


async def test_files_are_private(tmp_path: Path) -> None:
    async with opened(tmp_path / "w0") as outbox:
        await outbox.put(denied())

    assert 0o700 == (tmp_path / "w0").stat().st_mode & 0o777
    assert {0o600} == {path.stat().st_mode & 0o777 for path in (tmp_path / "w0").iterdir()}


async def test_a_restart_is_the_same_source_with_another_boot(tmp_path: Path) -> None:
    async with opened(tmp_path) as outbox:
        await outbox.put(denied())
        first = (outbox.source, outbox.boot)
    async with opened(tmp_path) as outbox:
        await outbox.put(denied())
        second = (outbox.source, outbox.boot)

    assert first[0] == second[0]
    assert first[1] < second[1]
    stored = stored_in(tmp_path)
    assert [
        "source.opened", "call.denied", "source.closed",
        "source.opened", "call.denied", "source.closed",
    ] == [one.type for one in stored]  # fmt: skip
    assert list(range(1, 7)) == [one.pos for one in stored]
    assert first[1] == stored[3].body["previous_boot"]
    assert [{"tenant": NIL_TENANT, "n": 2}, {"tenant": TENANT, "n": 1}] == stored[3].body["last"]
    assert numbers_are_gap_free(stored)


async def test_segments_that_were_taken_away_make_another_source(tmp_path: Path) -> None:
    async with opened(tmp_path) as outbox:
        first = outbox.source
    for path in tmp_path.glob("*.seg"):
        path.unlink()

    async with opened(tmp_path) as outbox:
        assert first != outbox.source


async def test_a_lost_name_is_found_in_the_segments(tmp_path: Path) -> None:
    async with opened(tmp_path) as outbox:
        first = outbox.source
    (tmp_path / "source.json").unlink()

    async with opened(tmp_path) as outbox:
        assert first == outbox.source


async def test_a_call_without_outcome_is_ended_as_unknown_exactly_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as outbox:
        left = await outbox.put(intent(actor={"kind": "agent", "id": "a"}))
        ended = await outbox.put(intent())
        await outbox.put(outcome(ended))
        assert {left} == outbox.open_intents
    for _ in range(2):
        async with opened(tmp_path) as outbox:
            assert not outbox.open_intents

    unknown = [one.body for one in stored_in(tmp_path) if one.type == "call.outcome_unknown"]
    assert [left] == [body["decision"] for body in unknown]
    assert {"kind": "agent", "id": "a"} == unknown[0]["actor"]
    assert "indeterminate" == unknown[0]["status"]


async def test_two_owners_of_one_directory_are_impossible(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(DirectoryTaken):
            DirectoryLock(tmp_path)

    DirectoryLock(tmp_path).release()


async def test_a_mark_follows_every_thousand_records_of_a_tenant(tmp_path: Path) -> None:
    async with opened(tmp_path) as outbox:
        await asyncio.gather(*(outbox.put(denied()) for _ in range(MARK_EVERY + 5)))

    marks = [one for one in stored_in(tmp_path) if one.type == "source.mark"]
    assert [(TENANT, MARK_EVERY, MARK_EVERY + 1)] == [
        (one.entry.tenant_id, one.body["last_n"], one.entry.n) for one in marks
    ]


async def test_heartbeats_name_the_tenants_that_moved(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock=clock) as outbox:
        await outbox.put(denied())
        outbox.tick()
        clock.advance(60)
        outbox.tick()
        clock.advance(60)
        outbox.tick()

    beats = [one.body for one in stored_in(tmp_path) if one.type == "heartbeat"]
    assert 2 == len(beats)
    assert {"tenant": TENANT, "n": 1} in beats[0]["last"]
    assert {"tenant": TENANT, "n": 1} not in beats[1]["last"]
    assert {("system", NIL_TENANT)} == {(body["chain"], body["tenant"]) for body in beats}


async def test_marks_come_hourly_too(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock=clock) as outbox:
        await outbox.put(denied())
        for _ in range(2):
            clock.advance(3600)
            outbox.tick()

    marks = [one.body["last_n"] for one in stored_in(tmp_path) if one.type == "source.mark"]
    assert [1, 2] == marks  # the first mark is itself a record of the tenant


async def test_a_segment_goes_when_committed_and_old(tmp_path: Path) -> None:
    clock = ManualClock()
    tuning = Tuning(segment_bytes=4096)
    async with opened(tmp_path, clock=clock, tuning=tuning) as outbox:
        for _ in range(20):
            await outbox.put(denied(reason="r" * 500))
        count = len(list(tmp_path.glob("*.seg")))
        clock.advance(25 * 3600)
        await outbox.reclaim()
        assert count == len(list(tmp_path.glob("*.seg")))  # not committed

        await outbox.committed(outbox.last_pos - 1)
        await outbox.reclaim()
        assert 1 == len(list(tmp_path.glob("*.seg")))


async def test_a_young_segment_stays_until_a_quarter_is_used(tmp_path: Path) -> None:
    tuning = Tuning(segment_bytes=4096)
    budget = Budget(1 << 20)
    async with opened(tmp_path, budget=budget, tuning=tuning) as outbox:
        for _ in range(20):
            await outbox.put(denied(reason="r" * 500))
        await outbox.committed(outbox.last_pos)
        await outbox.reclaim()
        assert len(list(tmp_path.glob("*.seg"))) > 1

        budget.max_bytes = 4 * budget.used_bytes - 1
        await outbox.reclaim()
        remaining = len(list(tmp_path.glob("*.seg")))

    assert remaining >= 1
    assert not budget.over_quarter


async def test_an_open_intent_moves_on_when_its_segment_goes(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock=clock, tuning=Tuning(segment_bytes=4096)) as outbox:
        running = await outbox.put(intent())
        for _ in range(20):
            await outbox.put(denied(reason="r" * 500))
        clock.advance(25 * 3600)
        await outbox.committed(outbox.last_pos)
        await outbox.reclaim()
        assert {running} == outbox.open_intents
        await outbox.seek(0)
        shipped = await outbox.read(max_records=1000, max_bytes=1 << 20)
        assert running not in {
            audit_pb2.StoredRecord.FromString(stored).entry.event_id for stored in shipped.stored
        }  # audit has it: the copy is for recovery alone
    async with opened(tmp_path, clock=clock):
        pass

    unknown = [one.body for one in stored_in(tmp_path) if one.type == "call.outcome_unknown"]
    assert [running] == [body["decision"] for body in unknown]


async def test_reading_begins_where_it_is_told_and_ends_at_what_is_synced(tmp_path: Path) -> None:
    async with opened(tmp_path, tuning=Tuning(segment_bytes=4096)) as outbox:
        for _ in range(30):
            await outbox.put(denied(reason="r" * 300))
        await outbox.seek(10)
        positions: list[int] = []
        while True:
            shipment = await outbox.read(max_records=7, max_bytes=3000)
            entries = [audit_pb2.StoredRecord.FromString(one).entry for one in shipment.stored]
            positions += [entry.pos for entry in entries]
            assert len(entries) <= 7
            if not shipment.full:
                break

        assert list(range(11, outbox.last_pos + 1)) == positions
        assert outbox.last_pos == shipment.last_pos


async def test_a_reader_beside_the_writer_misses_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, tuning=Tuning(segment_bytes=1 << 15)) as outbox:
        positions: list[int] = []

        async def read_all() -> None:
            while len(positions) < outbox.last_pos or outbox.last_pos < 2000:
                await outbox.news()
                shipment = await outbox.read(max_records=50, max_bytes=1 << 20)
                entries = [audit_pb2.StoredRecord.FromString(one).entry for one in shipment.stored]
                positions.extend(entry.pos for entry in entries)

        async def write() -> None:
            for _ in range(250):
                await outbox.put(denied())

        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(read_all())
            for _ in range(8):
                tasks.create_task(write())

        # The outbox adds marks of its own, which may come after the reading has ended.
        assert len(positions) >= 2000
        assert list(range(1, len(positions) + 1)) == positions
