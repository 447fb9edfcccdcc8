"""The host of stdio servers as a process of its own, for tests to kill and start again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.children import ROOT, end
from tests.fakes.gateway import environment, hosted


class Host:
    """A test's hand on it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.socket = state / "run" / "stdio.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        env = environment(self.state, **hosted(self.state), BEHAVRY_PROXY_ROLE="stdio-host")
        line = [sys.executable, "-m", "services.proxy"]
        self._process = subprocess.Popen(line, cwd=ROOT, env={**os.environ, **env}, stdout=stdout)
        return self._process

    async def started(self) -> None:
        """Workers reach it."""
        self.start()
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_unix_connection(self.socket)
                except OSError:
                    await asyncio.sleep(0.02)  # another process's start sends no event
                else:
                    writer.close()
                    return

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def end(self) -> None:
        if self._process is not None:
            end(self._process, 20)


@contextmanager
def apart(state: Path) -> Iterator[Host]:
    made = Host(state)
    try:
        yield made
    finally:
        made.end()
