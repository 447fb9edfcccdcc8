"""Letters between the proxies of one plane, and what they keep for each other (mcp.md 7, 8).

Decides which letters count: sealed with the keys that all proxies have, written less than a minute
ago to this process or to all, and not taken before. What a letter asks for is its taker's to judge,
like a request that came by itself. A proxy that is alone writes none, and keeps nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import uuid4

import msgspec
from msgspec import Struct

from services.common.clock import Clock
from services.common.rendezvous.protocol import Rendezvous, RendezvousLost
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log
from services.proxy.calls import Spawn
from services.proxy.seals import Seals, Unsealed

#: A box that every proxy reads.
ALL: Final = "all"
#: A letter is good for so long; clocks of machines may differ by less.
GOOD_MS: Final = 60_000
#: Letters of others that are worked on at once; beyond that they are not answered.
AT_ONCE: Final = 1_000
AGAIN_S: Final = 0.2
#: Between attempts to reach who does not read its box.
BACK_S: Final = (0.3, 0.5)
_MS: Final = 1_000_000
_HOLDER: Final = ("proxies",)

#: Answers what another proxy asks, and takes note of what it tells.
Answering = Callable[[bytes], Awaitable[bytes]]
Noting = Callable[[bytes], Awaitable[None]]


class Nobody(Exception):
    """The proxy that was asked is not there."""


class NoWord(Exception):
    """It is there and has not answered in time, or cannot be reached just now: what it holds, and
    what it did, nobody knows.
    """


class Letter(Struct, frozen=True, array_like=True):
    kind: str
    #: Empty: to all.
    to: str
    sender: str
    number: int
    sent_ms: int
    body: bytes
    #: The number of what it answers.
    answers: int = 0


_decoder: Final = msgspec.msgpack.Decoder(Letter)


class Post:
    """One per process; `me` names its box. `run` reads it."""

    def __init__(
        self,
        *,
        rendezvous: Rendezvous,
        seals: Seals,
        clock: Clock,
        spawn: Spawn,
        counters: Counters,
        log: Log,
        alone: bool = False,
    ) -> None:
        self.me: Final = uuid4().hex
        self.alone: Final = alone
        self._rendezvous = rendezvous
        self._seals = seals
        self._clock = clock
        self._spawn = spawn
        self._log = log
        self._refused = counters.counter("proxy.letters.refused")
        self._answering: dict[str, Answering] = {}
        self._noting: dict[str, Noting] = {}
        self._number = 0
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        #: Letters of the last minute, with the time until which they would be good.
        self._taken: dict[tuple[str, int], int] = {}
        self._working = 0
        self._lost = False
        #: Somebody reads this process's box.
        self.reading = asyncio.Event()

    def answers(self, kind: str, answering: Answering) -> None:
        self._answering[kind] = answering

    def notes(self, kind: str, noting: Noting) -> None:
        self._noting[kind] = noting

    def now_s(self) -> int:
        return self._now_ms() // 1000

    # --- what is sent ---------------------------------------------------------------------------

    async def ask(self, at: str, kind: str, body: bytes, *, patience_s: float) -> bytes:
        """Raises Nobody, NoWord."""
        if self.alone or not at or at == self.me:
            raise Nobody
        letter = self._letter(kind, at, body)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[letter.number] = answer
        try:
            if not await self._delivered(letter):
                raise Nobody
            async with asyncio.timeout(patience_s):
                return await answer
        except (RendezvousLost, TimeoutError):
            raise NoWord from None
        finally:
            del self._asked[letter.number]

    async def tell(self, kind: str, body: bytes) -> None:
        """To all others; who is not there hears nothing of it."""
        if not self.alone:
            with contextlib.suppress(RendezvousLost):
                await self._send(self._letter(kind, "", body))

    def _letter(self, kind: str, to: str, body: bytes, answers: int = 0) -> Letter:
        self._number += 1
        return Letter(kind, to, self.me, self._number, self._now_ms(), body, answers)

    async def _delivered(self, letter: Letter) -> bool:
        """Who only lost its connection is back soon. Raises RendezvousLost."""
        for pause_s in BACK_S:
            if await self._send(letter):
                return True
            await asyncio.sleep(pause_s)
        return await self._send(letter)

    async def _send(self, letter: Letter) -> bool:
        """Raises RendezvousLost."""
        sealed = self._seals.seal("letter", _HOLDER, msgspec.msgpack.encode(letter))
        try:
            taken = await self._rendezvous.send(letter.to or ALL, sealed)
        except RendezvousLost:
            self._noted(lost=True)
            raise
        self._noted(lost=False)
        return taken

    # --- what is kept ---------------------------------------------------------------------------

    async def put(
        self, owner: Sequence[str], key: str, value: bytes, *, ttl_s: int, part: str = "one"
    ) -> None:
        """Kept for all proxies; where that cannot be, it is not."""
        if self.alone or ttl_s <= 0:
            return
        name, hidden = self._names(owner, key, part)
        sealed = self._seals.seal("kept", (*owner, key), value)
        try:
            await self._rendezvous.put(name, hidden, sealed, ttl_s=ttl_s)
        except RendezvousLost:
            self._noted(lost=True)

    async def get(self, owner: Sequence[str], key: str) -> list[bytes]:
        """All parts of what is kept of this owner under the key, in no order."""
        if self.alone:
            return []
        try:
            found = await self._rendezvous.get(self._names(owner, key, "")[0])
        except RendezvousLost:
            self._noted(lost=True)
            return []
        opened: list[bytes] = []
        for sealed in found.values():
            try:
                opened.append(self._seals.open("kept", (*owner, key), sealed))
            except Unsealed:
                self._refused.value += 1
        return opened

    async def drop(self, owner: Sequence[str], key: str, *, part: str = "") -> None:
        """One part, or all."""
        if self.alone:
            return
        name, hidden = self._names(owner, key, part)
        try:
            await self._rendezvous.drop(name, hidden if part else "")
        except RendezvousLost:
            self._noted(lost=True)

    def _names(self, owner: Sequence[str], key: str, part: str) -> tuple[str, str]:
        return self._seals.name(*owner, key), self._seals.name(*owner, key, part)

    # --- what comes -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Reads the box for as long as the process lives."""
        while not self.alone:
            try:
                async with self._rendezvous.reading((self.me, ALL)) as letters:
                    self._noted(lost=False)
                    self.reading.set()
                    async for letter in letters:
                        self._take(letter)
            except RendezvousLost:
                self._noted(lost=True)
            finally:
                self.reading.clear()
            await asyncio.sleep(AGAIN_S)

    def _take(self, sealed: str) -> None:
        """1. a letter of a proxy of ours  2. to this one, or to all  3. young, and for the first
        time  4. an answer, or something to do.
        """
        try:
            letter = _decoder.decode(self._seals.open("letter", _HOLDER, sealed))  # 1
        except (Unsealed, msgspec.DecodeError):
            self._refused.value += 1
            return
        if letter.sender == self.me:
            return
        if letter.to not in {"", self.me} or not self._first(letter):  # 2, 3
            self._refused.value += 1
        elif letter.answers:  # 4
            asked = self._asked.get(letter.answers)
            if asked is not None and not asked.done():
                asked.set_result(letter.body)
        elif self._working < AT_ONCE:
            self._working += 1
            self._spawn("letter", lambda: self._work(letter))
        else:
            self._log.warning("letter_dropped", kind=letter.kind)

    def _first(self, letter: Letter) -> bool:
        now_ms = self._now_ms()
        while self._taken:  # in the order in which they came
            oldest = next(iter(self._taken))
            if self._taken[oldest] > now_ms:
                break
            del self._taken[oldest]
        name = (letter.sender, letter.number)
        if abs(now_ms - letter.sent_ms) > GOOD_MS or name in self._taken:
            return False
        self._taken[name] = now_ms + 2 * GOOD_MS
        return True

    async def _work(self, letter: Letter) -> None:
        try:
            noting = self._noting.get(letter.kind)
            if noting is not None:
                await noting(letter.body)
                return
            answering = self._answering.get(letter.kind)
            if answering is not None:  # else a newer proxy's: it is not answered
                body = await answering(letter.body)
                with contextlib.suppress(RendezvousLost):
                    await self._send(self._letter("", letter.sender, body, letter.number))
        finally:
            self._working -= 1

    def _noted(self, *, lost: bool) -> None:
        if lost != self._lost:
            self._lost = lost
            if lost:
                self._log.error("rendezvous_lost", alert="high")
            else:
                self._log.warning("rendezvous_found")

    def _now_ms(self) -> int:
        return self._clock.now_ns() // _MS
