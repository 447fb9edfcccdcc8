"""The listening socket under the ASGI application: uvicorn's protocol on our own loop.

Decides limits that must hold before a request exists (headers), and how a listener ends. uvicorn's
own server would tick ten times a second and take the signals.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32 * 1024
MAX_URL: Final = 8 * 1024
#: A head that has not come by then will not: nobody knows yet who sends it.
HEAD_S: Final = 30.0
KEEP_ALIVE_S: Final = 75
DRAIN_S: Final = 10.0
#: Where a request finds how to end its connection without waiting for its reader.
ABORT: Final = "behavry.abort"
#: What it would say is in our own log, without texts of exceptions.
_SILENT: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"nowhere": {"class": "logging.NullHandler"}},
    "loggers": {"uvicorn": {"handlers": ["nowhere"], "propagate": False}},
}
_TOO_LARGE: Final = b"\r\n".join(
    (b"HTTP/1.1 431 Too Large", b"content-length: 0", b"connection: close", b"", b"")
)


class CappedProtocol(HttpToolsProtocol):
    """Gives up on a request whose head is too big while it is still coming in, or does not come."""

    _head_bytes = 0
    #: How many bytes came since the parser last said what it made of them. A header that never ends
    #: would be kept until it does.
    _unheard = 0
    _in_head = True
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unheard += len(data)
        super().data_received(data)
        if self._unheard > MAX_HEADER_BYTES:
            self._too_large()
        if self._in_head and self._patience is None:
            self._wait_for_head()

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        self._in_head = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._unheard = 0
        super().on_url(url)
        if len(self.url) > MAX_URL:
            self._too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._unheard = 0
        if not self._in_head:
            return  # a trailer: what was decided on does not change any more
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEADER_BYTES or len(self.headers) >= MAX_HEADERS:
            self._too_large()
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unheard = 0
        self._in_head = False
        self._has_head()
        if not self.transport.is_closing():
            abort = self.transport.abort
            self.scope[ABORT] = abort  # type: ignore[typeddict-unknown-key]  # our own
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unheard = 0
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._unheard = 0
        if not self.transport.is_closing():
            super().on_message_complete()

    def _wait_for_head(self) -> None:
        self._patience = self.loop.call_later(HEAD_S, self._impatient)

    def _has_head(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _impatient(self) -> None:
        self._patience = None
        if not self.transport.is_closing():
            self.transport.close()

    def _too_large(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()


def bind(address: str) -> tuple[socket.socket, str]:
    """`host:port`, port 0 for a free one; answers the socket and the address it got."""
    host, _, port = address.rpartition(":")
    listener = socket.create_server((host.strip("[]") or "127.0.0.1", int(port)), backlog=1024)
    # Head and body of an answer are two writes: the second must not wait for the first one's ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener, f"{host}:{listener.getsockname()[1]}"


@asynccontextmanager
async def listening(app: Callable[..., Any], listener: socket.socket) -> AsyncIterator[None]:
    """Serves until left; then requests get 10 s to end."""
    config = uvicorn.Config(
        app,
        http=CappedProtocol,
        ws="none",
        lifespan="off",
        log_config=_SILENT,
        access_log=False,
        proxy_headers=False,
        date_header=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: CappedProtocol(config=config, server_state=state, app_state={}), sock=listener
    )
    try:
        yield
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=DRAIN_S)
        for task in list(state.tasks):
            task.cancel()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=1.0)
