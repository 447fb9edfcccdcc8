"""One running tool server over stdio: lines out, lines in, answers matched by id.

Decides when a child is at fault (mcp.md 10.1): a line over 16 MiB, a flood of nonsense, an end
without answers. Starting it again is the host's decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.proxy import messages
from services.proxy.backends.upstream import MAX_ANSWER, Reply, UpstreamFailed
from services.proxy.messages import METHOD_NOT_FOUND

MAX_LINE: Final = 16 * 1024 * 1024
IN_FLIGHT: Final = 16
NONSENSE_PER_MINUTE: Final = 100
STOP_S: Final = 5.0
STDERR_RING: Final = 64 * 1024


class Child:
    """Made by `start`; `run` must be running for answers to arrive."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._next_id = 0
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._writing = asyncio.Lock()
        self._nonsense: list[float] = []
        self._stderr = bytearray()
        self.alive = True

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    async def ask(self, method: str, params: dict[str, Any], timeout_s: float) -> Reply:
        """Raises UpstreamFailed."""
        async with self._slots:
            if not self.alive:
                raise UpstreamFailed("upstream_unreachable", ran=False)
            self._next_id += 1
            number = self._next_id
            waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
            self._waiting[number] = waiter
            try:
                await self._write(
                    {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
                )
                async with asyncio.timeout(timeout_s):
                    return await waiter
            except TimeoutError:
                await self._cancel(number)
                raise UpstreamFailed("upstream_timeout", ran=None) from None
            except asyncio.CancelledError:
                await self._cancel(number)
                raise
            finally:
                self._waiting.pop(number, None)

    async def notify(self, method: str, params: dict[str, Any] | None = None) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        if params is not None:
            message["params"] = params
        await self._write(message)

    async def run(self) -> None:
        """Reads until the child ends; then nobody waits any more."""
        try:
            async with asyncio.TaskGroup() as group:
                draining = group.create_task(self._drain_stderr())
                await self._read_lines()
                draining.cancel()  # a grandchild may hold it open
        finally:
            self._kill(signal.SIGKILL)

    async def _read_lines(self) -> None:
        stdout = self._process.stdout
        try:
            while stdout is not None and (line := await stdout.readline()):
                await self._read(line)
        except ValueError:  # a line over the limit: the reader gives up on it
            pass
        finally:
            self.alive = False
            self._end_all()

    async def stop(self) -> None:
        """Its input closed, 5 s, TERM to the group, 5 s, KILL."""
        self.alive = False
        if self._process.stdin is not None:
            self._process.stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                async with asyncio.timeout(STOP_S):
                    await self._process.wait()
                    break
            except TimeoutError:
                self._kill(number)
        else:
            await self._process.wait()
        self._kill(signal.SIGKILL)  # what the leader left of its group

    def _kill(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _write(self, message: dict[str, Any]) -> None:
        stdin = self._process.stdin
        if stdin is None or stdin.is_closing():
            raise UpstreamFailed("upstream_unreachable", ran=False)
        async with self._writing:
            try:
                stdin.write(messages.encode(message) + b"\n")
                await stdin.drain()
            except (ConnectionError, RuntimeError):
                raise UpstreamFailed("upstream_protocol", ran=None) from None

    async def _cancel(self, id: int) -> None:
        with contextlib.suppress(UpstreamFailed):
            await self.notify("notifications/cancelled", {"requestId": id})

    async def _read(self, line: bytes) -> None:
        try:
            tree = messages.decode(line) if line.strip() else None
        except messages.Malformed:
            tree = None
        for one in tree if type(tree) is list else [tree]:
            if type(one) is not dict:
                if line.strip():
                    self._count_nonsense()
            elif "method" in one:
                await self._refuse(one)
            else:
                self._answer(one, len(line))

    def _answer(self, message: dict[str, Any], size: int) -> None:
        waiter = self._waiting.get(message["id"]) if type(message.get("id")) is int else None
        if waiter is None or waiter.done():
            return  # unknown id or second answer: dropped
        result, error = message.get("result"), message.get("error")
        if size > MAX_ANSWER:
            waiter.set_exception(UpstreamFailed("inbound_blocked", ran=True))
        elif type(result) is dict:
            waiter.set_result(Reply(result, None))
        elif type(error) is dict and type(error.get("code")) is int:
            waiter.set_result(Reply(None, error))
        else:
            waiter.set_exception(UpstreamFailed("upstream_protocol", ran=None))

    async def _refuse(self, message: dict[str, Any]) -> None:
        """Its requests to the client: pings are answered, the rest nobody supports yet."""
        if not messages.valid_id(message.get("id")):
            return  # a notification
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if message["method"] == "ping":
            answer["result"] = {}
        else:
            answer["error"] = {"code": METHOD_NOT_FOUND, "message": "not supported"}
        with contextlib.suppress(UpstreamFailed):
            await self._write(answer)

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

    def _end_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(UpstreamFailed("upstream_protocol", ran=None))


async def start(command_line: Sequence[str], *, env: Mapping[str, str], cwd: str | None) -> Child:
    """In a session, so a process group, of its own. Raises OSError."""
    process = await asyncio.create_subprocess_exec(
        *command_line,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env),
        cwd=cwd,
        limit=MAX_LINE,
        start_new_session=True,
    )
    return Child(process)
