"""A real Valkey or Redis of the distribution on a unix socket, for tests to kill and restart."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.house import tool


@dataclass(slots=True)
class ValkeyServer:
    """Keeps what it is told (`appendfsync always`) unless `durable` is off."""

    directory: Path
    durable: bool = True
    password: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def socket(self) -> Path:
        return self.directory / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        binary = tool("valkey-server") or tool("redis-server")
        assert binary is not None, "mark the test needs_valkey"
        self.socket.unlink(missing_ok=True)
        lines = [
            "port 0",
            f"unixsocket {self.socket}",
            f"dir {self.directory}",
            'save ""',
            f"appendonly {'yes' if self.durable else 'no'}",
            "appendfsync always",
            *([f"requirepass {self.password}"] if self.password else []),
        ]
        with (self.directory / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, "-"], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        assert self._process.stdin is not None
        self._process.stdin.write("\n".join(lines).encode())
        self._process.stdin.close()

    async def started(self) -> None:
        """Start, and answer pings."""
        self.start()
        async with asyncio.timeout(5):
            while True:
                if await self._answers():
                    return
                await asyncio.sleep(0.01)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(self.socket)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        try:
            writer.write(b"PING\r\n")
            answer = await reader.readline()
        except ConnectionResetError:
            return False
        finally:
            writer.close()
        return answer.startswith((b"+PONG", b"-NOAUTH"))

    def kill(self) -> None:
        """With SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It neither answers nor closes anything."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self.resume()
            self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=5)
            self._process = None


@contextmanager
def _directory() -> Iterator[Path]:
    """Short: the path of a unix socket has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="valkey-", ignore_cleanup_errors=True) as made:
        yield Path(made)


@asynccontextmanager
async def running_valkey(
    *, durable: bool = True, password: str = ""
) -> AsyncIterator[ValkeyServer]:
    with _directory() as directory:
        server = ValkeyServer(directory, durable=durable, password=password)
        await server.started()
        try:
            yield server
        finally:
            server.stop()
