"""A disk that refuses: nothing acknowledged is lost, nothing is acknowledged that is not there."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from services.common.ids import EventId
from services.common.outbox.journal import OutboxFailed
from services.common.outbox.outbox import FileOutbox, Tuning
from services.common.telemetry.counters import Counters
from tests.fakes.disk import Broken, ScriptedFiles
from tests.fakes.outbox import (
    denied,
    intent,
    numbers_are_gap_free,
    opened,
    outcome,
    stored_in,
    types_in,
)

CODES = [errno.EIO, errno.ENOSPC]


async def put_all(outbox: FileOutbox, count: int, *, together: bool) -> list[EventId]:
    if together:
        return list(await asyncio.gather(*(outbox.put(denied()) for _ in range(count))))
    return [await outbox.put(denied()) for _ in range(count)]


async def healed(outbox: FileOutbox) -> None:
    """A try that was under way may still fail; the next one has a disk that works."""
    for _ in range(3):
        outbox.tick()
        try:
            await outbox.flush()
        except OutboxFailed:
            continue
        return


def takes_calls(outbox: FileOutbox) -> bool:
    return outbox.accepts_calls


def recorded(directory: Path) -> list[str]:
    return [one.entry.event_id for one in stored_in(directory) if one.type == "call.denied"]


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
@pytest.mark.parametrize("code", CODES, ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("operation", ["write", "sync_data"])
async def test_one_failure_moves_everything_into_a_new_segment(
    tmp_path: Path, operation: str, code: int, *, together: bool
) -> None:
    files = ScriptedFiles()
    async with opened(tmp_path, files=files) as outbox:
        first = await put_all(outbox, 5, together=together)
        files.hook = broken = Broken(operation, code=code)
        broken.left = 1
        second = await put_all(outbox, 5, together=together)
        third = await put_all(outbox, 5, together=together)
        assert 1 == broken.failures
        assert not outbox.failed

    assert first + second + third == recorded(tmp_path)
    assert 2 == len(list(tmp_path.glob("*.seg")))
    assert numbers_are_gap_free(stored_in(tmp_path))


async def test_a_failed_descriptor_is_never_used_again(tmp_path: Path) -> None:
    files = ScriptedFiles()
    async with opened(tmp_path, files=files) as outbox:
        files.hook = broken = Broken("sync_data")
        broken.left = 1
        files.operations.clear()
        await outbox.put(denied())

    failed = files.operations.index("sync_data")
    assert ["close", "create", "write", "sync", "rename", "sync_directory"] == files.operations[
        failed + 1 : failed + 7
    ]


@pytest.mark.parametrize("second", ["create", "write", "sync", "rename", "sync_directory"])
async def test_a_second_failure_refuses_new_calls_until_the_disk_is_back(
    tmp_path: Path, second: str
) -> None:
    files = ScriptedFiles()
    async with opened(tmp_path, files=files) as outbox:
        kept = await outbox.put(denied())
        files.hook = broken = Broken("sync_data", second)
        with pytest.raises(OutboxFailed):
            await outbox.put(intent())
        assert outbox.failed
        assert not takes_calls(outbox)
        with pytest.raises(OutboxFailed):
            await outbox.put(intent())
        with pytest.raises(OutboxFailed):
            await outbox.put(denied())
        assert 1 == outbox.unrecorded_refusals

        broken.on = False
        await healed(outbox)
        assert takes_calls(outbox)
        outbox.tick()  # records what was counted
        again = await outbox.put(denied())
        assert not outbox.open_intents

    stored = stored_in(tmp_path)
    assert numbers_are_gap_free(stored)
    assert [kept, again] == [
        one.entry.event_id
        for one in stored
        if one.type == "call.denied" and "count" not in one.body
    ]
    assert [1] == [one.body["count"] for one in stored if "count" in one.body]
    # The intent that was refused was numbered: it is written later, and ended.
    assert 1 == types_in(tmp_path).count("call.intent")
    assert 1 == types_in(tmp_path).count("call.outcome_unknown")


async def test_an_outcome_refused_by_the_disk_is_kept_and_written_when_it_is_back(
    tmp_path: Path,
) -> None:
    files = ScriptedFiles()
    async with opened(tmp_path, files=files) as outbox:
        call = await outbox.put(intent())
        files.hook = broken = Broken("write", "sync_data", "create")
        with pytest.raises(OutboxFailed):
            await outbox.put(outcome(call), durable=False)
        broken.on = False
        await healed(outbox)

    assert 1 == types_in(tmp_path).count("call.outcome")
    assert 0 == types_in(tmp_path).count("call.outcome_unknown")


async def test_a_failure_while_rolling_loses_nothing(tmp_path: Path) -> None:
    for operation in ("sync_data", "truncate", "close", "create", "write", "sync", "rename"):
        directory = tmp_path / operation
        files = ScriptedFiles()
        async with opened(directory, files=files, tuning=Tuning(segment_bytes=4096)) as outbox:
            ids = []
            for number in range(40):
                if number % 7 == 3:
                    files.hook = broken = Broken(operation)
                    broken.left = 1
                ids.append(await outbox.put(denied(reason="r" * 600)))

        assert ids == recorded(directory), operation
        assert numbers_are_gap_free(stored_in(directory))


async def test_failures_of_any_operation_at_any_time_lose_nothing_acknowledged(
    tmp_path: Path,
) -> None:
    for at in range(0, 60, 2):
        directory = tmp_path / str(at)
        files = ScriptedFiles()
        acknowledged = []
        tuning = Tuning(segment_bytes=4096)
        async with opened(directory, files=files, tuning=tuning) as outbox:
            start = len(files.operations)

            def fail(_: str, files: ScriptedFiles = files, at: int = start + at) -> None:
                if at < len(files.operations) <= at + 3:
                    raise OSError(errno.EIO, "injected")

            files.hook = fail
            for _ in range(20):
                try:
                    acknowledged.append(await outbox.put(denied(reason="r" * 600)))
                except OutboxFailed:
                    outbox.tick()
            files.hook = None
            await healed(outbox)

        assert set(acknowledged) <= set(recorded(directory)), at
        assert numbers_are_gap_free(stored_in(directory)), at


async def test_a_stalled_disk_is_left_to_the_thread(tmp_path: Path) -> None:
    """The loop syncs for a lone caller only while the disk is quick."""
    counters = Counters()
    async with opened(tmp_path, counters=counters) as outbox:
        outbox._journal._sync_s = 0.5
        loop_thread = asyncio.get_running_loop()
        await outbox.put(denied())
        outbox._journal._sync_s = 0.0
        outbox._journal._stalled = 10
        await outbox.put(denied())
        assert loop_thread.is_running()
        assert 9 == outbox._journal._stalled
