"""Starts a Rego child and talks to it: requests in order, a limit per item, a kill on overrun.

Says what happened to each request; what it means for a decision is the caller's.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Self, cast

import msgspec

from services.common.rego import frames

ITEM_LIMIT_S: Final = 0.2
LOAD_LIMIT_S: Final = 30.0
CHILD: Final = (sys.executable, "-m", "services.common.rego.child")


class End(Enum):
    """How a request ended. Only DONE answers all items."""

    DONE = "done"
    REFUSED = "refused"
    OVERRUN = "overrun"  # this request held the child too long; it was killed for it
    CRASHED = "crashed"  # the child died while this request was being worked on
    UNSTARTED = "unstarted"  # the child died before it came to this request


@dataclass(frozen=True, slots=True)
class Outcome:
    """`items` are the answers that came, from the first item on, without gaps. `culprit` is the
    item that the child was at when it was killed or died, where that is known.
    """

    end: End
    items: tuple[frames.Item, ...] = ()
    refused: str = ""
    culprit: int | None = None


@dataclass(slots=True)
class _Pending:
    id: int
    expected: int
    limit_s: float
    answer: asyncio.Future[Outcome]
    items: list[frames.Item] = field(default_factory=list)


class RegoProcess(asyncio.Protocol):
    """One child. `on_end` is called once, when it is gone."""

    def __init__(self, process: asyncio.subprocess.Process, progress: mmap.mmap) -> None:
        self.on_end: Callable[[], None] = lambda: None
        self.pid = process.pid
        self._process = process
        self._at = progress
        self._loop = asyncio.get_running_loop()
        self._pending: deque[_Pending] = deque()
        self._buffer = bytearray()
        self._next_id = 0
        self._progress = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._overrun = False
        self._gone = False
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def start(cls, command: Sequence[str] = CHILD) -> Self:
        """`command` gets two descriptors as its last arguments: its end of the socket pair, and
        the page for its progress.
        """
        ours, theirs = socket.socketpair()
        shared = os.memfd_create("rego-progress")
        try:
            os.ftruncate(shared, frames.PROGRESS.size)
            progress = mmap.mmap(shared, frames.PROGRESS.size)
            process = await asyncio.create_subprocess_exec(
                *command,
                str(theirs.fileno()),
                str(shared),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), shared],
                env={"PYTHONPATH": os.pathsep.join(sys.path), "RUST_BACKTRACE": "0"},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(shared)
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        _, child = await loop.create_connection(lambda: cls(process, progress), sock=ours)
        return child

    @property
    def gone(self) -> bool:
        return self._gone

    async def load(
        self, revision: str, tenants: Sequence[frames.ChildTenant], data: bytes | None = None
    ) -> Outcome:
        raw = msgspec.Raw(data) if data is not None else None
        message = frames.Load(self._take_id(), revision, tuple(tenants), raw)
        return await self._ask(message, 0, LOAD_LIMIT_S)

    async def evaluate(
        self,
        revision: str,
        tenant: str,
        items: Sequence[bytes],
        *,
        shadow: bool = False,
        limit_s: float = ITEM_LIMIT_S,
    ) -> Outcome:
        raw = tuple(msgspec.Raw(item) for item in items)
        message = frames.Evaluate(self._take_id(), revision, tenant, raw, shadow)
        return await self._ask(message, len(raw), limit_s)

    async def ping(self, limit_s: float = ITEM_LIMIT_S) -> Outcome:
        return await self._ask(frames.Ping(self._take_id()), 0, limit_s)

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Kills the child and waits until it is reaped."""
        self.kill()
        await self._process.wait()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        size = frames.LENGTH.size
        while len(self._buffer) >= size:
            (length,) = frames.LENGTH.unpack_from(self._buffer)
            if len(self._buffer) < size + length:
                break
            body = bytes(self._buffer[size : size + length])
            del self._buffer[: size + length]
            self._take(body)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._gone = True
        if self._watch is not None:
            self._watch.cancel()
        if self._process.returncode is None:
            self._process.kill()
        end = End.OVERRUN if self._overrun else End.CRASHED
        while self._pending:
            pending = self._pending.popleft()
            if not pending.answer.done():
                culprit = self._culprit(pending) if end is not End.UNSTARTED else None
                pending.answer.set_result(Outcome(end, tuple(pending.items), culprit=culprit))
            end = End.UNSTARTED
        self._at.close()
        self.on_end()

    def _culprit(self, pending: _Pending) -> int | None:
        request, at = frames.PROGRESS.unpack_from(self._at)
        known = request == pending.id and len(pending.items) <= at < pending.expected
        return at if known else None

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    async def _ask(self, message: frames.Request, expected: int, limit_s: float) -> Outcome:
        if self._gone or self._transport is None:
            return Outcome(End.UNSTARTED)
        pending = _Pending(message.id, expected, limit_s, self._loop.create_future())
        if not self._pending:
            self._progress = self._loop.time()
        self._pending.append(pending)
        self._transport.write(frames.frame(message))
        self._arm()
        return await pending.answer

    def _take(self, body: bytes) -> None:
        """A frame that does not fit what was asked ends the child: it can no longer be trusted."""
        try:
            answer = frames.decode_answer(body)
        except msgspec.DecodeError:
            self.kill()
            return
        if not self._pending or self._pending[0].id != answer.id:
            self.kill()
            return
        head = self._pending[0]
        if len(head.items) + len(answer.items) > head.expected:
            head.items.clear()  # which answer belongs to which item cannot be told
            self.kill()
            return
        self._progress = self._loop.time()
        head.items.extend(answer.items)
        if not answer.done:
            return
        self._pending.popleft()
        self._arm()
        if not head.answer.done():
            end = End.REFUSED if answer.refused else End.DONE
            head.answer.set_result(Outcome(end, tuple(head.items), answer.refused))

    def _arm(self) -> None:
        """A timer that fires in time for the head. One that fires early is set again."""
        if not self._pending:
            return
        at = self._progress + self._pending[0].limit_s
        if self._watch is None or self._watch.when() > at:
            if self._watch is not None:
                self._watch.cancel()
            self._watch = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        """The child works in order: only the head's time runs, anew with each answer."""
        self._watch = None
        if self._pending and self._loop.time() >= self._progress + self._pending[0].limit_s:
            self._overrun = True
            self.kill()
            return
        self._arm()
