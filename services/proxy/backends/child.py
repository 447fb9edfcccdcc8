"""One running tool server over stdio: lines out, lines in.

Decides when a child is at fault (mcp.md 10.1): a line over 16 MiB, a flood of nonsense, an end
without answers. Starting it again is the host's decision, what its lines mean the conversation's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import Process, SubprocessStreamProtocol
from collections.abc import Mapping, Sequence
from typing import Final

from services.common.telemetry.counters import Counter
from services.proxy import messages
from services.proxy.backends.conversation import Conversation
from services.proxy.backends.upstream import UpstreamFailed
from services.proxy.calls import Spawn

MAX_LINE: Final = 16 * 1024 * 1024
NONSENSE_PER_MINUTE: Final = 100
STOP_S: Final = 5.0
#: How long what a child said before it ended may take to be read.
LAST_WORDS_S: Final = 0.5
STDERR_RING: Final = 64 * 1024


class _Exits(SubprocessStreamProtocol):
    """Says when the process ended; asyncio's own `wait` also waits for whoever holds its pipes."""

    def __init__(self) -> None:
        super().__init__(limit=MAX_LINE, loop=asyncio.get_running_loop())
        self.ended = asyncio.Event()

    def process_exited(self) -> None:
        self.ended.set()
        super().process_exited()


class Child:
    """Made by `start`; `run` must be running for answers to arrive."""

    def __init__(
        self,
        transport: asyncio.SubprocessTransport,
        protocol: _Exits,
        dropped: Counter,
        *,
        spawn: Spawn,
        shared: bool,
    ) -> None:
        self._process = Process(transport, protocol, asyncio.get_running_loop())
        self._transport = transport
        self._ended = protocol.ended
        self._writing = asyncio.Lock()
        self._nonsense: list[float] = []
        self._stderr = bytearray()
        self.talk = Conversation(self._write, dropped, spawn=spawn, shared=shared)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def unread(self) -> int:
        """Bytes that wait until it reads."""
        stdin = self._process.stdin
        return 0 if stdin is None else stdin.transport.get_write_buffer_size()

    async def run(self) -> None:
        """Reads until the child ends; then nobody waits any more."""
        try:
            async with asyncio.TaskGroup() as group:
                draining = group.create_task(self._drain_stderr())
                watching = group.create_task(self._outlived())
                await self._read_lines()
                draining.cancel()  # a grandchild may hold it open
                watching.cancel()
        finally:
            self._end()

    async def _outlived(self) -> None:
        """Whoever it started may hold its line when it is gone: nobody answers there."""
        await self._ended.wait()
        await asyncio.sleep(LAST_WORDS_S)
        self._end()

    def _end(self) -> None:
        """Of its group, and of our ends of its pipes, whoever else has the others."""
        self._kill(signal.SIGKILL)
        self._transport.close()

    async def _read_lines(self) -> None:
        stdout = self._process.stdout
        try:
            while stdout is not None and (line := await stdout.readline()):
                self._read(line)
        except ValueError:  # a line over the limit: the reader gives up on it
            pass
        finally:
            self.talk.end()

    async def stop(self) -> None:
        """Its input closed, 5 s, TERM to the group, 5 s, KILL."""
        self.talk.end()
        if self._process.stdin is not None:
            self._process.stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                async with asyncio.timeout(STOP_S):
                    await self._ended.wait()
                    break
            except TimeoutError:
                self._kill(number)
        else:
            await self._ended.wait()
        self._end()  # and what the leader left of its group

    def _kill(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _write(self, message: bytes) -> None:
        stdin = self._process.stdin
        if stdin is None or stdin.is_closing():
            raise UpstreamFailed("upstream_unreachable", ran=False)
        async with self._writing:
            try:
                await stdin.drain()  # what it does not read is not piled up here
                stdin.write(message + b"\n")
                await stdin.drain()
            except (ConnectionError, RuntimeError):
                raise UpstreamFailed("upstream_protocol", ran=None) from None

    def _read(self, line: bytes) -> None:
        try:
            tree = messages.decode(line) if line.strip() else None
        except messages.Malformed:
            tree = None
        for one in messages.split(tree):
            if type(one) is dict:
                self.talk.read(one, len(line))
            elif line.strip():
                self._count_nonsense()

    def _count_nonsense(self) -> None:
        now = asyncio.get_running_loop().time()
        self._nonsense = [at for at in self._nonsense if now - at < 60.0] + [now]
        if len(self._nonsense) > NONSENSE_PER_MINUTE:
            self._kill(signal.SIGKILL)

    async def _drain_stderr(self) -> None:
        """Kept short and never logged: it may quote arguments."""
        stderr = self._process.stderr
        while stderr is not None and (chunk := await stderr.read(8192)):
            self._stderr = (self._stderr + chunk)[-STDERR_RING:]


async def start(
    command_line: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | None,
    dropped: Counter,
    spawn: Spawn,
    shared: bool = False,
) -> Child:
    """In a session, so a process group, of its own; `shared` by several agents. Raises OSError."""
    transport, protocol = await asyncio.get_running_loop().subprocess_exec(
        _Exits,
        *command_line,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    return Child(transport, protocol, dropped, spawn=spawn, shared=shared)
