"""A real Valkey or Redis of the distribution on a unix socket, for tests to kill and restart."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

#: A test run that is killed leaves no server behind (PR_SET_PDEATHSIG is 1). Said by the child
#: after its exec: between fork and exec, a process that speaks gRPC may die of its fork handlers.
_END_WITH_US = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclass(slots=True)
class ValkeyServer:
    """`keeps`: all that it answered for, all but perhaps a second, or nothing."""

    directory: Path
    keeps: Literal["always", "everysec", "no"] = "always"
    password: str = ""
    #: 0: the socket alone.
    port: int = 0
    replica_of: int = 0
    #: Further lines of its configuration.
    more: Sequence[str] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def socket(self) -> Path:
        return self.directory / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        binary = shutil.which("valkey-server") or shutil.which("redis-server")
        assert binary is not None, "mark the test needs_valkey"
        self.socket.unlink(missing_ok=True)
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"unixsocket {self.socket}",
            f"dir {self.directory}",
            'save ""',
            f"appendonly {'no' if self.keeps == 'no' else 'yes'}",
            f"appendfsync {self.keeps}",
            *([f"requirepass {self.password}"] if self.password else []),
            *([f"replicaof 127.0.0.1 {self.replica_of}"] if self.replica_of else []),
            "repl-diskless-sync-delay 0",
            *self.more,
        ]
        with (self.directory / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _END_WITH_US, binary, "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        assert self._process.stdin is not None
        self._process.stdin.write("\n".join(lines).encode())
        self._process.stdin.close()

    def started(self) -> None:
        """Start, and wait until it answers: at most 5 s."""
        self.start()
        end = time.monotonic() + 5
        while not self._answers():
            assert time.monotonic() < end, "it does not start"
            time.sleep(0.005)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False

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


@contextmanager
def running_valkey(
    *,
    keeps: Literal["always", "everysec", "no"] = "always",
    password: str = "",
    port: int = 0,
    replica_of: int = 0,
    more: Sequence[str] = (),
) -> Iterator[ValkeyServer]:
    with _directory() as directory:
        server = ValkeyServer(directory, keeps, password, port, replica_of, more)
        try:
            server.started()
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """One for the session: tests keep apart by prefix and leave it running."""
    with running_valkey() as server:
        yield server
