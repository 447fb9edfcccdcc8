"""The floor: the least that an authenticating relay in Python costs, to measure against.

A bare ASGI pass-through on uvicorn, uvloop and httptools. It checks the agent's RS256 token (one
signature check per token, then a cache from the token's hash to its expiry, as the proxy has) and
relays the body over a raw keep-alive connection. No policy, no record, no look into the payload.

Frozen: floor.sha256 holds this file's digest, the bench refuses another one. A floor that moves
would make every ratio over it meaningless.

    python -m tests.perf.floor --upstream http://127.0.0.1:N/mcp --jwks FILE [--port N]
"""

import argparse
import asyncio
import hashlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httptools
import orjson
import uvicorn
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

LEEWAY_S: Final = 30
RELAYED: Final = frozenset({b"mcp-protocol-version", b"mcp-method", b"mcp-name", b"mcp-session-id"})

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


class Tokens:
    """RS256 against the issuer's keys; a verified token is remembered by its hash until `exp`."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys
        self._valid_until: dict[bytes, float] = {}

    def check(self, token: bytes) -> bool:
        known = hashlib.sha256(token).digest()
        until = self._valid_until.get(known)
        if until is None:
            try:
                claims = jwt.decode(token.decode(), self._keys, algorithms=["RS256"]).claims
            except (JoseError, ValueError):
                return False
            until = float(claims["exp"]) + LEEWAY_S
            self._valid_until[known] = until
        return until > time.time()


class Upstream(asyncio.Protocol):
    """One keep-alive connection to the tool server, one request out at a time."""

    def __init__(self) -> None:
        self.usable = True
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._type = b"application/json"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not subclasses

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes, bytes]]:
        self._answer: asyncio.Future[tuple[int, bytes, bytes]] = (
            asyncio.get_running_loop().create_future()
        )
        self._body.clear()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._type = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._answer.set_result((self._parser.get_status_code(), self._type, bytes(self._body)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if hasattr(self, "_answer") and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError())


class Floor:
    def __init__(self, upstream: str, tokens: Tokens) -> None:
        where = urlsplit(upstream)
        self._host, self._port = where.hostname or "127.0.0.1", where.port or 80
        self._tokens = tokens
        self._idle: list[Upstream] = []
        self._head = (
            f"POST {where.path} HTTP/1.1\r\nhost: {where.netloc}\r\n"
            "content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
        ).encode()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        relayed, token = [], b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                token = value.removeprefix(b"Bearer ")
            elif name in RELAYED:
                relayed.append(b"%s: %s\r\n" % (name, value))
        if not self._tokens.check(token):
            await _respond(send, 401, b"application/json", b"{}")
            return
        body = await _read(receive)
        request = b"%s%scontent-length: %d\r\n\r\n%s" % (
            self._head,
            b"".join(relayed),
            len(body),
            body,
        )
        connection = await self._connection()
        status, kind, answer = await connection.ask(request)
        self._idle.append(connection)
        await _respond(send, status, kind, answer)

    async def _connection(self) -> Upstream:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Upstream, self._host, self._port))[1]


async def _read(receive: Receive) -> bytes:
    message = await receive()
    if not message.get("more_body"):
        return bytes(message["body"])
    parts = [message["body"]]
    while message.get("more_body"):
        message = await receive()
        parts.append(message["body"])
    return b"".join(parts)


async def _respond(send: Send, status: int, kind: bytes, body: bytes) -> None:
    headers: Headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.perf.floor")
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--jwks", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    keys = KeySet.import_key_set(orjson.loads(options.jwks.read_bytes()))
    listener = socket.create_server(("127.0.0.1", options.port))
    ready = {"url": f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", "pid": os.getpid()}
    print(orjson.dumps(ready).decode(), flush=True)
    config = uvicorn.Config(
        Floor(options.upstream, Tokens(keys)),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        date_header=False,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
