"""Which bytes of a journal are believed after a crash, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.authorizer.tickets.journal_file import JournalFile
from services.authorizer.tickets.protocol import StoreUnavailable
from services.authorizer.tickets.ticket import State, Ticket, decided, opened
from services.common.outbox.files import DiskFiles
from tests.fakes.tickets import START_MS, another, approval


def written(directory: Path, *, frames: int = 4) -> tuple[Path, list[int], list[Ticket]]:
    """A journal of a snapshot and `frames` openings: its file, where each frame ends, tickets."""
    directory.mkdir()
    journal = JournalFile(directory, DiskFiles())
    journal.load()
    (path,) = directory.iterdir()
    ends = [path.stat().st_size]
    tickets = [opened(another()) for _ in range(frames)]
    for ticket in tickets:
        journal.append([ticket], START_MS)
        ends.append(path.stat().st_size)
    journal.close()
    return path, ends, tickets


def loaded(directory: Path) -> list[Ticket]:
    journal = JournalFile(directory, DiskFiles())
    tickets, _ = journal.load()
    journal.close()
    return list(tickets.values())


def test_what_was_appended_is_there_again(tmp_path: Path) -> None:
    _, _, tickets = written(tmp_path / "t")

    assert tickets == loaded(tmp_path / "t")
    assert tickets == loaded(tmp_path / "t")  # the second start reads what the first one wrote


def test_changes_are_small_and_complete(tmp_path: Path) -> None:
    path, _, tickets = written(tmp_path / "t", frames=1)
    journal = JournalFile(path.parent, DiskFiles())
    journal.load()
    after = decided(tickets[0], approval(tickets[0]), START_MS + 5)
    journal.append([after], START_MS + 7)
    journal.close()
    (path,) = (tmp_path / "t").iterdir()

    read, mark_ms = JournalFile(path.parent, DiskFiles()).load()

    assert [after] == list(read.values())
    assert START_MS + 7 == mark_ms
    assert State.APPROVED == after.state


def test_an_unfinished_last_frame_is_cut_wherever_it_ends(tmp_path: Path) -> None:
    path, ends, tickets = written(tmp_path / "t")
    whole = path.read_bytes()
    for n, end in enumerate(range(ends[-2], ends[-1], 23)):
        torn = tmp_path / f"torn{n}"
        torn.mkdir()
        (torn / path.name).write_bytes(whole[:end] + b"\0" * (n % 3))

        assert tickets[:-1] == loaded(torn)


def test_damage_before_the_last_frame_is_refused_and_left_alone(tmp_path: Path) -> None:
    path, ends, _ = written(tmp_path / "t")
    whole = path.read_bytes()
    for n, at in enumerate(range(0, ends[-2], 29)):
        damaged = tmp_path / f"damaged{n}"
        damaged.mkdir()
        changed = bytearray(whole)
        changed[at] ^= 0x40
        (damaged / path.name).write_bytes(changed)

        with pytest.raises(StoreUnavailable):
            loaded(damaged)
        assert bytes(changed) == (damaged / path.name).read_bytes()
        assert [path.name] == [file.name for file in damaged.iterdir()]


def test_a_frame_taken_out_is_missed(tmp_path: Path) -> None:
    path, ends, _ = written(tmp_path / "t")
    whole = path.read_bytes()
    path.write_bytes(whole[: ends[1]] + whole[ends[2] :])

    with pytest.raises(StoreUnavailable, match="missing"):
        loaded(path.parent)


def test_an_empty_file_is_no_empty_journal(tmp_path: Path) -> None:
    path, _, _ = written(tmp_path / "t")
    path.write_bytes(b"")

    with pytest.raises(StoreUnavailable, match="snapshot"):
        loaded(path.parent)


def test_the_newest_file_counts_and_the_unfinished_does_not(tmp_path: Path) -> None:
    path, _, tickets = written(tmp_path / "t")
    old = path.with_name("000000000000.journal")
    old.write_bytes(b"left over")
    path.with_name("000000000009.unfinished").write_bytes(b"half")

    assert tickets == loaded(path.parent)
    assert 1 == len(list(path.parent.iterdir()))


def test_a_grown_file_is_rewritten_without_what_went(tmp_path: Path) -> None:
    path, _, tickets = written(tmp_path / "t")
    journal = JournalFile(path.parent, DiskFiles())
    journal.load()
    large = [journal.large]
    for _ in range(12):
        journal.append([opened(another(reason="x" * 100_000))], START_MS)
    large.append(journal.large)
    journal.rewrite(tickets, START_MS)
    large.append(journal.large)
    journal.append([tickets[0]], START_MS)
    journal.close()

    assert [False, True, False] == large
    assert tickets == loaded(path.parent)
