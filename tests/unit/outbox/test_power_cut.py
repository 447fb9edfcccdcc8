"""The power goes before any single operation: what was acknowledged is still there.

The disk keeps what was synced, and of the rest any part it likes.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from services.common.ids import EventId
from services.common.outbox.journal import OutboxFailed
from services.common.outbox.outbox import FileOutbox, Tuning
from tests.fakes.disk import PowerCutFiles
from tests.fakes.outbox import denied, intent, numbers_are_gap_free, opened, outcome, stored_in

TUNING = Tuning(segment_bytes=4096)


async def work(outbox: FileOutbox, acknowledged: list[EventId]) -> None:
    """Calls alone and together, over several segments, until the disk is gone."""

    async def call(size: int) -> None:
        event_id = await outbox.put(intent(reason="r" * size))
        acknowledged.append(event_id)
        await outbox.put(outcome(event_id), durable=False)

    try:
        for number in range(6):
            await call(300)
            acknowledged.append(await outbox.put(denied(reason="d" * 400)))
            if number % 2:
                async with asyncio.TaskGroup() as tasks:
                    for size in (10, 700, 20):
                        tasks.create_task(call(size))
    except (OutboxFailed, ExceptionGroup):
        pass


async def run_until_cut(directory: Path, cut_at: int | None) -> tuple[PowerCutFiles, list[EventId]]:
    files = PowerCutFiles(cut_at)
    acknowledged: list[EventId] = []
    try:
        async with opened(directory, files=files, tuning=TUNING) as outbox:
            await work(outbox, acknowledged)
    except (OSError, OutboxFailed):
        pass
    return files, acknowledged


@pytest.mark.parametrize("seed", range(3))
async def test_a_cut_before_any_operation_loses_nothing_acknowledged(
    tmp_path: Path, seed: int
) -> None:
    whole, _ = await run_until_cut(tmp_path / "whole", None)
    assert whole.count > 60

    chosen = random.Random(seed)
    for cut_at in range(seed, whole.count, 3):
        files, acknowledged = await run_until_cut(tmp_path / f"run-{cut_at}", cut_at)
        left = tmp_path / f"left-{cut_at}"
        files.wreck(left, chosen)
        async with opened(left, tuning=TUNING) as outbox:
            assert not outbox.open_intents

        stored = stored_in(left)
        ids = [one.entry.event_id for one in stored]
        assert set(acknowledged) <= set(ids), cut_at
        assert len(ids) == len(set(ids)), cut_at
        last_boot = [one for one in stored if one.entry.boot == stored[-1].entry.boot]
        assert numbers_are_gap_free(last_boot), cut_at
        ended = [one.body["decision"] for one in stored if one.type.startswith("call.outcome")]
        intents = [one.entry.event_id for one in stored if one.type == "call.intent"]
        assert sorted(intents) == sorted(ended), cut_at


async def test_a_disk_that_forgets_synced_writes_would_be_noticed(tmp_path: Path) -> None:
    """The test above is worth something: without the sync it fails."""

    class Forgetful(PowerCutFiles):
        def sync_data(self, fd: int) -> None:
            self._did()

        def sync(self, fd: int) -> None:
            self._did()

    files = Forgetful()
    acknowledged: list[EventId] = []
    async with opened(tmp_path / "run", files=files, tuning=TUNING) as outbox:
        await work(outbox, acknowledged)
    files.wreck(tmp_path / "left", random.Random(1))

    async with opened(tmp_path / "left", tuning=TUNING):
        pass
    ids = {one.entry.event_id for one in stored_in(tmp_path / "left")}
    assert not set(acknowledged) <= ids
