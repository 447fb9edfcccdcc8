"""Many requests over one line to a tool server: a child's pipes, or HTTP+SSE of 2024-11-05.

Decides which answer, piece of progress or question belongs to which request (mcp.md 7): by id, by
progress token, by subscription; what names none goes to whoever listens, else to the request that
began last, unless several agents share the line: then it may be anybody's, and is nobody's. What a
line of bytes looks like is its owner's business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from msgspec.structs import replace

from services.common.telemetry.counters import Counter
from services.proxy import messages
from services.proxy.backends.upstream import (
    MAX_ANSWER,
    MAX_ANSWERING,
    PROBE_S,
    Hear,
    Heard,
    Listening,
    Reply,
    Request,
    UpstreamFailed,
)
from services.proxy.calls import Spawn
from services.proxy.messages import METHOD_NOT_FOUND

IN_FLIGHT: Final = 16
#: How long a server may take to hear that a request was given up: it may not read at all.
CANCEL_S: Final = 1.0
LISTEN: Final = "subscriptions/listen"
SUBSCRIPTION_META: Final = "io.modelcontextprotocol/subscriptionId"
PROGRESS: Final = "notifications/progress"


@dataclass(slots=True, eq=False)
class _Pending:
    """A request that waits for its answer."""

    answer: asyncio.Future[Reply]
    hear: Hear | None
    progress: int | str | None


class Conversation:
    """`send` takes one encoded message; it raises UpstreamFailed. Whoever reads the line gives each
    message to `read`, and calls `end` when nothing comes any more.
    """

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        dropped: Counter,
        *,
        spawn: Spawn,
        shared: bool = False,
    ) -> None:
        self._send = send
        self._dropped = dropped
        self._spawn = spawn
        self._shared = shared
        #: How many answers to its own questions are under way.
        self._answering = 0
        self._pending: dict[int, _Pending] = {}
        self._listeners: list[Hear] = []
        self._next_id = 0
        self._places = asyncio.Semaphore(IN_FLIGHT)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        return not self._ended.done()

    @property
    def busy(self) -> bool:
        return bool(self._pending or self._listeners)

    async def ask(self, request: Request, hear: Hear | None = None) -> Reply:
        """Raises UpstreamFailed. Cancelling it tells the server, and its late answer is dropped."""
        if self._places.locked():
            await self._place(request.timeout_s)
        else:
            await self._places.acquire()
        try:
            return await self._ask(request, hear, request.timeout_s)
        finally:
            self._places.release()

    async def tell(self, message: Mapping[str, Any]) -> None:
        """A notification, or an answer to what the server asked. Raises UpstreamFailed."""
        await self._send(messages.encode({"jsonrpc": "2.0", **message}))

    async def listen(self, listening: Listening, hear: Hear, *, modern: bool) -> None:
        """Until the line ends, or a modern server ends the stream. Raises UpstreamFailed."""
        if modern:  # a place of its own: it would keep one of the sixteen for good
            await self._ask(Request(method=LISTEN, params=listening.params), hear, None)
            return
        self._listeners.append(hear)
        try:
            await asyncio.shield(self._ended)
        finally:
            self._listeners.remove(hear)

    def read(self, message: dict[str, Any], size: int) -> None:
        """One message of the server's, which had so many bytes."""
        if "method" in message:
            self._heard(message)
        else:
            self._answered(message, size)

    def end(self) -> None:
        """Nobody answers any more."""
        if not self._ended.done():
            self._ended.set_result(None)
        pending, self._pending = self._pending, {}
        for one in pending.values():
            if not one.answer.done():
                one.answer.set_exception(UpstreamFailed("upstream_protocol", ran=None))

    async def _place(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._places.acquire()
        except TimeoutError:
            raise UpstreamFailed("upstream_timeout", ran=False) from None

    async def _ask(self, request: Request, hear: Hear | None, timeout_s: float | None) -> Reply:
        if not self.alive:
            raise UpstreamFailed("upstream_unreachable", ran=False)
        self._next_id += 1
        number = self._next_id
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._pending[number] = _Pending(answer, hear, request.progress)
        params = request.params
        if request.progress is not None and hear is not None:
            params = with_progress(params, number)
        body = {"jsonrpc": "2.0", "id": number, "method": request.method, "params": params}
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(messages.encode(body))
                return await answer
        except TimeoutError:
            await self._cancel(number)
            raise UpstreamFailed("upstream_timeout", ran=None) from None
        except asyncio.CancelledError:
            await self._cancel(number)
            raise
        finally:
            self._pending.pop(number, None)

    async def _cancel(self, number: int) -> None:
        note = {"method": "notifications/cancelled", "params": {"requestId": number}}
        with contextlib.suppress(UpstreamFailed, TimeoutError):
            async with asyncio.timeout(CANCEL_S):
                await self.tell(note)

    def _answered(self, message: dict[str, Any], size: int) -> None:
        given = message.get("id")
        one = self._pending.get(given) if type(given) is int else None
        if one is None or one.answer.done():
            self._dropped.value += 1  # an unknown id, or a second answer
            return
        result, error = message.get("result"), message.get("error")
        if size > MAX_ANSWER:
            one.answer.set_exception(UpstreamFailed("inbound_blocked", ran=True))
        elif type(result) is dict:
            one.answer.set_result(Reply(result, None))
        elif type(error) is dict and type(error.get("code")) is int:
            one.answer.set_result(Reply(None, error))
        else:
            one.answer.set_exception(UpstreamFailed("upstream_protocol", ran=None))

    def _heard(self, message: dict[str, Any]) -> None:
        heard = read_heard(message)
        if heard is None:
            self._dropped.value += 1
        elif heard.id is not None:
            self._asked(heard)
        elif heard.method == PROGRESS:
            self._progressed(heard)
        else:
            self._noted(heard)

    def _asked(self, heard: Heard) -> None:
        """Its requests: a ping is answered here; nobody to ask is an answer too."""
        if heard.method == "ping":
            self._reply(heard, {"result": {}})
            return
        hears = self._newest() or next(iter(self._listeners), None)
        if hears is None or self._shared:
            error = {"code": METHOD_NOT_FOUND, "message": "not supported"}
            self._reply(heard, {"error": error})
        else:
            hears(heard)

    def _reply(self, heard: Heard, outcome: dict[str, Any]) -> None:
        """Beside the line, which goes on: a server that asks faster than it takes answers has to do
        without.
        """
        if self._answering >= MAX_ANSWERING:
            self._dropped.value += 1
            return
        self._answering += 1
        message = {"id": heard.id, **outcome}
        self._spawn("answer tool server", partial(self._tell_quietly, message))

    async def _tell_quietly(self, message: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(PROBE_S):
                await self.tell(message)
        except (UpstreamFailed, TimeoutError):
            self._dropped.value += 1
        finally:
            self._answering -= 1

    def _progressed(self, heard: Heard) -> None:
        token = heard.params.get("progressToken")
        one = self._pending.get(token) if type(token) is int else None
        if one is None or one.hear is None or one.progress is None:
            self._dropped.value += 1
            return
        params = {**heard.params, "progressToken": one.progress}
        one.hear(replace(heard, params=params))

    def _noted(self, heard: Heard) -> None:
        meta = heard.params.get("_meta")
        number = meta.get(SUBSCRIPTION_META) if type(meta) is dict else None
        subscribed = self._pending.get(number) if type(number) is int else None
        if subscribed is not None and subscribed.hear is not None:
            subscribed.hear(heard)
        elif self._listeners:
            for hear in list(self._listeners):
                hear(heard)
        elif (newest := self._newest()) is not None:
            newest(heard)
        else:
            self._dropped.value += 1

    def _newest(self) -> Hear | None:
        if self._shared:
            return None
        return next((one.hear for one in reversed(self._pending.values()) if one.hear), None)


def with_progress(params: Mapping[str, Any], token: int) -> dict[str, Any]:
    """The params with a progress token of ours in place of the agent's."""
    meta = params.get("_meta")
    return {**params, "_meta": {**(meta if type(meta) is dict else {}), "progressToken": token}}


def read_heard(message: Mapping[str, Any], event_id: str = "") -> Heard | None:
    """None where it is neither a notification nor a request that could be answered."""
    method, params = message.get("method"), message.get("params", {})
    if type(method) is not str or not 1 <= len(method) <= 128 or type(params) is not dict:
        return None
    if "id" in message and not messages.valid_id(message["id"]):
        return None
    return Heard(method=method, params=params, id=message.get("id"), event_id=event_id)
