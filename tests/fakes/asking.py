"""Waits for what only an answer can tell: asks again until it is so, at most 10 s."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")
TIMEOUT_S: Final = 10
PAUSE_S: Final = 0.02


async def ask_until(
    ask: Callable[[], Awaitable[T]], true: Callable[[T], bool], timeout_s: float = TIMEOUT_S
) -> T:
    """The first answer that is `true`. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        answer = await ask()
        while not true(answer):
            await asyncio.sleep(PAUSE_S)
            answer = await ask()
        return answer
