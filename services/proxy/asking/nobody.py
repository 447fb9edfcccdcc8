"""The stream of a request that was answered already: what is said there, nobody hears."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.proxy.calls import Kept


class Nobody:
    """It is never gone either: what runs for nobody runs to its end."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.when_gone: Callable[[], None] | None = None
        self.headed = False

    async def open(self) -> None:
        pass

    async def send(self, message: bytes) -> None:
        pass

    def push(self, message: bytes, event_id: str = "") -> None:
        pass

    def pause(self, tail: Kept, last: bytes) -> None:
        pass
