"""A unix socket in front of a real PostgreSQL that loses what a test tells it to lose: the reply to
a COMMIT that was carried out, or every connection at once.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_BEGIN, _COMMIT = b"BEGIN ", b"COMMIT\0"
_RECORD = b"behavry.record/1"


class PostgresWire:
    def __init__(self, server_socket: Path) -> None:
        self._server_socket = server_socket
        self._writers: set[asyncio.StreamWriter] = set()
        self._lose_commits = 0
        self._refusing = False
        self.lost = asyncio.Event()

    def lose_commit_replies(self, count: int) -> None:
        """The next commits are carried out; their callers never hear of it. A commit is COMMIT, or
        a statement with records that is a transaction of its own.
        """
        self._lose_commits = count
        self.lost.clear()

    def cut(self) -> None:
        """The database is gone, as far as anybody can see."""
        self._refusing = True
        for writer in self._writers:
            writer.close()

    def mend(self) -> None:
        self._refusing = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.close()
            return
        from_server, to_server = await asyncio.open_unix_connection(str(self._server_socket))
        self._writers |= {writer, to_server}
        losing = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward(reader, to_server, writer, losing))
                both.create_task(self._answer(from_server, writer, to_server, losing))
        except* OSError:
            pass
        finally:
            self._writers -= {writer, to_server}
            for end in (writer, to_server):
                end.close()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        to_client: asyncio.StreamWriter,
        losing: asyncio.Event,
    ) -> None:
        inside = False
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                inside = (inside or _BEGIN in data) and _COMMIT not in data
                if self._lose_commits and (_COMMIT in data or (_RECORD in data and not inside)):
                    self._lose_commits -= 1
                    losing.set()
                to_server.write(data)
                await to_server.drain()
        to_server.close()

    async def _answer(
        self,
        from_server: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        to_server: asyncio.StreamWriter,
        losing: asyncio.Event,
    ) -> None:
        with suppress(OSError):
            while data := await from_server.read(1 << 16):
                if losing.is_set():  # the server has answered, so it has committed
                    self.lost.set()
                    break
                to_client.write(data)
                await to_client.drain()
        to_client.close()
        to_server.close()


@asynccontextmanager
async def in_front_of(dsn: str) -> AsyncIterator[tuple[PostgresWire, str]]:
    """The wire, and the address that leads through it."""
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    port = query["port"]
    wire = PostgresWire(Path(query["host"]) / f".s.PGSQL.{port}")
    with tempfile.TemporaryDirectory(prefix="bvw-") as directory:
        path = Path(directory) / f".s.PGSQL.{port}"
        server = await asyncio.start_unix_server(wire.serve, str(path))
        through = urlencode(query | {"host": directory}, safe="/")
        try:
            yield wire, urlunsplit((parts.scheme, parts.netloc, parts.path, through, ""))
        finally:
            server.close()
            wire.cut()
            await server.wait_closed()
