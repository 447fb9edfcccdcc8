"""What one Append call has in flight, and how far it may be acknowledged: contiguously, batch by
batch, each only when the records of all its tenants are stored.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from services.common.errors import BehavryError

#: A shipper keeps eight batches in flight; beyond twice that nothing more is read.
MAX_OUTSTANDING: Final = 16


class Batch:
    """One message of a shipper. `parts_left` counts the tenants whose records are not stored."""

    __slots__ = ("last_pos", "parts_left", "stream")

    def __init__(self, stream: Stream, last_pos: int, parts_left: int) -> None:
        self.stream = stream
        self.last_pos = last_pos
        self.parts_left = parts_left

    def stored(self) -> None:
        self.parts_left -= 1
        if not self.parts_left:
            self.stream.advance()


class Stream:
    """Belongs to one call; the writer completes its batches, the servicer awaits `next_ack`."""

    def __init__(self, *, source: str, boot: str, peer: str, position: int) -> None:
        self.source = source
        self.boot = boot
        self.peer = peer
        #: Everything up to here is stored.
        self.committed_pos = position
        #: What source_positions says, as far as this process knows.
        self.saved_pos = position
        self.failure: BehavryError | None = None
        self._outstanding: deque[Batch] = deque()
        self._closed = False
        self._completed = 0
        self._told = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self.failure is not None

    async def room(self) -> None:
        """Waits until another batch may be begun."""
        while len(self._outstanding) >= MAX_OUTSTANDING and not self.ended:
            self._room.clear()
            await self._room.wait()

    def begin(self, *, last_pos: int, tenants: int) -> Batch:
        batch = Batch(self, last_pos, tenants)
        self._outstanding.append(batch)
        if not tenants:
            self.advance()
        return batch

    def advance(self) -> None:
        while self._outstanding and not self._outstanding[0].parts_left:
            done = self._outstanding.popleft()
            self.committed_pos = max(self.committed_pos, done.last_pos)
            self._completed += 1
        self._changed.set()
        self._room.set()

    def close(self) -> None:
        """No more batches come; the stream ends once all are acknowledged."""
        self._closed = True
        self._changed.set()

    def abandon(self) -> None:
        """Its call is over: what is still in flight will be resent, so nobody need store it now."""
        if self._outstanding:
            self.fail(BehavryError("NO_TIME_LEFT", "the stream's call is over"))

    def fail(self, failure: BehavryError) -> None:
        """Ends the stream without an acknowledgement of what is in flight."""
        if self.failure is None:
            self.failure = failure
        self._changed.set()
        self._room.set()

    async def next_ack(self) -> int | None:
        """The position after at least one more batch; None at the end. Raises what the stream
        failed with.
        """
        while True:
            if self.failure is not None:
                raise self.failure
            if self._completed > self._told:
                self._told = self._completed
                return self.committed_pos
            if self._closed and not self._outstanding:
                return None
            self._changed.clear()
            await self._changed.wait()
