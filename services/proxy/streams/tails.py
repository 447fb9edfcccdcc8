"""What is said on a call's stream after it was ended early, kept until its agent comes back for it.

A legacy tool server may end the stream of a call before it answers (SEP-1699). Then the agent's is
ended, too, and the rest waits here, in this process: for a minute after the answer, and no more.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final
from uuid import uuid4

from services.proxy.answers import bad_request
from services.proxy.backends.upstream import Heard
from services.proxy.calls import Visit
from services.proxy.eras import RESUMING
from services.proxy.governed import Call
from services.proxy.local import Refused
from services.proxy.seals import Seals, Unsealed
from services.proxy.sessions import Session, holder

MOST: Final = 1_000
MAX_KEPT: Final = 1024 * 1024
#: Of all tails together.
MAX_BYTES: Final = 64 * 1024 * 1024
KEPT_S: Final = 60.0
MAX_EVENT_ID: Final = 1024
_MARK: Final = "tail"

#: Messages with the ids of their events.
Rest = AsyncIterator[tuple[bytes, str]]


class Tail:
    """Numbered from 1; 0 is the beginning."""

    def __init__(
        self, when_grown: Callable[[Tail, int], None], when_ended: Callable[[Tail], None]
    ) -> None:
        self.id: Final = uuid4().hex
        self._when_grown = when_grown
        self._when_ended = when_ended
        self.news = asyncio.Event()
        self.ended = False
        self._said: list[bytes] = []
        self.size = 0

    def add(self, message: bytes) -> None:
        """Beyond 1 MiB only the answer is kept."""
        if self.size + len(message) <= MAX_KEPT:
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
        self.size += len(message)
        self.news.set()
        self._when_grown(self, len(message))


class Tails:
    """One per worker."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Tail] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def begin(self) -> Tail:
        """The oldest gives its place."""
        if len(self._kept) >= MOST:
            self._forget(next(iter(self._kept)))
        tail = Tail(self._grown, self._forget_later)
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

    def _grown(self, tail: Tail, size: int) -> None:
        """The oldest go where all together are too much."""
        if tail.id in self._kept:
            self._bytes += size
        while self._bytes > MAX_BYTES:
            self._forget(next(iter(self._kept)))

    def _forget_later(self, tail: Tail) -> None:
        asyncio.get_running_loop().call_later(KEPT_S, self._forget, tail.id)

    def _forget(self, name: str) -> None:
        tail = self._kept.pop(name, None)
        if tail is not None:
            self._bytes -= tail.size


class Resuming:
    """The ids of events, and what they stand for: a place in a tail, or the tool server's own."""

    def __init__(self, seals: Seals) -> None:
        self._seals = seals
        self._tails = Tails()

    def paused(self, call: Call, retry_ms: int) -> None:
        """The server ended a call's stream early: the agent's ends, too, if it knows how to come
        back.
        """
        session = call.session
        if session is None or session.version not in RESUMING:
            return
        tail = self._tails.begin()
        event_id = self._seal(call.subject.visit, session, place(tail, 0))
        call.stream.pause(tail, b"id: %s\nretry: %d\ndata: \n\n" % (event_id.encode(), retry_ms))

    def event_id(self, visit: Visit, session: Session, heard: Heard) -> str:
        """The server's in ours; a long one cannot be resumed at."""
        if not 0 < len(heard.event_id) <= MAX_EVENT_ID:
            return ""
        return self._seal(visit, session, f"upstream:{heard.event_id}")

    def found(self, visit: Visit, session: Session, last_event_id: str) -> tuple[str, Rest | None]:
        """The server's event id, or what is left in a tail. Raises Refused."""
        if not last_event_id:
            return "", None
        try:
            opened = self._seals.open("event", (*holder(visit), session.id), last_event_id)
            named = opened.decode()
            tail = self._tails.find(named)
        except (Unsealed, ValueError):
            raise Refused(bad_request("unknown Last-Event-ID")) from None
        if tail is None:
            return named.partition(":")[2], None
        return "", self._rest(visit, session, *tail)

    async def _rest(self, visit: Visit, session: Session, tail: Tail, number: int) -> Rest:
        while True:
            tail.news.clear()
            for at, message in list(tail.after(number)):
                yield message, self._seal(visit, session, place(tail, at))
                number = at
            if tail.ended:
                return
            await tail.news.wait()

    def _seal(self, visit: Visit, session: Session, named: str) -> str:
        return self._seals.seal("event", (*holder(visit), session.id), named.encode())


def place(tail: Tail, number: int) -> str:
    """What an event's id stands for."""
    return f"{_MARK}:{tail.id}:{number}"
