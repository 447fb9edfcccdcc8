"""What is said on a call's stream after it was ended early, kept until its agent comes back for it.

A legacy tool server may end the stream of a call before it answers (SEP-1699). Then the agent's is
ended, too, and the rest waits here, in this process: for a minute after the answer, and no more.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final
from uuid import uuid4

from services.proxy.seals import Unsealed

MOST: Final = 1_000
MAX_KEPT: Final = 1024 * 1024
KEPT_S: Final = 60.0
_MARK: Final = "tail"


class Tail:
    """Numbered from 1; 0 is the beginning."""

    def __init__(self, when_ended: Callable[[Tail], None]) -> None:
        self.id: Final = uuid4().hex
        self._when_ended = when_ended
        self.news = asyncio.Event()
        self.ended = False
        self._said: list[bytes] = []
        self._size = 0

    def add(self, message: bytes) -> None:
        """Beyond 1 MiB only the answer is kept."""
        if self._size + len(message) <= MAX_KEPT:
            self._keep(message)

    def end(self, answer: bytes) -> None:
        if answer:
            self._keep(answer)
        self.ended = True
        self.news.set()
        self._when_ended(self)

    def after(self, number: int) -> Iterator[tuple[int, bytes]]:
        return enumerate(self._said[number:], start=number + 1)

    def _keep(self, message: bytes) -> None:
        self._said.append(message)
        self._size += len(message)
        self.news.set()


class Tails:
    """One per worker."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Tail] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def begin(self) -> Tail:
        """The oldest gives its place."""
        if len(self._kept) >= MOST:
            self._kept.popitem(last=False)
        tail = Tail(self._forget_later)
        self._kept[tail.id] = tail
        return tail

    def find(self, place: str) -> tuple[Tail, int] | None:
        """None: this names no place in any tail. Raises Unsealed where the tail is gone."""
        mark, _, rest = place.partition(":")
        name, _, number = rest.partition(":")
        if mark != _MARK:
            return None
        tail = self._kept.get(name)
        if tail is None or not number.isdigit():
            raise Unsealed
        return tail, int(number)

    def _forget_later(self, tail: Tail) -> None:
        asyncio.get_running_loop().call_later(KEPT_S, self._kept.pop, tail.id, None)


def place(tail: Tail, number: int) -> str:
    """What an event's id stands for."""
    return f"{_MARK}:{tail.id}:{number}"
