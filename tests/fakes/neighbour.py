"""A second tenant that is there from the start, and what must not be seen of it.

All its names hold MARK and all its ids ID_MARK, so that whoever is told anything of it can be found
out by looking. The doors by which tests read look (`unseen`, `Answers`, `Rows`); who may be told
says so there. What it has of which service is planted.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, cast

import aiohttp
import grpc
from aiohttp.client_proto import ResponseHandler

from services.common.ids import TenantId

MARK: Final = "qq5eed"
#: How its ids begin; they are UUIDs of version 7.
ID_MARK: Final = "5eed5eed-5eed-7eed-8eed-"
_SEEN: Final = (MARK.encode(), ID_MARK.encode())


def marked_id(number: int) -> str:
    return f"{ID_MARK}{number:012x}"


TENANT: Final = TenantId(marked_id(0))
AGENT: Final = marked_id(1)


class Crossed(AssertionError):
    """Somebody was told of a tenant that is not theirs."""


def unseen(*told: object) -> None:
    """Raises Crossed where anything of the second tenant is in what was told."""
    for one in told:
        raw = _bytes(one)
        if any(mark in raw for mark in _SEEN):
            raise Crossed(f"of the second tenant: {raw[:2000]!r}")


def _bytes(told: object) -> bytes:
    if isinstance(told, bytes | bytearray | memoryview):
        return bytes(told)
    if isinstance(told, str):
        return told.encode(errors="surrogatepass")
    serialize = getattr(told, "SerializeToString", None)
    return serialize() if serialize is not None else repr(told).encode(errors="surrogatepass")


class Answers:
    """A stub, or something else of which methods are called, whose every answer is looked at."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)
        if not callable(method):
            return method

        def call(*arguments: Any, **options: Any) -> Call:
            return Call(method(*arguments, **options))

        return call


class Call:
    """What a call gives: one answer, a stream of them, or an error."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        with _looking_at_errors():
            answer = await self._call
        unseen(answer)
        return answer

    async def __aiter__(self) -> AsyncIterator[Any]:
        with _looking_at_errors():
            async for message in self._call:
                unseen(message)
                yield message

    async def read(self) -> Any:
        with _looking_at_errors():
            message = await self._call.read()
        if message is not grpc.aio.EOF:
            unseen(message)
        return message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


@contextmanager
def _looking_at_errors() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as failure:
        unseen(failure.details() or "", list(failure.trailing_metadata() or ()))
        raise


class Tap(ResponseHandler):
    """An HTTP client's end of a connection: what comes is looked at, headers and all. What is found
    is kept in `crossed`: whoever reads may be waiting for the next event.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, crossed: list[bytes]) -> None:
        super().__init__(loop)
        self._crossed = crossed
        self._end = b""

    def data_received(self, data: bytes) -> None:
        came = self._end + data
        if any(mark in came for mark in _SEEN):
            self._crossed.append(came)
        self._end = came[-len(ID_MARK) :]
        super().data_received(data)


@asynccontextmanager
async def http_client() -> AsyncIterator[aiohttp.ClientSession]:
    """Whose answers hold nothing of the second tenant."""
    crossed: list[bytes] = []
    connector = aiohttp.TCPConnector()
    tap = partial(Tap, asyncio.get_running_loop(), crossed)
    connector._factory = cast("partial[ResponseHandler]", tap)
    async with aiohttp.ClientSession(connector=connector) as http:
        yield http
    unseen(*crossed)


class Rows:
    """A connection to a database whose every answer is looked at."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._connection, name)
        if not name.startswith("fetch"):
            return method

        async def fetched(*arguments: Any, **options: Any) -> Any:
            answer = await method(*arguments, **options)
            unseen(answer)
            return answer

        return fetched
