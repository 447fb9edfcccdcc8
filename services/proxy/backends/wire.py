"""The connections to one tool server's host: kept, counted, and dialled where it is allowed.

Decides how many there are and how long one waits for one (mcp.md 11), and which addresses may be
reached. A library's client costs as much per call as the rest of the proxy; this does the little
that is needed, with llhttp for the parsing (connection.py).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from services.common.telemetry.counters import Counters
from services.proxy.backends import egress
from services.proxy.backends.connection import Connection, Response, Tap
from services.proxy.backends.upstream import CONNECT_S, UpstreamFailed

PER_SERVER: Final = 100
#: Of these, what streams without an end may take: who listens does not keep calls out.
LISTENING: Final = 50
#: The same for a server that is hosted beside us: as many as its children may be asked at once.
PER_HOSTED: Final = 400
LISTENING_HOSTED: Final = 200
WAIT_S: Final = 1.0
#: Below the 5 s after which common servers drop an idle connection.
IDLE_S: Final = 4.0

#: The context for a new connection. Raises UpstreamFailed.
Tls = Callable[[], Awaitable[ssl.SSLContext]]


class Origin:
    """The connections to one scheme, host and port."""

    def __init__(
        self, url: str, counters: Counters, *, tls: Tls, private: bool = True, socket: str = ""
    ) -> None:
        """`private`: whether its addresses may be private ones. `socket`: the path of a unix socket
        that is dialled instead.
        """
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = tls if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._private = private
        self._socket = socket
        self._most = PER_HOSTED if socket else PER_SERVER
        self._most_listening = LISTENING_HOSTED if socket else LISTENING
        self._idle: list[tuple[Connection, float]] = []
        self._open: set[Connection] = set()
        self._connecting = self._listening = 0
        self._retired = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._opened = counters.counter("proxy.upstream.connections")
        self._requests = counters.counter("proxy.upstream.requests")

    async def request(
        self, head: bytes, body: bytes, timeout_s: float, first_byte_s: float, tap: Tap | None
    ) -> Response:
        """Raises UpstreamFailed: with `ran=False` only if no byte went out."""
        connection = await self._connection()
        self._requests.value += 1
        waiter = connection.ask(head, body, timeout_s, first_byte_s, tap)
        try:
            return await waiter
        except asyncio.CancelledError:
            connection.abandon()
            raise

    async def listen(
        self, head: bytes, body: bytes, timeout_s: float, first_byte_s: float, tap: Tap | None
    ) -> Response:
        """The same for an answer that has no end of its own. Raises UpstreamFailed."""
        if self._listening >= self._most_listening:
            raise UpstreamFailed("capacity", ran=False)
        self._listening += 1
        try:
            return await self.request(head, body, timeout_s, first_byte_s, tap)
        finally:
            self._listening -= 1

    def free(self, connection: Connection) -> None:
        if self._retired:
            connection.abandon()
            return
        self._idle.append((connection, asyncio.get_running_loop().time()))
        self._wake()

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle = [one for one in self._idle if one[0] is not connection]
        self._wake()

    def close(self) -> None:
        for connection in list(self._open):
            connection.abandon()

    def retire(self) -> None:
        """What runs ends in its own time; nothing begins."""
        self._retired = True
        for connection, _ in self._idle:
            connection.abandon()
        self._idle.clear()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT_S
        while True:
            while self._idle:
                connection, since = self._idle.pop()
                if connection.usable and loop.time() - since < IDLE_S:
                    return connection
                connection.abandon()
            if len(self._open) + self._connecting < self._most:
                return await self._connect()
            waiter = loop.create_future()
            self._waiting.append(waiter)
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter
            except TimeoutError:
                raise UpstreamFailed("capacity", ran=False) from None

    async def _connect(self) -> Connection:
        self._connecting += 1
        try:
            tls = await self._tls() if self._tls is not None else None
            async with asyncio.timeout(CONNECT_S):
                connection = await self._made(tls)
        except (OSError, TimeoutError):
            raise UpstreamFailed("upstream_unreachable", ran=False) from None
        finally:
            self._connecting -= 1
        self._opened.value += 1
        self._open.add(connection)
        return connection

    async def _made(self, tls: ssl.SSLContext | None) -> Connection:
        if self._socket:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(
                lambda: Connection(self), self._socket
            )
            return connection
        addresses = await self._resolve()
        if not addresses or any(
            egress.forbidden(address, private=self._private) for address in addresses
        ):
            raise UpstreamFailed("upstream_unreachable", ran=False)
        _, connection = await self._dial(addresses, tls)
        return connection

    async def _resolve(self) -> list[str]:
        try:
            return [str(ipaddress.ip_address(self._host))]
        except ValueError:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            return [str(one[4][0]) for one in found]

    async def _dial(
        self, addresses: list[str], tls: ssl.SSLContext | None
    ) -> tuple[asyncio.BaseTransport, Connection]:
        """The addresses that were checked, in turn: the name is not resolved a second time."""
        loop = asyncio.get_running_loop()
        failure: OSError = OSError()
        for address in addresses[:4]:
            try:
                return await loop.create_connection(
                    lambda: Connection(self),
                    address,
                    self._port,
                    ssl=tls,
                    server_hostname=self._host if tls else None,
                )
            except OSError as refused:
                failure = refused
        raise failure
