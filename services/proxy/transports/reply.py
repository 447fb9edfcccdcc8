"""The way back to an agent: JSON, or a stream of events where something is said before the answer
or the answer takes long (mcp.md 7).

Decides which of the two it is, the order of what leaves, and how much may wait for a slow reader.
What is said is the pipeline's business.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from services.proxy.answers import Answer
from services.proxy.calls import Kept
from services.proxy.pipeline import TooLarge

#: Who reads is watched from here on: most answers have left before.
WATCH_S: Final = 0.25
PATIENCE_S: Final = 15.0
#: A body that has not come by then will not: its request would keep its place for good.
BODY_S: Final = 60.0
MAX_QUEUED: Final = 1024 * 1024
#: How long a reader may take for what is left when the answer is there.
LAST_S: Final = 60.0
_SSE: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
_COMMENT: Final = b":\n\n"

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Disconnected(Exception):
    """The agent left in the middle of its body: what came is no message, however whole it looks."""


class Reply:
    """One request's. `abort` ends the connection without waiting for its reader."""

    def __init__(self, receive: Receive, send: Send, abort: Callable[[], None]) -> None:
        self._receive = receive
        self._send = send
        self._abort = abort
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._news = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard_out = False
        self._watch_due = self._overdue = False
        self._ending = False
        self._tail: Kept | None = None
        self.gone = asyncio.Event()
        self.when_gone: Callable[[], None] | None = None
        self.headed = False

    async def read(self, cap: int) -> bytes:
        """The request's body. Raises TooLarge, Disconnected."""
        body = await read(self._receive, cap)
        self._heard_out = True
        if self._watch_due:
            self._watch()
        if self._overdue and self._timer is not None:  # its 15 s begin now
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._look)
        return body

    async def give(self, work: Awaitable[Answer]) -> None:
        """The answer leaves last."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(WATCH_S, self._look)
        try:
            answer = await work
            self._ending = True
            self._timer.cancel()
            if self._tail is not None:
                tail, self._tail = self._tail, None
                tail.end(answer.body)
            elif self._writer is None:
                await send_answer(self._send, answer)
            else:
                await self._last(self._writer, answer)
        finally:
            self._ending = True
            self._timer.cancel()
            if self._tail is not None:  # nothing else will be said to who comes back for it
                self._tail.end(b"")
            if self._writer is not None:
                await _ended(self._writer)
            if self._watcher is not None:
                await _ended(self._watcher)

    async def open(self) -> None:
        self._begin()
        self._watch()

    async def send(self, message: bytes) -> None:
        self.push(message)

    def push(self, message: bytes, event_id: str = "") -> None:
        if self._tail is not None:
            self._tail.add(message)
            return
        if self._ending:
            return
        self._begin()
        if self._queued + len(message) > MAX_QUEUED:
            self._lost()
            self._abort()
            return
        self._put(_event(message, event_id))

    def pause(self, tail: Kept, last: bytes) -> None:
        if self._tail is None and not self._ending:
            self._begin()
            self._put(last)
            self._tail = tail

    # --- who writes -----------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._writer is None and not self._ending:
            self._writer = _started(self._write())

    def _put(self, chunk: bytes) -> None:
        self._queue.append(chunk)
        self._queued += len(chunk)
        self._news.set()

    async def _write(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": _SSE})
        self._queue.appendleft(_COMMENT)
        while not self.gone.is_set():
            chunk, last = b"".join(self._queue), self._ending or self._tail is not None
            self._queue.clear()
            await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})
            self._queued = sum(map(len, self._queue))
            if last:
                return
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._news.wait()
            except TimeoutError:
                self._queue.append(_COMMENT)
            self._news.clear()

    async def _last(self, writer: asyncio.Task[None], answer: Answer) -> None:
        """An answer without a body ends the stream, and nothing is said."""
        if answer.body:
            self._put(_event(answer.body, ""))
        self._news.set()
        await asyncio.wait((writer,), timeout=LAST_S)
        if not writer.done():
            self._abort()

    # --- who reads ------------------------------------------------------------------------------

    def _look(self) -> None:
        """At 0.25 s it is watched who reads, at 15 s the stream begins, or there is nothing to
        answer yet; that ends at 60 s.
        """
        loop = asyncio.get_running_loop()
        if not self._watch_due:
            self._watch_due = True
            if self._heard_out:  # what is watched for comes the way of the body
                self._watch()
            self._timer = loop.call_later(max(PATIENCE_S - WATCH_S, 0), self._look)
        elif self._heard_out or self._writer is not None or self.headed:
            if not self.headed:
                self._begin()
        elif not self._overdue:
            self._overdue = True
            self._timer = loop.call_later(max(BODY_S - PATIENCE_S, 0), self._look)
        else:
            self._abort()

    def _watch(self) -> None:
        if self._watcher is None and not self._ending:
            self._watcher = _started(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._ending and self._tail is None:
            self._lost()

    def _lost(self) -> None:
        self.gone.set()
        self._queue.clear()
        self._news.set()
        if self.when_gone is not None:
            self.when_gone()


def _event(message: bytes, event_id: str) -> bytes:
    if not event_id:
        return b"event: message\ndata: %s\n\n" % message
    return b"id: %s\nevent: message\ndata: %s\n\n" % (event_id.encode("ascii"), message)


def _started(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)


async def _ended(task: asyncio.Task[None]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))


async def read(receive: Receive, cap: int) -> bytes:
    """Raises TooLarge as soon as there is more, Disconnected where there should be."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Disconnected
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > cap:
            raise TooLarge
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def send_answer(send: Send, answer: Answer) -> None:
    headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
