"""A tool server that says things beside its answers, when a test tells it to. Both eras, HTTP.

It answers lifecycle and lists by itself; each call waits for the test, which may say something on
its stream, answer it, or see that it was given up. What passes from it to whom is the test's work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from tests.fakes import mcp_wire as wire

TEXT = {"type": "string"}
SUBSCRIPTION_META = "io.modelcontextprotocol/subscriptionId"
CAPABILITIES = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"listChanged": True, "subscribe": True},
    "logging": {},
}


@dataclass(eq=False)
class Exchange:
    """One request, or one GET, and the way back."""

    message: dict[str, Any]
    headers: dict[str, str]
    said: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def params(self) -> dict[str, Any]:
        found: dict[str, Any] = self.message.get("params", {})
        return found

    @property
    def meta(self) -> dict[str, Any]:
        found: dict[str, Any] = self.params.get("_meta", {})
        return found

    def note(self, method: str, params: dict[str, Any] | None = None, event_id: str = "") -> None:
        self.raw({"jsonrpc": "2.0", "method": method, "params": params or {}}, event_id)

    def progress(self, done: float, message: str = "") -> None:
        token = self.meta["progressToken"]
        self.note(
            "notifications/progress", {"progressToken": token, "progress": done, "message": message}
        )

    def raw(self, message: dict[str, Any], event_id: str = "") -> None:
        named = f"id: {event_id}\n".encode() if event_id else b""
        self.said.put_nowait(named + b"data: %s\n\n" % orjson.dumps(message))

    def answer(self, result: dict[str, Any] | None = None) -> None:
        self.raw(wire.result(self.message, result or wire.content("done")))
        self.said.put_nowait(None)

    def prime(self, event_id: str, *, retry_ms: int) -> None:
        """An event without data, by which the stream can be taken up again."""
        self.said.put_nowait(f"id: {event_id}\nretry: {retry_ms}\ndata: \n\n".encode())

    def end(self) -> None:
        """The stream ends without an answer."""
        self.said.put_nowait(None)


class Talker:
    def __init__(self) -> None:
        self.url = ""
        self.eras = {"modern", "legacy"}
        self.tools = ["talk"]
        self.calls: asyncio.Queue[Exchange] = asyncio.Queue()
        self.listens: asyncio.Queue[Exchange] = asyncio.Queue()
        self.open: set[Exchange] = set()
        #: Every message, as it came.
        self.seen: list[dict[str, Any]] = []
        self.ended: list[str] = []
        self.sessions: set[str] = set()
        #: What `initialize` waits for, if anything.
        self.slow: asyncio.Event | None = None
        self._given_up: set[Any] = set()
        self._news = asyncio.Condition()
        self._serve: Callable[[Exchange], Coroutine[Any, Any, None]] | None = None
        self._serving: set[asyncio.Future[None]] = set()

    def serve(self, answer: Callable[[Exchange], Coroutine[Any, Any, None]]) -> None:
        """From here on calls are answered by this, and not by hand."""
        self._serve = answer

    async def cancelled(self, id: Any, *, seconds: float = 5) -> None:
        """When the request has been given up."""
        async with asyncio.timeout(seconds), self._news:
            await self._news.wait_for(lambda: id in self._given_up)

    async def call(self) -> Exchange:
        """The next call that came."""
        async with asyncio.timeout(5):
            return await self.calls.get()

    async def listen(self) -> Exchange:
        """The next stream that is opened for listening."""
        async with asyncio.timeout(5):
            return await self.listens.get()

    async def told(self, method: str, count: int = 1) -> dict[str, Any]:
        """The last message of this method, when there have been so many."""
        async with asyncio.timeout(5), self._news:
            await self._news.wait_for(lambda: len(self.of(method)) >= count)
        return self.of(method)[-1]

    def of(self, method: str) -> list[dict[str, Any]]:
        return [one for one in self.seen if one.get("method") == method]

    # --- what it answers by itself --------------------------------------------------------------

    async def _got(self, request: web.Request) -> web.StreamResponse:
        session = request.headers.get("mcp-session-id", "")
        if request.method == "DELETE":
            self.ended.append(session)
            self.sessions.discard(session)
            return web.Response(status=200)
        if request.method == "GET":
            if "legacy" not in self.eras or session not in self.sessions:
                return web.Response(status=404 if "legacy" in self.eras else 405)
            exchange = Exchange({"jsonrpc": "2.0"}, _headers(request))
            self.listens.put_nowait(exchange)
            return await self._streamed(request, exchange)
        message = orjson.loads(await request.read())
        async with self._news:
            self.seen.append(message)
            if message.get("method") == "notifications/cancelled":
                self._given_up.add(message["params"]["requestId"])
            self._news.notify_all()
        needs_one = not wire.is_modern(message) and message.get("method") != "initialize"
        if needs_one and session not in self.sessions:
            return web.Response(status=404 if "legacy" in self.eras else 400)
        if "id" not in message or "method" not in message:
            return web.Response(status=202)
        return await self._asked(request, message)

    async def _asked(self, request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        exchange = Exchange(message, _headers(request))
        match message["method"]:
            case "tools/call":
                if self._serve is None:
                    self.calls.put_nowait(exchange)
                else:
                    serving = asyncio.ensure_future(self._serve(exchange))
                    self._serving.add(serving)
                    serving.add_done_callback(self._serving.discard)
                return await self._streamed(request, exchange)
            case "subscriptions/listen":
                said = {"notifications": message["params"]["notifications"],
                        "_meta": {SUBSCRIPTION_META: message["id"]}}  # fmt: skip
                exchange.note("notifications/subscriptions/acknowledged", said)
                self.listens.put_nowait(exchange)
                return await self._streamed(request, exchange)
            case "initialize" if self.slow is not None:
                await self.slow.wait()
        return self._answered(message)

    def _answered(self, message: dict[str, Any]) -> web.Response:
        headers = {}
        modern = wire.is_modern(message)
        if modern and "modern" not in self.eras:
            return _json(wire.error(message, wire.METHOD_NOT_FOUND, "unknown method"))
        match message["method"]:
            case "server/discover":
                reply = wire.discovered(message, "talker")
                reply["result"]["capabilities"] = CAPABILITIES
            case "initialize" if "legacy" in self.eras:
                reply = wire.initialized(message, "talker")
                reply["result"]["capabilities"] = CAPABILITIES
                session = f"s{len(self.sessions) + len(self.ended)}"
                self.sessions.add(session)
                headers["mcp-session-id"] = session
            case "tools/list":
                tools = [wire.tool(name, "Talks.", {"call": TEXT}) for name in self.tools]
                reply = wire.listed(message, tools)
            case "resources/subscribe" | "resources/unsubscribe" | "ping" if not modern:
                reply = wire.result(message, {})
            case _:
                reply = wire.error(message, wire.METHOD_NOT_FOUND, "unknown method")
        return _json(reply, headers)

    async def _streamed(self, request: web.Request, exchange: Exchange) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        self.open.add(exchange)
        try:
            await response.prepare(request)
            while (chunk := await exchange.said.get()) is not None:
                await response.write(chunk)
            await response.write_eof()
        finally:
            self.open.discard(exchange)
            exchange.gone.set()
        return response


@asynccontextmanager
async def talking() -> AsyncIterator[Talker]:
    talker = Talker()
    app = web.Application()
    app.router.add_route("*", "/mcp", talker._got)  # its own door
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None  # the port is told nowhere else
        sockets = site._server.sockets  # type: ignore[attr-defined]  # not told otherwise
        port = sockets[0].getsockname()[1]
        talker.url = f"http://127.0.0.1:{port}/mcp"
        yield talker
    finally:
        await runner.cleanup()


def _headers(request: web.Request) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


def _json(reply: dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(reply), content_type="application/json", headers=headers or {}
    )
