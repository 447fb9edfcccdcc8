"""Keeps the processes of one machine running: start, watch, start again, end in reverse.

A child that exits is started again after 0.2 to 5 s; one that exits 5 times within 60 s is reported
with its last log lines and then tried every 30 s, while the others go on. Each child leads a
process group of its own (Ctrl-C reaches only us; what a child leaves behind is ended with it) and
is told by the kernel when we are gone. What the processes are is decided in `plan.py`.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from services.cli.output import say
from services.common.clock import SystemClock, rfc3339

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
FLAPPING_EXITS = 5
FLAPPING_WINDOW_S = 60.0
FLAPPING_DELAY_S = 30.0
STOP_GRACE_S = 15.0
READY_POLL_S = 0.05
LOG_KEEP_BYTES = 16 << 20
REFUSED = 2  # the status of a process that cannot use a setting
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One process: how it starts, how it is asked to end, how it says that it is ready."""

    name: str
    argv: list[str]
    env: Mapping[str, str]
    log: Path
    ready: Callable[[int], Awaitable[bool]]
    stop_signal: signal.Signals = signal.SIGTERM
    before: Callable[[], Awaitable[None]] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    #: Processes that the one of this number keeps running itself.
    workers: Callable[[int], list[int]] | None = None


class CannotStart(Exception):
    """What a program needs before its start is not there (yet); it will be tried again."""


class NotReady(Exception):
    """A process did not become ready in time."""

    def __init__(self, program: Program, reason: str, *, with_log: bool = True) -> None:
        log = f"; the end of {program.log}:\n{tail(program.log)}" if with_log else ""
        super().__init__(f"{program.name} {reason}{log}")


class Child:
    """One supervised process."""

    def __init__(self, program: Program, *, changed: Callable[[], None]) -> None:
        self.program = program
        self.pid: int | None = None
        self.starts = 0
        self.is_ready = False
        self._changed = changed
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()  # ready, or no hope of it
        self._exits: deque[float] = deque(maxlen=FLAPPING_EXITS)
        self._last_code: int | None = None

    async def run(self) -> None:
        """Start it again and again until `stop`."""
        delay_s = FIRST_DELAY_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                await self._run_once()
            except (CannotStart, OSError) as why:
                say(f"{self.program.name} cannot start: {why}")
            if self._stopping.is_set():
                return
            if time.monotonic() - started > FLAPPING_WINDOW_S:
                delay_s = FIRST_DELAY_S
            self._exits.append(time.monotonic())
            wait_s = self._report_flapping() or delay_s
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)
            try:
                await asyncio.wait_for(self._stopping.wait(), wait_s)
            except TimeoutError:
                continue

    async def _run_once(self) -> None:
        program = self.program
        if program.before is not None:
            await program.before()
        if self._stopping.is_set():
            return
        with _open_log(program.log) as log:
            self._process = await asyncio.create_subprocess_exec(
                *program.argv,
                env=dict(program.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent(program.stop_signal),
                **program.identity,
            )
            log.write(_started(program, self._process.pid))
        self._settled.clear()
        if self._stopping.is_set():  # `stop` came while the process was being made
            _signal(self._process.pid, program.stop_signal)
        self.pid = self._process.pid
        self.starts += 1
        self._changed()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch_ready(self._process.pid))
            self._last_code = await self._process.wait()
            watching.cancel()
        _end_group(self._process.pid)
        self.pid, self.is_ready = None, False
        if self._last_code == REFUSED:
            self._settled.set()
        self._changed()
        if not self._stopping.is_set():
            say(f"{program.name} ended ({_ending(self._last_code)})")

    async def _watch_ready(self, pid: int) -> None:
        while not await self.program.ready(pid):  # noqa: ASYNC110  # another process sets no event
            await asyncio.sleep(READY_POLL_S)
        self.is_ready = True
        self._settled.set()
        self._changed()

    def _report_flapping(self) -> float | None:
        """The longer wait, told once per bout, of a process that keeps ending."""
        now = time.monotonic()
        if len(self._exits) < FLAPPING_EXITS or now - self._exits[0] > FLAPPING_WINDOW_S:
            return None
        program = self.program
        say(
            f"{program.name} ended {FLAPPING_EXITS} times within {FLAPPING_WINDOW_S:.0f} s;"
            f" next try in {FLAPPING_DELAY_S:.0f} s. The end of {program.log}:\n{tail(program.log)}"
        )
        self._exits.clear()
        self._settled.set()
        return FLAPPING_DELAY_S

    async def until_ready(self, *, timeout_s: float) -> None:
        """Return when it is ready. A refused setting (status 2) or the time running out raises."""
        try:
            await asyncio.wait_for(self._settled.wait(), timeout_s)
        except TimeoutError:
            raise NotReady(self.program, f"is not ready after {timeout_s:.0f} s") from None
        if not self.is_ready:
            if self._last_code == REFUSED:
                raise NotReady(self.program, "refused to start")
            raise NotReady(self.program, "keeps ending", with_log=False)  # it was just shown

    def pids(self) -> list[int]:
        """It, and the processes that it keeps running."""
        if self.pid is None:
            return []
        workers = self.program.workers
        return [self.pid, *(workers(self.pid) if workers is not None else ())]

    async def stop(self) -> None:
        """Ask it to end, insist after a while. Returns when it and its group are gone."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        _signal(process.pid, self.program.stop_signal)
        try:
            await asyncio.wait_for(process.wait(), STOP_GRACE_S)
        except TimeoutError:
            say(f"{self.program.name} does not end; killing it")
            _signal(process.pid, signal.SIGKILL)
            await process.wait()
        _end_group(process.pid)


class Children:
    """All of them, in the order of their start."""

    def __init__(self, *, changed: Callable[[], None]) -> None:
        self.all: list[Child] = []
        self._changed = changed
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> None:
        try:
            for child in reversed(self.all):
                await child.stop()
        finally:
            await self._group.__aexit__(None, None, None)

    def start(self, program: Program) -> Child:
        """Begin to run a program; it stays up until we leave."""
        child = Child(program, changed=self._changed)
        self.all.append(child)
        self._group.create_task(child.run(), name=program.name)
        return child

    async def until_ready(self, *, timeout_s: float) -> None:
        """Return when all are; the first that cannot be raises NotReady."""
        for child in self.all:
            await child.until_ready(timeout_s=timeout_s)

    def pids(self) -> dict[str, list[int]]:
        return {child.program.name: child.pids() for child in self.all if child.pid is not None}


def tail(path: Path, *, lines: int = 20) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])


def _started(program: Program, pid: int) -> bytes:
    """A line that parts one run's output from the next and names what ran."""
    line = {
        "event": "process_started",
        "timestamp": rfc3339(SystemClock().now_ns()),
        "pid": pid,
        "argv": program.argv,
    }
    return json.dumps(line).encode() + b"\n"


def _open_log(path: Path) -> IO[bytes]:
    if path.exists() and path.stat().st_size > LOG_KEEP_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb")


def _die_with_parent(stop_signal: signal.Signals) -> Callable[[], None] | None:
    """Runs in the child between fork and exec: Linux then signals it when its parent is gone."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: nothing is loaded after it
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(stop_signal), 0, 0, 0)
        if os.getppid() != parent:  # gone before the kernel was asked
            os._exit(1)

    return ask


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _end_group(leader: int) -> None:
    """What a process leaves behind in its group goes with it."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
