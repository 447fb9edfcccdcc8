"""The segment files of one running outbox and the thread that syncs them.

Frames are written in the order of their positions and acknowledged after the `fdatasync` that
covers them: one flusher thread takes all that wait into one write and one sync. A hand-over to it
and back costs as much as a quick disk's sync, so two things are done on the loop itself: what need
not wait for the disk (`durable=False`) is written there and synced within 50 ms, and the frame of a
lone caller is synced there while the disk has been quick: nobody else is held up.

After a failed write or sync the descriptor is never used again: what it claims to have written may
be gone. All unsynced frames go into a new segment; if that fails too, the journal has FAILED and
refuses until a later try succeeds. Numbers, pressure and what records mean are the outbox's.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import BootId, SourceId
from services.common.outbox.files import Files
from services.common.outbox.segment import HEADER_BYTES, SEGMENT_BYTES, Header
from services.common.telemetry.counters import Counters

Durability = Literal["power", "process"]
#: What was only written is synced this much later: with the sync itself, within 50 ms.
SYNC_DELAY_S: Final = 0.035
#: A sync on the loop is allowed while recent ones took less than this on average...
_QUICK_SYNC_S: Final = 0.001
#: ... and this many go through the thread after one that took longer than ten times that.
_SYNCS_AFTER_STALL: Final = 256
SUFFIX: Final = ".seg"
UNFINISHED: Final = ".new"


class OutboxFailed(BehavryError):
    """The disk refused twice. Nothing is recorded until it takes writes again."""

    def __init__(self) -> None:
        super().__init__("AUDIT_UNAVAILABLE", "the outbox cannot write to its disk")


@dataclass(slots=True, eq=False)
class Segment:
    """`end` and `last_pos` speak of what is synced; the shipper reads no further. The flusher moves
    `end` first, readers take `last_pos` first: so what it promises is always there.
    """

    path: Path
    first_pos: int
    last_pos: int
    end: int
    written_ns: int
    #: Found damaged while it was read: it is set aside instead of deleted.
    damaged: bool = False


@dataclass(slots=True, eq=False)
class Pending:
    """A frame on its way to the disk, and who waits for it."""

    pos: int
    frame: bytes
    waiter: asyncio.Future[None]
    durable: bool


def segment_path(directory: Path, first_pos: int) -> Path:
    return directory / f"{first_pos:020d}{SUFFIX}"


class Journal:
    """Starts its thread at once; `close` ends it. All methods belong to the loop's thread."""

    def __init__(
        self,
        *,
        directory: Path,
        source: SourceId,
        boot: BootId,
        next_pos: int,
        segments: Sequence[Segment],
        files: Files,
        clock: Clock,
        counters: Counters,
        on_synced: Callable[[], None],
        durability: Durability = "power",
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Makes the first segment of this boot. Raises OSError."""
        self.segments = list(segments)
        self.failed = False
        self.synced_pos = next_pos - 1
        self._directory = directory
        self._source = source
        self._boot = boot
        self._files = files
        self._clock = clock
        self._on_synced = on_synced
        self._durability = durability
        self._segment_bytes = segment_bytes
        self._loop = asyncio.get_running_loop()
        self._records = counters.counter("outbox.records")
        self._bytes = counters.counter("outbox.bytes")
        self._syncs = counters.counter("outbox.syncs")
        self._groups = counters.counter("outbox.sync_groups")

        self._appended = self._done = 0
        self._queue: deque[Pending] = deque()
        #: Guards everything below: whoever writes to the segment holds it, nobody holds it over
        #: a sync of frames that somebody waits for.
        self._io = threading.Lock()
        self._unsynced: list[Pending] = []
        self._dirty_since: float | None = None
        self._broken = False
        #: The flusher is between taking frames and acknowledging them.
        self._committing = False
        #: Moving average of a sync, pessimistic at first; syncs until the loop may do one again.
        self._sync_s = 2 * _QUICK_SYNC_S
        self._stalled = 0
        self._fd = -1
        self._offset = 0
        self._size = 0
        self._open_segment(next_pos, [])

        self._flushers: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._rung = self._ringing = self._alone = False
        self._bell = threading.Lock()
        self._bell.acquire()
        self._thread = threading.Thread(target=self._run, name="outbox-flusher", daemon=True)
        self._thread.start()

    @property
    def active(self) -> Segment:
        return self.segments[-1]

    @property
    def used_bytes(self) -> int:
        """What the segments hold; reserved space of the active one does not count."""
        kept = sum(segment.end for segment in self.segments[:-1])
        return kept + self._offset

    def append(
        self, pos: int, frame: bytes, *, durable: bool, alone: bool = False
    ) -> asyncio.Future[None]:
        """Takes the frame; the future ends when it is synced, or written if not `durable`, and
        carries OutboxFailed if neither could be done. A caller that vanishes cancels nothing.
        `alone`: as far as the caller knows, nothing else waits for this loop.
        """
        waiter: asyncio.Future[None] = self._loop.create_future()
        wait_for_disk = durable and self._durability == "power"
        self._appended += 1
        self._queue.append(Pending(pos, frame, waiter, wait_for_disk))
        self._records.value += 1
        self._bytes.value += len(frame)
        if wait_for_disk:
            self._alone = alone
            self._ring_soon()
        else:
            self._write_here()
        return waiter

    @property
    def waiting(self) -> int:
        """Frames that are not synced."""
        return self._appended - self._done

    async def flush(self) -> None:
        """Ends when all frames appended before are synced. Raises OutboxFailed."""
        while self.waiting:
            done = self._loop.create_future()
            self._flushers.append(done)
            self._ring()
            await done

    def retry(self) -> None:
        """Lets the flusher look again, after a failure above all."""
        self._ring()

    async def close(self) -> None:
        """Syncs what waits and ends the thread."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._ring()
        await asyncio.to_thread(self._thread.join)
        await asyncio.sleep(0)  # what the flusher posted last
        self._let_go()

    # --- the loop's side ------------------------------------------------------------------------

    def _ring_soon(self) -> None:
        """After whatever else is ready to run: all who record now share one sync, and the flusher
        wakes when this thread is about to wait, not to fight it for the interpreter.
        """
        if not self._ringing:
            self._ringing = True
            self._loop.call_soon(self._sync_here_or_ring)

    def _sync_here_or_ring(self) -> None:
        self._ringing = False
        if not (self._alone and len(self._queue) == 1 and self._sync_here()):
            self._ring()

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            self._bell.release()

    def _sync_here(self) -> bool:
        """The flusher's work for a single frame; False: it is the flusher's after all."""
        quick = self._sync_s < _QUICK_SYNC_S and not self._stalled
        if not quick or self._broken or self.failed or not self._io.acquire(blocking=False):
            return False
        try:
            pending = self._queue[0]
            if self._committing or self._offset + len(pending.frame) > self._size:
                return False
            try:
                self._files.write(self._fd, pending.frame, self._offset)
                self._queue.popleft()
                self._unsynced.append(pending)
                self._offset += len(pending.frame)
                self._sync(self._fd)
            except OSError:
                self._broken = True
                return False
            batch, self._unsynced = self._unsynced, []
            self._dirty_since = None
            self._synced(batch, self._offset)
        finally:
            self._io.release()
        self._settle(batch, None)
        return True

    def _write_here(self) -> None:
        """Writes all that waits, unless the flusher is at it or something is out of the ordinary:
        then it is the flusher's.
        """
        if self._broken or self.failed or not self._io.acquire(blocking=False):
            self._ring()
            return
        try:
            group = list(self._queue)
            data = b"".join([pending.frame for pending in group])
            if self._offset + len(data) > self._size:
                self._ring()
                return
            try:
                self._files.write(self._fd, data, self._offset)
            except OSError:
                self._broken = True
                self._ring()
                return
            for _ in group:
                self._queue.popleft()
            self._offset += len(data)
            self._unsynced += group
        finally:
            self._io.release()
        for pending in group:
            if not pending.durable:
                _resolve(pending.waiter)
        if self._dirty_since is None:
            self._dirty_since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(SYNC_DELAY_S, self._sync_if_due)

    def _sync_if_due(self) -> None:
        self._timer = None
        since = self._dirty_since
        if since is None or self._closing:
            return
        left = since + SYNC_DELAY_S - self._loop.time()
        if left > 0.001:
            self._timer = self._loop.call_later(left, self._sync_if_due)
        else:
            self._ring()

    def _settle(self, done: list[Pending], failure: OutboxFailed | None) -> None:
        for pending in done:
            _resolve(pending.waiter, failure)
        waiting, self._flushers = self._flushers, []
        for waiter in waiting:
            _resolve(waiter, failure)
        self._on_synced()

    # --- the flusher's side ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                self._bell.acquire()
                self._rung = False  # before the queue is looked at: a later frame rings again
                self._commit()
                while self._closing:
                    if self.failed or not (self._queue or self._unsynced):
                        return
                    self._commit()
        finally:
            if not self._closing:  # a bug ended the thread: nobody may wait for it for ever
                self.failed = True
                self._post([*self._unsynced, *self._queue], OutboxFailed())

    def _commit(self) -> None:
        """1. take all that waits 2. write it at once 3. one sync 4. tell everybody."""
        with self._io:
            waiting = self._take()  # 1
            if not (waiting or self._unsynced or self.failed):
                return
            if self._broken or self.failed:
                self._unsynced += waiting
                self._replace()
                return
            if not self._write(waiting):  # 2
                self._broken = True
                self._replace()
                return
            batch, fd, end = list(self._unsynced), self._fd, self._offset
            self._dirty_since = None
            self._committing = True
        try:
            self._sync(fd)  # 3
        except OSError:
            with self._io:
                self._broken = True
                self._replace()
                self._committing = False
            return
        with self._io:
            self._committing = False
            # The loop's thread may have written more meanwhile; it waits for the next sync.
            del self._unsynced[: len(batch)]
            self._synced(batch, end)
        self._post(batch, None)  # 4

    def _take(self) -> list[Pending]:
        taken = []
        while self._queue:
            taken.append(self._queue.popleft())
        return taken

    def _write(self, waiting: list[Pending]) -> bool:
        """Writes to the active segment, and to new ones when it is full. False: it failed, and all
        that waits is in `_unsynced`.
        """
        self._unsynced = [*self._unsynced, *waiting]
        start = 0
        try:
            while start < len(waiting):
                stop, size = start, 0
                while stop < len(waiting):
                    more = len(waiting[stop].frame)
                    if self._offset + size + more > self._size:
                        break
                    stop, size = stop + 1, size + more
                if stop > start:
                    data = b"".join([pending.frame for pending in waiting[start:stop]])
                    self._files.write(self._fd, data, self._offset)
                    self._offset += size
                if stop < len(waiting):
                    self._roll(waiting[stop:])
                start = stop
        except OSError:
            return False
        return True

    def _roll(self, rest: list[Pending]) -> None:
        """Syncs and ends the active segment, opens the next one."""
        count = len(self._unsynced) - len(rest)
        written = self._unsynced[:count]
        self._sync(self._fd)
        self._unsynced = self._unsynced[count:]
        self._synced(written, self._offset)
        self._post(written, None)
        self._files.truncate(self._fd, self._offset)
        self._let_go()
        self._open_segment(rest[0].pos, [], at_least=len(rest[0].frame))

    def _replace(self) -> None:
        """A new segment with every unsynced frame, synced before it gets its name."""
        waiting = self._take()
        self._unsynced = [*self._unsynced, *waiting]
        batch = self._unsynced
        self._let_go()
        try:
            first_pos = batch[0].pos if batch else self.synced_pos + 1
            self._open_segment(first_pos, batch)
        except OSError:
            self.failed = True
            self._post(batch, OutboxFailed())
            return
        self.failed = False
        self._broken = False
        self._unsynced = []
        self._synced(batch, self._offset)
        self._post(batch, None)

    def _open_segment(self, first_pos: int, frames: list[Pending], *, at_least: int = 0) -> None:
        """Raises OSError; then nothing under a segment's name was changed."""
        data = Header(source=self._source, boot=self._boot, first_pos=first_pos).encode()
        data += b"".join([pending.frame for pending in frames])
        size = max(self._segment_bytes, len(data) + at_least)
        path = segment_path(self._directory, first_pos)
        unfinished = path.with_suffix(UNFINISHED)
        if unfinished.exists():
            self._files.remove(unfinished)
        fd = self._files.create(unfinished, size)
        try:
            self._files.write(fd, data, 0)
            self._files.sync(fd)
            self._files.rename(unfinished, path)
            self._files.sync_directory(self._directory)
        except OSError:
            with contextlib.suppress(OSError):
                self._files.close(fd)
            raise
        self._fd, self._offset, self._size = fd, len(data), size
        # A segment without a synced frame had the same name, and is this one now.
        if self.segments and self.segments[-1].path == path:
            self.segments.pop()
        self.segments.append(
            Segment(path, first_pos, first_pos - 1, HEADER_BYTES, self._clock.now_ns())
        )

    def _sync(self, fd: int) -> None:
        """Raises OSError. Remembers how quick the disk is."""
        self._syncs.value += 1
        began_ns = self._clock.monotonic_ns()
        self._files.sync_data(fd)
        took_s = (self._clock.monotonic_ns() - began_ns) / 1e9
        self._sync_s += (took_s - self._sync_s) / 8
        if took_s > 10 * _QUICK_SYNC_S:
            self._stalled = _SYNCS_AFTER_STALL
        elif self._stalled:
            self._stalled -= 1

    def _let_go(self) -> None:
        """Closes the descriptor. What is synced does not depend on how that goes."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with contextlib.suppress(OSError):
                self._files.close(fd)

    def _synced(self, batch: list[Pending], end: int) -> None:
        if not batch:
            return
        segment = self.segments[-1]
        segment.written_ns = self._clock.now_ns()
        segment.end = end
        segment.last_pos = batch[-1].pos  # after `end`: readers look at it first
        self.synced_pos = batch[-1].pos
        self._done += len(batch)
        self._groups.value += 1

    def _post(self, done: list[Pending], failure: OutboxFailed | None) -> None:
        if done:
            self._loop.call_soon_threadsafe(self._settle, done, failure)


def _resolve(waiter: asyncio.Future[None], failure: OutboxFailed | None = None) -> None:
    if waiter.done():
        return
    if failure is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(failure)
