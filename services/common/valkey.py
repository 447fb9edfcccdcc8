"""The connection to a Valkey or Redis: a pool opened at start, calls of bounded time, and a loss
that is told at once instead of being waited for by each caller.

Never repeats a command: whether one whose answer was lost ran, nobody knows, and its caller decides
what that means. Knows none of the keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError

from services.common.telemetry.logging import Log

SCHEMES: Final = ("redis", "rediss", "unix")
#: While it is away, one caller in so many seconds tries; the others are told at once.
RETRY_S: Final = 0.1
MAX_CONNECTIONS: Final = 16
SUBSCRIBE_S: Final = 1.0
#: Of a subscription; after twice that without a word the server is lost.
SILENT_S: Final = 10.0

_Answer = TypeVar("_Answer")


class ValkeyLost(Exception):
    """No answer in time, or a refusal. The message names the kind of failure, never a key."""


class PasswordInAddress(ValueError):
    """It would be seen in argv, environments and logs."""

    def __init__(self) -> None:
        super().__init__("the address of a counter store must not hold a password: name its file")


def check_url(url: str) -> str:
    """Answers a redis://, rediss:// or unix:// address without a password. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not (parts.hostname or parts.scheme == "unix"):
        raise ValueError("a counter store is at redis://host:port/db, rediss://... or unix:///path")
    if parts.password is not None or "password" in parse_qs(parts.query):
        raise PasswordInAddress
    return url


class Valkey:
    """Made by open_valkey."""

    def __init__(self, client: Redis, log: Log) -> None:
        self._client = client
        self._log = log
        self._lost: str | None = None
        self._try_at_s = 0.0
        self._answered_at_s = 0.0

    def script(self, source: str) -> AsyncScript:
        """For `run`. Nothing is sent; a server that forgot it is told it again."""
        return self._client.register_script(source)

    async def run(
        self, script: AsyncScript, keys: Sequence[str], args: Sequence[str | int], *, bound_s: float
    ) -> Any:
        return await self.call(lambda _: script(keys=keys, args=args), bound_s=bound_s)

    async def call(
        self, command: Callable[[Redis], Awaitable[_Answer]], *, bound_s: float
    ) -> _Answer:
        """Raises ValkeyLost, after `bound_s` at the latest and at once while it is known lost."""
        now_s = asyncio.get_running_loop().time()
        if self._lost is not None:
            if now_s < self._try_at_s:
                raise ValkeyLost(self._lost)
            self._try_at_s = now_s + RETRY_S  # this caller tries; the next ones do not
        try:
            async with asyncio.timeout(bound_s):
                answer = await command(self._client)
        except (RedisError, OSError, TimeoutError) as failure:
            # Others were answered meanwhile: then this process is slow, not the server away.
            if self._answered_at_s < now_s or not isinstance(failure, TimeoutError):
                self._lose(type(failure).__name__)
            raise ValkeyLost(type(failure).__name__) from None
        self._answered_at_s = asyncio.get_running_loop().time()
        if self._lost is not None:
            self._lost = None
            self._log.info("valkey_found")
        return answer

    @asynccontextmanager
    async def subscribed(self, channels: Sequence[str]) -> AsyncIterator[AsyncIterator[str]]:
        """What is published there from now on. Entering and reading raise ValkeyLost."""
        pubsub = self._client.pubsub()
        try:
            await self.call(lambda _: _confirmed(pubsub, channels), bound_s=SUBSCRIBE_S)
            yield _published(pubsub)
        finally:
            with suppress(RedisError, OSError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]  # theirs

    def _lose(self, kind: str) -> None:
        if self._lost is None:
            self._log.error("valkey_lost", error=kind)
        self._lost = kind
        self._try_at_s = asyncio.get_running_loop().time() + RETRY_S


async def _confirmed(pubsub: PubSub, channels: Sequence[str]) -> None:
    await pubsub.subscribe(*channels)
    for _ in channels:
        await pubsub.get_message(timeout=SUBSCRIBE_S)


async def _published(pubsub: PubSub) -> AsyncIterator[str]:
    """A server that is silent for so long is asked whether it is there."""
    asked = False
    while True:
        try:
            found = await pubsub.get_message(timeout=SILENT_S)
            if found is None and not asked:
                await pubsub.ping()
        except (RedisError, OSError) as failure:
            raise ValkeyLost(type(failure).__name__) from None
        if found is None and asked:
            raise ValkeyLost("TimeoutError")
        asked = found is None
        if found is not None and found["type"] == "message":
            yield found["data"]


class _PasswordFile(CredentialProvider):
    """Read for each connection, so that a new password needs no restart."""

    def __init__(self, path: Path, user: str | None) -> None:
        self._path = path
        self._user = user

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._path.read_text().strip()
        return (self._user, password) if self._user else (password,)


@asynccontextmanager
async def open_valkey(
    url: str, log: Log, *, password_file: Path | None = None
) -> AsyncIterator[Valkey]:
    """Also while the server is away: then the calls say so. Raises ValueError for a bad address."""
    parts = urlsplit(check_url(url))
    options: dict[str, Any] = {}
    if password_file is not None:
        options["credential_provider"] = _PasswordFile(password_file, parts.username)
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        # Calls are bounded here, waiting for a connection and all. The library's own bound rests
        # on asyncio.wait_for, which before Python 3.12 loses a cancellation that comes together
        # with its result.
        timeout=None,
        socket_timeout=None,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        decode_responses=True,
        driver_info=None,
        **options,
    )
    client = Redis(connection_pool=pool)
    try:
        valkey = Valkey(client, log)
        with suppress(ValkeyLost):
            await valkey.call(lambda server: server.ping(), bound_s=1)
        yield valkey
    finally:
        await client.aclose()
        await pool.aclose()
