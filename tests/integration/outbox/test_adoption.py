"""Directories whose process is gone: another one ends what it began, and they are gone too."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.clock import SystemClock
from services.common.outbox.files import DirectoryLock, DirectoryTaken, DiskFiles
from services.common.outbox.outbox import FileOutbox, Tuning
from services.common.outbox.pressure import Budget
from services.common.outbox.running import Adopter, OutboxOptions, claim, running_outbox
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from tests.fakes.append_server import AppendServer, serving, transport_to
from tests.fakes.outbox import ORIGIN, denied, intent, numbers_are_gap_free, opened, stored_in

TUNING = Tuning(segment_bytes=1 << 16)


@pytest.fixture
def short() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="bvo-"))
    yield directory
    shutil.rmtree(directory)


def options(root: Path) -> OutboxOptions:
    return OutboxOptions(root=root, origin=ORIGIN, tuning=TUNING)


async def left_behind(directory: Path) -> tuple[FileOutbox, str]:
    """As a killed process leaves it: one call without an end."""
    async with opened(directory, tuning=TUNING) as outbox:
        await outbox.put(denied())
        call = await outbox.put(intent())
        kept = {path.name: path.read_bytes() for path in directory.iterdir()}
    for path in directory.iterdir():
        path.unlink()
    for name, content in kept.items():
        (directory / name).write_bytes(content)
    return outbox, call


async def adopt(root: Path, address: str, short: Path) -> None:
    async with transport_to(address, short) as transport, asyncio.timeout(10):
        adopter = Adopter(
            options(root), transport, Budget(1 << 30), SystemClock(), get_log("test"), DiskFiles()
        )
        await adopter.adopt_all()


async def test_a_left_directory_is_restarted_ended_shipped_and_deleted(short: Path) -> None:
    server, root = AppendServer(), short / "outbox"
    left, call = await left_behind(root / "w3")

    async with serving(server, short) as address:
        await adopt(root, address, short)

    assert [] == list(root.iterdir())
    source = server.sources[left.source]
    types = [entry.body.split(b'"type":"')[1].split(b'"')[0].decode() for entry in source.entries]
    assert [
        "source.opened", "call.denied", "call.intent",
        "source.opened", "call.outcome_unknown", "source.closed",
    ] == types  # fmt: skip
    assert call.encode() in source.entries[4].body
    assert [left.boot] * 3 == [entry.boot for entry in source.entries[:3]]
    assert left.boot != source.entries[3].boot
    assert source.boots == [source.entries[3].boot]


async def test_an_owned_directory_is_left_alone(short: Path) -> None:
    server, root = AppendServer(), short / "outbox"
    async with opened(root / "w0", tuning=TUNING) as outbox, serving(server, short) as address:
        await adopt(root, address, short)
        await outbox.put(denied())

    assert {} == server.sources
    assert numbers_are_gap_free(stored_in(root / "w0"))


async def test_an_adopted_directory_stays_until_audit_has_everything(short: Path) -> None:
    server, root = AppendServer(), short / "outbox"
    await left_behind(root / "w0")
    server.answering.clear()

    async with serving(server, short) as address, asyncio.TaskGroup() as tasks:
        adopting = tasks.create_task(adopt(root, address, short))
        await server.came(1)
        with pytest.raises(DirectoryTaken):
            DirectoryLock(root / "w0")
        assert list((root / "w0").glob("*.seg"))
        server.answering.set()
        await adopting

    assert [] == list(root.iterdir())


async def test_what_was_damaged_is_kept_when_the_directory_goes(short: Path) -> None:
    server, root = AppendServer(), short / "outbox"
    await left_behind(root / "w0")
    (segment,) = (root / "w0").glob("*.seg")
    content = bytearray(segment.read_bytes())
    content[200] ^= 1
    segment.write_bytes(bytes(content))

    async with serving(server, short) as address:
        await adopt(root, address, short)

    assert ["set-aside"] == [path.name for path in root.iterdir()]
    (kept,) = (root / "set-aside").iterdir()
    assert bytes(content) == kept.read_bytes()


async def test_processes_get_directories_of_their_own_and_their_old_ones_back(
    tmp_path: Path,
) -> None:
    first, first_lock = claim(tmp_path)
    second, second_lock = claim(tmp_path)
    first_lock.release()
    again, again_lock = claim(tmp_path)

    assert first == again
    assert first != second
    second_lock.release()
    again_lock.release()


async def test_a_deleted_directory_cannot_be_taken_by_who_waited_for_it(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "w0")
    (tmp_path / "w0" / "lock").unlink()

    other = DirectoryLock(tmp_path / "w0")  # a new file: a new directory of that name

    lock.release()
    other.release()


async def test_a_process_ships_what_it_records_and_says_when_it_ends(short: Path) -> None:
    server = AppendServer()
    sources = set()
    async with serving(server, short) as address, transport_to(address, short) as transport:
        for _ in range(2):
            async with running_outbox(
                options(short / "outbox"),
                transport,
                clock=SystemClock(),
                counters=Counters(),
                log=get_log("test"),
            ) as outbox:
                await outbox.put(denied())
                async with asyncio.timeout(5):
                    await outbox.drained()
                sources.add(outbox.source)

    stored = stored_in(short / "outbox" / "w0")
    assert ["source.opened", "call.denied", "source.closed"] * 2 == [one.type for one in stored]
    (source,) = sources
    entries = server.sources[source].entries
    assert [one.entry for one in stored][:-1] == entries
