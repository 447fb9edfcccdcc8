"""What a connection to a tool server keeps of an exchange that is over: nothing."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from services.proxy.backends.connection import Connection

REQUEST = b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Tap:
    """Stands for all that hangs on an exchange."""

    def __call__(self, chunk: bytes) -> bool:
        return False


class Owner:
    def __init__(self) -> None:
        self.is_lost = asyncio.Event()
        self.freed = 0

    def free(self, connection: Connection) -> None:
        assert connection.usable
        self.freed += 1

    def lost(self, connection: Connection) -> None:
        self.is_lost.set()


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """The services run it rarely: what it would have to find costs memory until then."""
    gc.disable()
    yield
    gc.enable()


@asynccontextmanager
async def connected(answer: bytes) -> AsyncIterator[tuple[Connection, Owner]]:
    """To a server that answers with these bytes, as soon as it is asked."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        over.set()

    owner, over = Owner(), asyncio.Event()
    async with await asyncio.start_server(served, "127.0.0.1", 0) as server:
        where = server.sockets[0].getsockname()
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(owner), *where)
        yield connection, owner
        connection.close()
        await asyncio.wait_for(over.wait(), 5)


async def test_an_abandoned_exchange_leaves_nothing() -> None:
    async with connected(b"") as (connection, owner):
        tap = Tap()
        hangs_on, itself = weakref.ref(tap), weakref.ref(connection)
        connection.ask(REQUEST, b"", 5, 5, tap)
        connection.abandon()
        await asyncio.wait_for(owner.is_lost.wait(), 5)
        del tap

        assert hangs_on() is None
    del connection
    await asyncio.sleep(0)  # the loop lets go of it, too

    assert itself() is None


async def test_a_kept_connection_does_not_keep_what_it_brought() -> None:
    async with connected(ANSWER) as (connection, _):
        tap = Tap()
        hangs_on = weakref.ref(tap)
        response = await connection.ask(REQUEST, b"", 5, 5, tap)
        del tap

        assert b"{}" == response.body
        assert connection.usable
        assert hangs_on() is None


async def test_whoever_answers_twice_is_not_asked_again() -> None:
    """Given back twice it would serve two requests at once, and their answers would cross."""
    async with connected(ANSWER + ANSWER.replace(b"{}", b"[]")) as (connection, owner):
        response = await connection.ask(REQUEST, b"", 5, 5, None)
        await asyncio.wait_for(owner.is_lost.wait(), 5)

        assert b"{}" == response.body
        assert (1, False) == (owner.freed, connection.usable)
