"""What a worker knows of being one of several: its listener, and the line to whoever keeps it
running.

On the line it tells whether it serves; its end means that nobody would start it again, so it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

#: How a process is told that it is one of several.
OPTION: Final = "--worker"
READY: Final = b"1"
NOT_READY: Final = b"0"


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker's own: where it listens, and its line to who keeps it running."""

    number: int
    #: All of them take connections from it, whoever is free.
    listener: socket.socket
    line: socket.socket

    @classmethod
    def of(cls, number: str, listener: str, line: str) -> Self:
        """As they stand on a command line: descriptors that came with it."""
        sockets = [socket.socket(fileno=int(descriptor)) for descriptor in (listener, line)]
        for one in sockets:
            one.set_inheritable(False)  # nobody whom we start is to have them
        return cls(int(number), *sockets)

    def address(self, asked: str) -> str:
        """Where the listener is, of the address that was asked for, whose port may be any."""
        return f"{asked.rpartition(':')[0]}:{self.listener.getsockname()[1]}"

    def grpc_listen(self, run_dir: Path) -> str:
        """Where its health and counters are asked for."""
        return f"unix:{run_dir}/proxy-{self.number}.sock"

    def tell(self, *, ready: bool) -> None:
        with contextlib.suppress(OSError):  # nobody hears it any more: it ends by itself then
            self.line.send(READY if ready else NOT_READY)

    @contextmanager
    def tied(self) -> Iterator[None]:
        """Ends this process as a signal would when the other end of the line is gone."""
        loop = asyncio.get_running_loop()

        def heard() -> None:
            if not self.line.recv(1):
                loop.remove_reader(self.line)
                signal.raise_signal(signal.SIGTERM)

        loop.add_reader(self.line, heard)
        try:
            yield
        finally:
            loop.remove_reader(self.line)
