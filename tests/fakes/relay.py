"""A relay in front of sockets of ours: connections are led to each of them in turn, and cut
wherever a test likes, in the middle of what is being said.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_CHUNK = 4_096


@dataclass
class Relay:
    """`cut_after` says of each new connection after how many bytes of answers it ends; None: it
    stays.
    """

    path: Path
    targets: list[Path]
    cut_after: Callable[[], int | None] = lambda: None
    cuts: int = 0
    connections: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set)
    led: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def address(self) -> str:
        return f"unix:{self.path}"

    def cut(self) -> None:
        for writer in list(self.open):
            writer.transport.abort()

    async def breath(self) -> None:
        """For who comes again and again: a socket that refuses is not asked without a pause."""
        await asyncio.sleep(0.02)

    async def lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either side ends."""
        task = asyncio.current_task()
        assert task is not None
        self.led.add(task)
        target = self.targets[self.connections % len(self.targets)]
        self.connections += 1
        left = self.cut_after()
        try:
            answers, asked = await asyncio.open_unix_connection(str(target))
        except OSError:
            writer.transport.abort()
            return
        self.open |= {writer, asked}
        await asyncio.gather(self._carry(reader, asked, None), self._carry(answers, writer, left))
        self.open -= {writer, asked}
        self.led.discard(task)

    async def _carry(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, left: int | None
    ) -> None:
        """One side's end is the other's, too: their connections end together."""
        with suppress(ConnectionError):
            while data := await source.read(_CHUNK):
                to.write(data if left is None else data[:left])
                await to.drain()
                if left is not None and (left := left - len(data)) <= 0:
                    self.cuts += 1
                    break
        to.transport.abort()


@asynccontextmanager
async def relaying(path: Path, *targets: Path) -> AsyncIterator[Relay]:
    relay = Relay(path=path, targets=list(targets))
    server = await asyncio.start_unix_server(relay.lead, str(path))
    try:
        yield relay
    finally:
        server.close()
        relay.cut()
        await asyncio.gather(*relay.led)
