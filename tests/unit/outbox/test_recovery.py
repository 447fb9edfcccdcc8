"""What a start makes of torn and damaged segments."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.outbox.outbox import Tuning
from services.common.outbox.recovery import UNCERTAIN_POSITIONS
from tests.fakes.disk import Broken, ScriptedFiles
from tests.fakes.outbox import denied, intent, opened, stored_in, types_in

TUNING = Tuning(segment_bytes=1 << 16)


async def filled(directory: Path, count: int = 10) -> Path:
    """A directory with one segment; answers its path."""
    async with opened(directory, tuning=TUNING) as outbox:
        for _ in range(count):
            await outbox.put(denied(reason="r" * 100))
    (segment,) = directory.glob("*.seg")
    return segment


def gaps(directory: Path) -> list[tuple[int, int]]:
    return [
        (one.body["first_pos"], one.body["last_pos"])
        for one in stored_in(directory)
        if one.type == "source.gap"
    ]


async def test_a_torn_tail_is_cut_without_alarm(tmp_path: Path) -> None:
    segment = await filled(tmp_path)
    content = segment.read_bytes().rstrip(b"\0")
    segment.write_bytes(content[:-5])

    async with opened(tmp_path, tuning=TUNING):
        pass

    assert [] == gaps(tmp_path)
    assert [] == list(tmp_path.glob("*.set-aside"))
    # source.closed was the last frame: it is gone, and the next boot says what is on disk.
    assert 10 == types_in(tmp_path).count("call.denied")
    assert 0 == types_in(tmp_path)[:12].count("source.closed")


async def test_a_damaged_segment_is_set_aside_and_what_is_readable_goes_on(tmp_path: Path) -> None:
    segment = await filled(tmp_path)
    content = bytearray(segment.read_bytes())
    content[len(content.rstrip(b"\0")) // 2] ^= 0x10
    segment.write_bytes(bytes(content))

    async with opened(tmp_path, tuning=TUNING) as outbox:
        assert outbox.first_pos > 12 + UNCERTAIN_POSITIONS
        await outbox.seek(0)
        shipment = await outbox.read(max_records=100, max_bytes=1 << 20)

    (aside,) = tmp_path.glob("*.set-aside")
    assert bytes(content) == aside.read_bytes()
    ((first, last),) = gaps(tmp_path)
    assert first == last
    positions = [one.pos for one in stored_in(tmp_path)]
    assert first not in positions
    assert {*range(1, 13)} - {first} <= set(positions)
    assert 11 + 2 == len(shipment.stored)
    gap = next(one.body for one in stored_in(tmp_path) if one.type == "source.gap")
    assert ("outbox_corrupt", "critical") == (gap["cause"], gap["severity"])


async def test_damage_is_reported_once(tmp_path: Path) -> None:
    segment = await filled(tmp_path)
    content = bytearray(segment.read_bytes())
    content[200] ^= 0x10
    segment.write_bytes(bytes(content))

    for _ in range(3):
        async with opened(tmp_path, tuning=TUNING):
            pass

    assert 1 == len(gaps(tmp_path))
    assert 1 == len(list(tmp_path.glob("*.set-aside")))


async def test_a_header_that_cannot_be_read_hides_no_frame(tmp_path: Path) -> None:
    segment = await filled(tmp_path)
    content = bytearray(segment.read_bytes())
    content[3] ^= 0x10
    segment.write_bytes(bytes(content))

    async with opened(tmp_path, tuning=TUNING):
        pass

    assert 10 == types_in(tmp_path).count("call.denied")
    assert 1 == len(list(tmp_path.glob("*.set-aside")))


async def test_a_segment_of_noise_does_not_stop_the_start(tmp_path: Path) -> None:
    segment = await filled(tmp_path)
    segment.write_bytes(b"\xa5" * 5000)

    async with opened(tmp_path, tuning=TUNING) as outbox:
        await outbox.put(denied())

    assert [(1, 1)] == gaps(tmp_path)
    assert "call.denied" in types_in(tmp_path)


async def test_damage_noticed_while_shipping_is_passed_and_kept(tmp_path: Path) -> None:
    async with opened(tmp_path, tuning=Tuning(segment_bytes=4096)) as outbox:
        for _ in range(20):
            await outbox.put(denied(reason="r" * 300))
        first = min(tmp_path.glob("*.seg"))
        content = bytearray(first.read_bytes())
        content[1500] ^= 0x10
        first.write_bytes(bytes(content))
        await outbox.seek(0)
        count = 0
        while True:
            shipment = await outbox.read(max_records=5, max_bytes=1 << 20)
            count += len(shipment.stored)
            if not shipment.full:
                break

        assert outbox.last_pos - 1 == count
        assert outbox.last_pos == shipment.last_pos
        await outbox.seek(0)
        while (await outbox.read(max_records=100, max_bytes=1 << 20)).full:
            pass

    assert 1 == len(gaps(tmp_path))


@pytest.mark.parametrize("operation", ["write", "sync", "rename", "link", "sync_directory"])
async def test_a_repair_that_fails_is_done_again(tmp_path: Path, operation: str) -> None:
    segment = await filled(tmp_path)
    content = bytearray(segment.read_bytes())
    content[len(content.rstrip(b"\0")) // 2] ^= 0x10
    segment.write_bytes(bytes(content))

    with pytest.raises(OSError, match="injected"):
        async with opened(tmp_path, files=ScriptedFiles(Broken(operation)), tuning=TUNING):
            pass
    async with opened(tmp_path, tuning=TUNING):
        pass

    assert 10 == types_in(tmp_path).count("call.denied") + len(gaps(tmp_path))
    assert any(bytes(content) == aside.read_bytes() for aside in tmp_path.glob("*.set-aside"))


async def test_unfinished_files_are_removed(tmp_path: Path) -> None:
    await filled(tmp_path)
    (tmp_path / "00000000000000000099.new").write_bytes(b"half")

    async with opened(tmp_path, tuning=TUNING) as outbox:
        await outbox.put(intent())

    assert [] == list(tmp_path.glob("*.new"))
