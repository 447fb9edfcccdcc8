"""Background tasks: a failure is logged without its text and the work begins again."""

import asyncio

import pytest
import structlog
from structlog.testing import CapturingLogger

from services.common import supervisor as module
from services.common.supervisor import Supervisor

PLANTED = "planted-payload"
PROMPT_S = 5.0


@pytest.fixture
def lines() -> CapturingLogger:
    return CapturingLogger()


def supervisor(lines: CapturingLogger) -> Supervisor:
    return Supervisor(structlog.wrap_logger(lines, processors=[]))


async def test_a_task_that_fails_is_started_again_until_it_succeeds(
    lines: CapturingLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY_S", 0.001)
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise ValueError(PLANTED)

    async with supervisor(lines) as tasks:
        await asyncio.wait_for(tasks.spawn("work", work), PROMPT_S)

    assert 4 == runs
    assert ["error"] * 3 == [call.method_name for call in lines.calls]
    assert {"task_failed"} == {call.kwargs["event"] for call in lines.calls}
    assert PLANTED not in str(lines.calls)
    assert "builtins.ValueError at test_supervisor.py" in str(lines.calls)


async def test_work_that_runs_once_is_not_repeated(lines: CapturingLogger) -> None:
    async def work() -> None:
        raise ValueError(PLANTED)

    async with supervisor(lines) as tasks:
        await asyncio.wait_for(tasks.once("work", work), PROMPT_S)

    assert 1 == len(lines.calls)
    assert PLANTED not in str(lines.calls)


async def test_a_caller_that_is_cancelled_does_not_cancel_the_work(
    lines: CapturingLogger,
) -> None:
    begun, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()
        done.set()

    async with supervisor(lines) as tasks, asyncio.TaskGroup() as group:

        async def caller() -> None:
            tasks.once("work", work)
            await asyncio.Event().wait()

        asking = group.create_task(caller())
        await asyncio.wait_for(begun.wait(), PROMPT_S)
        asking.cancel()
        go.set()
        await asyncio.wait_for(done.wait(), PROMPT_S)


async def test_leaving_ends_every_task_and_waits_for_it(lines: CapturingLogger) -> None:
    begun, cleaned = asyncio.Event(), []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("work")

    async with supervisor(lines) as tasks:
        tasks.spawn("work", work)
        await asyncio.wait_for(begun.wait(), PROMPT_S)

    assert ["work"] == cleaned
    assert [] == lines.calls


async def test_leaving_ends_a_task_that_missed_its_cancellation(
    lines: CapturingLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANCEL_AGAIN_S", 0.01)
    begun, poke, rounds = asyncio.Event(), asyncio.Event(), 0

    async def work() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            begun.set()
            poke.clear()
            await asyncio.wait_for(poke.wait(), PROMPT_S)

    async with asyncio.timeout(PROMPT_S):
        async with supervisor(lines) as tasks:
            tasks.spawn("work", work)
            await begun.wait()
            poke.set()
            await asyncio.sleep(0)  # what it waited for is there, and so is the end

    assert 2 == rounds
