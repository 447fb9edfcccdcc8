"""A ticket journal on a disk that fails, and one that cannot be believed."""

from __future__ import annotations

import asyncio
import errno
import random
from pathlib import Path

import pytest

from services.authorizer.tickets import durable_book
from services.authorizer.tickets.local import LocalTicketStore, local_ticket_store
from services.authorizer.tickets.protocol import StoreUnavailable
from services.authorizer.tickets.ticket import Refused, State, Ticket
from services.common.outbox.files import DirectoryLock
from services.common.telemetry.logging import get_log
from tests.fakes.disk import Broken, PowerCutFiles, ScriptedFiles
from tests.fakes.tickets import (
    HOUR_MS,
    START_MS,
    TENANT,
    Heard,
    another,
    approval,
    opening,
    refusal,
)

NOW = START_MS
LOG = get_log("test")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call may try again, so that a test need not wait for the time to."""
    monkeypatch.setattr(durable_book, "RETRY_S", 0.0)


async def approved(store: LocalTicketStore) -> Ticket:
    ticket = await store.open(another(), now_ms=NOW)
    after = await store.decide(TENANT, ticket.id, approval(ticket), now_ms=NOW)
    assert after is not None
    return after


async def use(store: LocalTicketStore, ticket: Ticket) -> Ticket | Refused:
    return await store.consume(TENANT, ticket.id, binding=ticket.binding, now_ms=NOW)


@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_what_cannot_be_written_did_not_happen(
    tmp_path: Path, operation: str, code: int
) -> None:
    broken = Broken("write", "create", operation, code=code)
    broken.on = False
    heard = Heard()
    async with local_ticket_store(tmp_path / "t", LOG, files=ScriptedFiles(broken)) as store:
        ticket = await approved(store)
        pending = await store.open(another(), now_ms=NOW)
        store.on_change(heard)

        broken.on = True
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await use(store, ticket)
            with pytest.raises(StoreUnavailable):
                await store.open(another(), now_ms=NOW)
            with pytest.raises(StoreUnavailable):
                await store.decide(TENANT, pending.id, approval(pending), now_ms=NOW)
        assert [ticket, pending] == [await store.get(TENANT, t.id) for t in (ticket, pending)]
        assert store.broken is not None

        broken.on = False
        assert isinstance(await use(store, ticket), Ticket)
        assert Refused.NOT_APPROVED == await use(store, ticket)
        assert ["consumed"] == heard.states()
    async with local_ticket_store(tmp_path / "t", LOG) as store:
        assert [pending] == await store.live()


async def test_of_many_who_wait_for_a_sync_that_fails_nobody_has_it(tmp_path: Path) -> None:
    broken = Broken("sync")
    broken.on = False
    async with local_ticket_store(tmp_path / "t", LOG, files=ScriptedFiles(broken)) as store:
        ticket = await approved(store)
        broken.on, broken.left = True, 1

        answers = await asyncio.gather(
            *(use(store, ticket) for _ in range(50)), return_exceptions=True
        )

        assert {StoreUnavailable} == {type(answer) for answer in answers}
        assert isinstance(await use(store, ticket), Ticket)  # healed: a new file was written
        assert Refused.NOT_APPROVED == await use(store, ticket)


async def test_a_caller_that_vanishes_cancels_no_write(tmp_path: Path) -> None:
    async with local_ticket_store(tmp_path / "t", LOG) as store:
        ticket = await approved(store)
        async with asyncio.TaskGroup() as tasks:
            gone = tasks.create_task(use(store, ticket))
            stays = tasks.create_task(use(store, ticket))
            await asyncio.sleep(0)
            gone.cancel()

        assert Refused.NOT_APPROVED == stays.result()
        left = await store.get(TENANT, ticket.id)
        assert left is not None
        assert State.CONSUMED == left.state  # spent, and used by nobody


@pytest.mark.parametrize("seed", range(30))
async def test_the_power_goes_at_any_moment(tmp_path: Path, seed: int) -> None:
    """Of what was not synced the disk keeps what it likes; of what was told it loses nothing."""
    chosen = random.Random(seed)
    disk = PowerCutFiles(cut_at=chosen.randrange(4, 24))
    told: list[Ticket] = []
    used = 0
    directory = tmp_path / "t"
    async with local_ticket_store(directory, LOG, files=disk) as store:
        try:
            for _ in range(3):
                ticket = await store.open(another(), now_ms=NOW)
                told.append(ticket)
                after = await store.decide(TENANT, ticket.id, approval(ticket), now_ms=NOW)
                assert after is not None
                told[-1] = after
                taken = await use(store, after)
                assert isinstance(taken, Ticket)
                told[-1], used = taken, used + 1
        except StoreUnavailable:
            assert disk.dead
    disk.wreck(tmp_path / "left", chosen)

    async with local_ticket_store(tmp_path / "left", LOG) as store:
        for ticket in told:
            found = await store.get(TENANT, ticket.id)
            assert found is not None
            assert found.version in {ticket.version, ticket.version + 1}
            if ticket.state is State.CONSUMED:
                assert Refused.NOT_APPROVED == await use(store, ticket)
            assert ticket.decide_by_ms == found.decide_by_ms


@pytest.mark.parametrize("seed", range(3))
async def test_the_power_goes_while_a_new_file_takes_over(tmp_path: Path, seed: int) -> None:
    for operation in range(7):
        chosen = random.Random(f"{seed}/{operation}")
        disk = PowerCutFiles()
        directory, left = tmp_path / f"t{operation}", tmp_path / f"left{operation}"
        async with local_ticket_store(directory, LOG, files=disk) as store:
            ticket = await approved(store)
            spent = await approved(store)
            assert isinstance(await use(store, spent), Ticket)
        disk.cut_at = disk.count + operation
        async with local_ticket_store(directory, LOG, files=disk) as store:
            pass
        disk.wreck(left, chosen)

        async with local_ticket_store(left, LOG) as store:
            assert ticket == await store.get(TENANT, ticket.id)
            assert Refused.NOT_APPROVED == await use(store, spent)


async def test_a_damaged_journal_is_refused_aloud_until_it_is_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "t"
    async with local_ticket_store(directory, LOG) as store:
        ticket = await approved(store)
        await store.open(another(), now_ms=NOW)
    (path,) = directory.glob("*.journal")
    whole = path.read_bytes()
    path.write_bytes(whole[:80] + bytes([whole[80] ^ 1]) + whole[81:])

    async with local_ticket_store(directory, LOG) as store:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="damaged"):
                await store.get(TENANT, ticket.id)
            with pytest.raises(StoreUnavailable, match="damaged"):
                await use(store, ticket)
            with pytest.raises(StoreUnavailable):
                await store.expire(now_ms=NOW)
        assert "ticket_journal_broken" in capsys.readouterr().out

        path.write_bytes(whole)
        assert isinstance(await use(store, ticket), Ticket)


async def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    directory = tmp_path / "t"
    other = DirectoryLock(directory)
    async with local_ticket_store(directory, LOG) as store:
        with pytest.raises(StoreUnavailable, match="another process"):
            await store.open(opening(), now_ms=NOW)

        other.release()
        assert State.PENDING == (await store.open(opening(), now_ms=NOW)).state
    assert 0o700 == directory.stat().st_mode & 0o777
    assert {0o600} == {path.stat().st_mode & 0o777 for path in directory.iterdir()}


async def test_a_directory_that_cannot_be_made_is_no_reason_to_end(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with local_ticket_store(tmp_path / "file" / "t", LOG) as store:
        with pytest.raises(StoreUnavailable):
            await store.open(opening(), now_ms=NOW)


async def test_a_closed_store_takes_nothing(tmp_path: Path) -> None:
    async with local_ticket_store(tmp_path / "t", LOG) as store:
        ticket = await approved(store)
    with pytest.raises(StoreUnavailable):
        await use(store, ticket)


async def many_denied(store: LocalTicketStore) -> list[Ticket]:
    tickets = []
    for _ in range(40):
        ticket = await store.open(another(reason="x" * 100_000), now_ms=NOW)
        await store.decide(TENANT, ticket.id, refusal(ticket), now_ms=NOW)
        tickets.append(ticket)
    return tickets


async def test_the_journal_does_not_grow_for_ever(tmp_path: Path) -> None:
    directory = tmp_path / "t"
    async with local_ticket_store(directory, LOG) as store:
        old = await many_denied(store)
        for ticket in old:
            await store.settle(TENANT, ticket.id, kept=1, recorded=1)
        kept = await store.open(another(), now_ms=NOW)
        grown = sum(path.stat().st_size for path in directory.iterdir())
        await store.expire(now_ms=NOW + 25 * HOUR_MS)
        new = await many_denied(store)
    async with local_ticket_store(directory, LOG) as store:
        assert await store.get(TENANT, old[0].id) is None
        assert await store.get(TENANT, kept.id) is not None
        assert await store.get(TENANT, new[0].id) is not None
    files = list(directory.glob("*.journal"))
    assert 1 == len(files)
    assert files[0].stat().st_size < 1.2 * grown
