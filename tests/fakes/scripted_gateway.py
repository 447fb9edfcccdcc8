"""A gateway on this machine that answers as a test scripts it, for those that speak to gateways.

Unscripted it is a plain MCP server of both eras without a stream of its own. It keeps what it was
asked, and knows when an asker closed its stream.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

PATIENCE_S = 5
SESSION = "session-1"
EVENTS = {"content-type": "text/event-stream"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as it came."""

    verb: str
    headers: dict[str, str]
    raw: bytes

    @property
    def message(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(self.raw) if self.raw else {}
        return found

    @property
    def method(self) -> str:
        return str(self.message.get("method", ""))


Script = Callable[[Asked, web.Request], Awaitable[web.StreamResponse | None]]


@dataclass(kw_only=True)
class ScriptedGateway:
    """`script` answers first; what it leaves (None) is answered plainly."""

    script: Script | None = None
    asked: list[Asked] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    #: Streams whose reader went away.
    left: list[str] = field(default_factory=list)
    port: int = 0
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    tls: ssl.SSLContext | None = None
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        scheme = "https" if self.tls else "http"
        return f"{scheme}://127.0.0.1:{self.port}/mcp/v1/git/key"

    def methods(self) -> list[str]:
        """What was asked, in order; verbs but POST by their name."""
        return [one.method if one.verb == "POST" else one.verb for one in self.asked]

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(true)

    async def open(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(
            application, handler_cancellation=True, shutdown_timeout=0.1, access_log=None
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = Asked(verb=request.method, headers=headers, raw=await request.read())
        async with self._news:
            self.asked.append(asked)
            self._news.notify_all()
        try:
            answer = await self.script(asked, request) if self.script else None
        except asyncio.CancelledError:
            self.left.append(asked.method or asked.verb)
            async with self._news:
                self._news.notify_all()
            raise
        return answer or self._plainly(asked)

    def _plainly(self, asked: Asked) -> web.Response:
        match asked.verb, asked.method:
            case "GET", _:
                return web.Response(status=405)
            case "DELETE", _:
                return web.Response(status=204)
            case _, "initialize":
                version = asked.message["params"]["protocolVersion"]
                found = {"protocolVersion": version, "capabilities": {}, "serverInfo": {}}
                return result(asked, found, headers={"Mcp-Session-Id": SESSION})
            case _, "tools/list":
                return result(asked, {"tools": self.tools})
            case _ if "id" in asked.message and asked.method:
                return result(asked, {"content": []})
            case _:
                return web.Response(status=202)


def result(
    asked: Asked, body: dict[str, Any], *, headers: dict[str, str] | None = None
) -> web.Response:
    answer = {"jsonrpc": "2.0", "id": asked.message["id"], "result": body}
    return json(answer, headers=headers)


def json(
    body: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(body),
        content_type="application/json",
        headers=headers,
    )


async def stream(request: web.Request, *events: bytes) -> web.StreamResponse:
    """An event stream that has begun with these; whoever scripts it goes on or ends it."""
    response = web.StreamResponse(headers=EVENTS)
    await response.prepare(request)
    for event in events:
        await response.write(event)
    return response


def event(message: dict[str, Any], *, id: str = "") -> bytes:
    head = f"id: {id}\n".encode() if id else b""
    return head + b"data: " + msgspec.json.encode(message) + b"\n\n"


async def silence() -> None:
    """Until the asker leaves."""
    await asyncio.Event().wait()


@asynccontextmanager
async def scripted(tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedGateway]:
    gateway = ScriptedGateway(tls=tls)
    await gateway.open()
    try:
        yield gateway
    finally:
        await gateway.close()
