"""What is said on a call's stream after it was ended early, kept until its agent comes back for it.

A legacy tool server may end the stream of a call before it answers (SEP-1699). Then the agent's is
ended, too, and the rest waits here, in this process: for a minute after the answer, and no more. An
agent that comes back to another process is served from there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Final, Self
from uuid import uuid4

import msgspec
from msgspec import Struct
from msgspec.msgpack import Decoder

from services.proxy.answers import bad_request
from services.proxy.backends.upstream import Heard
from services.proxy.calls import Visit
from services.proxy.eras import RESUMING
from services.proxy.governed import Call
from services.proxy.local import Refused
from services.proxy.replicas.post import Nobody, NoWord, Post
from services.proxy.seals import Seals, Unsealed
from services.proxy.sessions import Session, holder

MOST: Final = 1_000
MAX_KEPT: Final = 1024 * 1024
#: Of all tails together.
MAX_BYTES: Final = 64 * 1024 * 1024
KEPT_S: Final = 60.0
MAX_EVENT_ID: Final = 1024
_MARK: Final = "tail"

#: What proxies ask each other.
TAIL: Final = "tail"
#: How long who asks for more may be kept waiting, and when it takes the other one for lost.
NEWS_S: Final = 20.0
PATIENCE_S: Final = 30.0

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

    async def more(self, number: int) -> None:
        """Until there is something after that, or the end."""
        while len(self._said) <= number and not self.ended:
            self.news.clear()
            await self.news.wait()

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

    def find(self, name: str) -> Tail:
        """Raises Unsealed where it is gone."""
        tail = self._kept.get(name)
        if tail is None:
            raise Unsealed
        return tail

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


class _More(Struct, frozen=True, array_like=True):
    """What is in a tail after the message of this number."""

    name: str
    number: int
    #: How long to wait where there is nothing.
    wait_s: float


class _Said(Struct, frozen=True, array_like=True):
    known: bool
    messages: list[tuple[int, bytes]] = []
    ended: bool = False


_more: Final = Decoder(_More)
_said: Final = Decoder(_Said)


class Resuming:
    """The ids of events, and what they stand for: a place in a tail, or the tool server's own."""

    def __init__(self, seals: Seals, post: Post) -> None:
        self._seals = seals
        self._post = post
        self._tails = Tails()
        post.answers(TAIL, self._tell)

    def paused(self, call: Call, retry_ms: int) -> None:
        """The server ended a call's stream early: the agent's ends, too, if it knows how to come
        back.
        """
        session = call.session
        if session is None or session.version not in RESUMING:
            return
        tail = self._tails.begin()
        event_id = self._seal(call.subject.visit, session, Place(self._post.me, tail.id, 0).text)
        call.stream.pause(tail, b"id: %s\nretry: %d\ndata: \n\n" % (event_id.encode(), retry_ms))

    def event_id(self, visit: Visit, session: Session, heard: Heard) -> str:
        """The server's in ours; a long one cannot be resumed at."""
        if not 0 < len(heard.event_id) <= MAX_EVENT_ID:
            return ""
        return self._seal(visit, session, f"upstream:{heard.event_id}")

    async def found(
        self, visit: Visit, session: Session, last_event_id: str
    ) -> tuple[str, Rest | None]:
        """The server's event id, or what is left in a tail. Raises Refused."""
        if not last_event_id:
            return "", None
        try:
            opened = self._seals.open("event", (*holder(visit), session.id), last_event_id)
            named = opened.decode()
            place = Place.read(named)
            if place is None:
                return named.partition(":")[2], None
            return "", self._rest(visit, session, place, await self._look(place, 0.0))
        except (Unsealed, ValueError):
            raise Refused(bad_request("unknown Last-Event-ID")) from None

    async def _rest(self, visit: Visit, session: Session, place: Place, said: _Said) -> Rest:
        while True:
            for at, message in said.messages:
                place = Place(place.process, place.name, at)
                yield message, self._seal(visit, session, place.text)
            if said.ended:
                return
            try:
                said = await self._look(place, NEWS_S)
            except Unsealed:  # its process ended, and with it what would have come
                return

    async def _look(self, place: Place, wait_s: float) -> _Said:
        """What is there, and in which process. Raises Unsealed."""
        more = _More(place.name, place.number, wait_s)
        if place.process == self._post.me:
            return await self._after(more)
        try:
            said = await self._post.ask(
                place.process, TAIL, msgspec.msgpack.encode(more), patience_s=PATIENCE_S
            )
        except (Nobody, NoWord):
            raise Unsealed from None
        found = _said.decode(said)
        if not found.known:
            raise Unsealed
        return found

    async def _tell(self, body: bytes) -> bytes:
        """What another process asks."""
        try:
            found = await self._after(_more.decode(body))
        except Unsealed:
            found = _Said(known=False)
        return msgspec.msgpack.encode(found)

    async def _after(self, more: _More) -> _Said:
        """Raises Unsealed where the tail is gone."""
        tail = self._tails.find(more.name)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(more.wait_s):
                await tail.more(more.number)
        messages = list(tail.after(more.number))
        return _Said(True, messages, tail.ended)

    def _seal(self, visit: Visit, session: Session, named: str) -> str:
        return self._seals.seal("event", (*holder(visit), session.id), named.encode())


@dataclass(frozen=True, slots=True)
class Place:
    """After the message of this number, in a tail that a process keeps."""

    process: str
    name: str
    number: int

    @property
    def text(self) -> str:
        return f"{_MARK}:{self.process}:{self.name}:{self.number}"

    @classmethod
    def read(cls, text: str) -> Self | None:
        """None: no place in any tail. Raises ValueError."""
        mark, _, rest = text.partition(":")
        if mark != _MARK:
            return None
        process, name, number = rest.split(":")
        return cls(process, name, int(number))
