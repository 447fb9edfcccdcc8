"""A book whose changes are on the disk before anybody hears of them.

Changes are made in the book at once, so that the next caller sees them, and whatever waits is
written together (natural batching). When a write fails, the book goes back to what the disk is
known to hold, everybody who waited is told StoreUnavailable, and nothing is taken until a new file
could be written whole. What may follow what is decided by whoever changes the book.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from services.authorizer.tickets.book import Book, Key, key_of
from services.authorizer.tickets.journal_file import JournalFile
from services.authorizer.tickets.protocol import Listener, StoreUnavailable
from services.authorizer.tickets.ticket import Ticket
from services.common.outbox.files import DirectoryLock, DirectoryTaken, Files
from services.common.telemetry.logging import Log

#: Between two attempts to open or to rewrite a journal that failed.
RETRY_S: Final = 0.25

_Answer = TypeVar("_Answer")


class _Batch:
    """What one write brings to the disk."""

    __slots__ = ("changed", "done", "final")

    def __init__(self) -> None:
        self.final: dict[Key, Ticket] = {}
        #: What listeners hear, in order: a ticket may change more than once.
        self.changed: list[Ticket] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Perhaps nobody waits for it.
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())


class DurableBook:
    """`write_forever` must run beside it. All else belongs to the loop's thread."""

    def __init__(self, directory: Path, files: Files, log: Log) -> None:
        self._directory = directory
        self._log = log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tickets")
        self._lock: DirectoryLock | None = None
        self._journal = JournalFile(directory, files)
        self._listeners: list[Listener] = []
        #: What the disk holds, in the order of opening.
        self._durable: dict[Key, Ticket] = {}
        self._durable_mark_ms = 0
        #: What it will hold once everything that waits is written.
        self._book = Book()
        self._batch = _Batch()
        self._writing: _Batch | None = None
        self._wake = asyncio.Event()
        self._loaded = False
        self._healing = asyncio.Lock()
        self._retry_at_s = 0.0
        #: Why nothing can be written now; None while it can.
        self.broken: str | None = "the ticket journal is not open"

    def on_change(self, listener: Listener) -> None:
        self._listeners.append(listener)

    async def change(self, decide: Callable[[Book], tuple[_Answer, list[Ticket]]]) -> _Answer:
        """The answer, once all that it rests on is on the disk: a ticket that somebody else is
        consuming is not said to be used up before it is. Raises StoreUnavailable.
        """
        await self.healthy()
        answer, changes = decide(self._book)
        self._stage(changes)
        self._batch.changed += changes
        await self._all_written()
        return answer

    async def mark(self, decide: Callable[[Book], Ticket | None]) -> None:
        """For what is no change of a ticket: on the disk soon, and nobody is told."""
        await self.healthy()
        ticket = decide(self._book)
        if ticket is not None:
            self._stage([ticket])

    async def read(self, look: Callable[[Book], _Answer]) -> _Answer:
        """Of what is on the disk; while writes fail, of what is known to be there."""
        if not self._loaded:
            await self.healthy()
        await self._all_written()
        return look(self._book)

    def forget(self, choose: Callable[[Iterable[Ticket]], list[Ticket]]) -> None:
        """Ended tickets that nobody asks for any more; the file loses them when it is rewritten."""
        for ticket in choose(self._book.ended()):
            key = key_of(ticket)
            if self._durable.get(key) is ticket:
                self._book.forget(key)
                del self._durable[key]

    def __len__(self) -> int:
        return len(self._book)

    async def healthy(self) -> None:
        """Opens or rewrites the journal where that is due. Raises StoreUnavailable."""
        if self.broken is None:
            return
        async with self._healing:
            await self._try_again()
        self._must_write()

    def _must_write(self) -> None:
        if self.broken is not None:
            raise StoreUnavailable(self.broken)

    async def _try_again(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self.broken is not None and now_s >= self._retry_at_s:
            self._retry_at_s = now_s + RETRY_S
            await self._heal()

    async def write_forever(self) -> None:
        """The one writer, a task of its own: whoever vanishes while it writes cancels nothing."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._batch.final:
                await self._write()

    async def close(self) -> None:
        """For good. `write_forever` has ended; its last write perhaps not, which is waited for."""
        self._retry_at_s = float("inf")
        self._give_up("the ticket journal is closed")
        await self._in_thread(self._close)
        self._thread.shutdown()

    def _stage(self, changes: Iterable[Ticket]) -> None:
        for ticket in changes:
            self._book.put(ticket)
            self._batch.final[key_of(ticket)] = ticket
            self._wake.set()

    async def _all_written(self) -> None:
        """Shielded: one caller's cancellation is not everybody's."""
        if self._batch.final:
            await asyncio.shield(self._batch.done)
        elif self._writing is not None:
            await asyncio.shield(self._writing.done)

    async def _write(self) -> None:
        batch, self._batch = self._batch, _Batch()
        self._writing = batch
        mark_ms = self._book.mark_ms
        try:
            await self._in_thread(lambda: self._journal.append(batch.final.values(), mark_ms))
        except OSError as failure:
            self._fail(failure)
            return
        except BaseException:
            # A bug, or the end. Nobody must wait for what will not come.
            self._give_up("the ticket journal's writer ended")
            raise
        self._writing = None
        self._durable |= batch.final
        self._durable_mark_ms = mark_ms
        for ticket in batch.changed:
            for listener in self._listeners:
                asyncio.get_running_loop().call_soon(listener, ticket, True)
        batch.done.set_result(None)
        if self._journal.large:
            await self._rewrite()

    async def _heal(self) -> None:
        if self._loaded:
            await self._rewrite()
            return
        try:
            self._durable, self._durable_mark_ms = await self._in_thread(self._load)
        except (OSError, DirectoryTaken, StoreUnavailable) as failure:
            self._fail(failure)
            return
        self._loaded = True
        self._book = Book.of(self._durable.values(), mark_ms=self._durable_mark_ms)
        self.broken = None

    def _load(self) -> tuple[dict[Key, Ticket], int]:
        if self._lock is None:
            self._lock = DirectoryLock(self._directory)
        return self._journal.load()

    async def _rewrite(self) -> None:
        held, mark_ms = list(self._durable.values()), self._durable_mark_ms
        try:
            await self._in_thread(lambda: self._journal.rewrite(held, mark_ms))
        except OSError as failure:
            self._fail(failure)
            return
        self.broken = None

    def _fail(self, failure: Exception) -> None:
        """Nothing is taken until a heal."""
        match failure:
            case StoreUnavailable():
                reason = str(failure)
            case DirectoryTaken():
                reason = "the ticket journal is another process's"
            case _:
                reason = f"the ticket journal cannot be written: {type(failure).__name__}"
        is_news = self.broken != reason
        self._give_up(reason)
        if is_news:
            self._log.error("ticket_journal_broken", reason=reason)

    def _give_up(self, reason: str) -> None:
        """The book is the disk's again, and who waited is told."""
        self.broken = reason
        self._book = Book.of(self._durable.values(), mark_ms=self._durable_mark_ms)
        waiting, self._writing = self._writing, None
        unsent, self._batch = self._batch, _Batch()
        for batch in (waiting, unsent):
            if batch is not None and not batch.done.done():
                batch.done.set_exception(StoreUnavailable(reason))

    async def _in_thread(self, work: Callable[[], _Answer]) -> _Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _close(self) -> None:
        self._journal.close()
        if self._lock is not None:
            self._lock.release()
