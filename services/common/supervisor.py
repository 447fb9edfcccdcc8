"""Keeps background tasks alive: a task that fails is logged and started again with backoff.

One of the two places that may catch everything (style rule 21).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Self

from services.common.telemetry.logging import Log, describe

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
CANCEL_AGAIN_S = 2.0


class Supervisor:
    """Async context manager; leaving it cancels every task and waits for their ends."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            # Once is not enough: wait_for loses a cancellation that meets what it waits for
            # (cpython issue 86296), and its task would go on for ever.
            await asyncio.wait(list(self._tasks), timeout=CANCEL_AGAIN_S)

    def spawn(self, name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Runs `run` until it returns; an exception is logged and `run` is called again."""
        return self._track(name, self._forever(name, run))

    def once(self, name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Runs `run` once, out of reach of its caller's cancellation; a failure is logged."""
        return self._track(name, self._once(name, run))

    def _track(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _forever(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        delay_s = FIRST_DELAY_S
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await run()
            except Exception as failure:  # the supervisor's own handler
                self._log.error("task_failed", task=name, error=describe(failure))
            else:
                return
            if asyncio.get_running_loop().time() - started > 10 * LONGEST_DELAY_S:
                delay_s = FIRST_DELAY_S
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)

    async def _once(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
        except Exception as failure:  # the supervisor's own handler
            self._log.error("task_failed", task=name, error=describe(failure))
