"""Standard input and output, each by a thread: pipes, files and terminals are read and written
alike, and neither a silent client nor one that does not read holds up the rest.

Decides where a line ends and which is too long; what a line says is messages.py's work.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

CHUNK: Final = 64 * 1024
AHEAD: Final = 16
FLUSH_S: Final = 0.3


class Splitter:
    """Lines from chunks. Of one that is too long nothing is kept: it comes out as None."""

    def __init__(self, max_line: int) -> None:
        self._max_line = max_line
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            self._add(end)
            line = b"".join(self._parts) if self._size <= self._max_line else None
            self._parts, self._size = [], 0
            if line is None or line.strip():
                yield line
        self._add(rest)

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._max_line:
            self._parts.clear()
        elif part:
            self._parts.append(part)


class Input:
    """What the client says, until it ends or somebody ends it."""

    def __init__(self, descriptor: int, max_line: int) -> None:
        self._descriptor = descriptor
        self._splitter = Splitter(max_line)
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)
        self._loop = asyncio.get_running_loop()

    def end(self) -> None:
        """As if the client had closed it."""
        self._chunks.put_nowait(b"")

    async def lines(self) -> AsyncIterator[bytes | None]:
        """None stands for a line that was too long."""
        threading.Thread(target=self._read, name="stdin", daemon=True).start()
        while chunk := await self._chunks.get():
            self._room.release()
            for line in self._splitter.feed(chunk):
                yield line

    def _read(self) -> None:
        while True:
            self._room.acquire()
            try:
                chunk = os.read(self._descriptor, CHUNK)
            except OSError:
                chunk = b""
            try:
                self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
            except RuntimeError:  # the loop has ended
                return
            if not chunk:
                return


class Output:
    """What the client reads. `gone` is called when it does not read any more."""

    def __init__(self, descriptor: int, gone: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._gone = gone
        self._lines: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._write, name="stdout", daemon=True).start()

    async def write(self, line: bytes) -> None:
        """Returns when it is written; a caller that is cancelled leaves whole lines behind."""
        await self._put(line + b"\n")

    async def flush(self) -> None:
        """What is written gets its moment, and no more than that."""
        try:
            await asyncio.wait_for(self._put(b""), FLUSH_S)
        except TimeoutError:
            return

    def _put(self, raw: bytes) -> asyncio.Future[None]:
        done: asyncio.Future[None] = self._loop.create_future()
        self._lines.put((raw, done))
        return done

    def _write(self) -> None:
        broken = False
        while True:
            raw, done = self._lines.get()
            left = memoryview(b"" if broken else raw)
            try:
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except OSError:
                broken = True
            try:
                if broken:
                    self._loop.call_soon_threadsafe(self._gone)
                self._loop.call_soon_threadsafe(_settle, done)
            except RuntimeError:  # the loop has ended
                return


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
