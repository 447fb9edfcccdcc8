"""A door in front of the gateway that adds the credential which the suite cannot send.

Passes every request on byte for byte otherwise, Host and Origin included, and every answer as it
comes: what a client that goes away ends is ended behind it too. Notes each request that must not
happen unrecorded (`governed_kind`), so that the records can be counted against it. Exists for tests
alone: the product has no way to be called without a credential.

    python -m tests.conformance.shim --told FILE --noted FILE

FILE says where the gateway is and which server's agent has which token (`Told`); it is read when
the first request comes, since the gateway must know this address before it starts.
"""

import argparse
import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import uvicorn
from starlette.types import Message, Receive, Scope, Send

GOVERNED: Final = frozenset(
    {"tools/call", "resources/read", "prompts/get", "resources/subscribe", "tasks/update"}
)
_HOP: Final = frozenset({b"connection", b"transfer-encoding", b"keep-alive"})
_OURS: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""What the HTTP client would add by itself."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    target: str
    tokens: dict[str, str]


class Noted(msgspec.Struct, frozen=True, kw_only=True):
    """One governed request, and the HTTP status that it got."""

    server: str
    kind: str
    status: int


def governed_kind(body: bytes) -> str | None:
    """What of a message is decided and recorded each time (mcp.md 4, class F)."""
    try:
        message: Any = json.loads(body)
    except ValueError:
        return None
    if not isinstance(message, dict):
        return None
    method, params = message.get("method"), message.get("params")
    if method is None:
        return "answer" if "result" in message or "error" in message else None
    given: dict[str, Any] = params if isinstance(params, dict) else {}
    if method in GOVERNED or "inputResponses" in given:
        return str(method)
    wanted = given.get("notifications")
    if method == "subscriptions/listen" and isinstance(wanted, dict):
        return str(method) if wanted.get("resourceSubscriptions") else None
    return None


class Shim:
    """The ASGI application."""

    def __init__(self, told: Path, noted: Path) -> None:
        self._file = told
        self._noted = noted.open("ab", buffering=0)
        self._told: Told | None = None
        self._client: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        body = await _body(receive)
        async with asyncio.TaskGroup() as group:
            passing = group.create_task(self._pass(scope, body, send))
            leaving = group.create_task(_left(receive))
            await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            passing.cancel()
            leaving.cancel()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            auto_decompress=False,
            skip_auto_headers=_OURS,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as self._client:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _pass(self, scope: Scope, body: bytes, send: Send) -> None:
        if self._told is None:
            self._told = msgspec.json.decode(self._file.read_bytes(), type=Told)
        assert self._client is not None
        server = scope["path"].rpartition("/")[2]
        sent = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name not in _HOP | {b"content-length"}
        ]
        sent.append(("authorization", f"Bearer {self._told.tokens.get(server, '')}"))
        kind = governed_kind(body) if scope["method"] == "POST" else None
        async with self._client.request(
            scope["method"],
            self._told.target + scope["path"],
            headers=sent,
            data=body or None,
            allow_redirects=False,
        ) as answer:
            if kind is not None:
                noted = Noted(server=server, kind=kind, status=answer.status)
                self._noted.write(msgspec.json.encode(noted) + b"\n")
            headers = [(name.lower(), value) for name, value in answer.raw_headers]
            start: Message = {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [(name, value) for name, value in headers if name not in _HOP],
            }
            await send(start)
            async for part in answer.content.iter_any():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> bytes:
    whole = b""
    while True:
        message = await receive()
        whole += bytes(message.get("body", b""))
        if not message.get("more_body", False):
            return whole


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def serve(told: Path, noted: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    print(json.dumps({"address": address, "pid": os.getpid()}), flush=True)
    config = uvicorn.Config(
        Shim(told, noted),
        http="httptools",
        log_level="error",
        timeout_graceful_shutdown=1,
        ws="none",
        server_header=False,
        date_header=False,
    )
    await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.conformance.shim")
    parser.add_argument("--told", type=Path, required=True)
    parser.add_argument("--noted", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(serve(options.told, options.noted))


if __name__ == "__main__":
    main()
