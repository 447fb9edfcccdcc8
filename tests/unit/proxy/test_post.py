"""Letters between proxies: whose count, how often, and what somebody in between can do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.common.rendezvous.memory import MemoryRendezvous
from services.proxy.replicas.post import ALL, GOOD_MS, Nobody, NoWord, Post
from services.proxy.seals import Seals
from tests.altered import altered
from tests.fakes.clock import ManualClock
from tests.fakes.replicas import post

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
OWNER = ("tenant", "agent", "server", "class")


class Wire:
    """What passes, and a hand in between."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.meeting = MemoryRendezvous(self.clock)
        self.heard: list[bytes] = []

    def made(self, key: bytes = KEY) -> Post:
        made = post(Seals([key], self.clock), self.clock, self.meeting)

        async def echo(body: bytes) -> bytes:
            self.heard.append(body)
            return b"re: " + body

        async def note(body: bytes) -> None:
            self.heard.append(body)

        made.answers("ask", echo)
        made.notes("tell", note)
        return made

    @asynccontextmanager
    async def reads(self, *posts: Post) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(one.run()) for one in posts]
        for one in posts:
            await one.reading.wait()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def refused(one: Post) -> int:
    return one._refused.value


async def ask(one: Post, at: str, body: bytes = b"x", patience_s: float = 5) -> bytes:
    return await one.ask(at, "ask", body, patience_s=patience_s)


async def test_who_is_asked_answers_and_the_others_hear_nothing() -> None:
    wire = Wire()
    here, there, third = wire.made(), wire.made(), wire.made()
    async with wire.reads(here, there, third):
        answer = await ask(here, there.me)

    assert b"re: x" == answer
    assert [b"x"] == wire.heard


async def test_who_is_not_there_is_nobody_at_once() -> None:
    wire = Wire()
    here, there = wire.made(), wire.made()
    async with wire.reads(here):
        for at in (there.me, "", here.me):
            with pytest.raises(Nobody):
                await ask(here, at)


async def test_who_is_there_and_does_not_answer_is_not_waited_for() -> None:
    wire = Wire()
    here, there = wire.made(), wire.made()
    async with wire.meeting.reading([there.me]), wire.reads(here):
        with pytest.raises(NoWord):
            await ask(here, there.me, patience_s=0)


async def test_what_is_told_reaches_all_others_once() -> None:
    wire = Wire()
    here, there, third = wire.made(), wire.made(), wire.made()
    async with wire.reads(here, there, third):
        await here.tell("tell", b"news")
        await here.tell("unknown", b"of a newer version")
        await ask(here, there.me, b"last")
        await ask(here, third.me, b"last")

    assert [b"last"] * 2 + [b"news"] * 2 == sorted(wire.heard)


async def test_who_is_alone_tells_nobody_and_keeps_nothing() -> None:
    wire = Wire()
    lone = post(Seals([KEY], wire.clock), wire.clock, wire.meeting, alone=True)
    async with wire.meeting.reading([ALL]) as letters:
        await lone.tell("tell", b"x")
        await wire.meeting.send(ALL, "the only one")
        assert "the only one" == await anext(letters)
    await lone.put(OWNER, "a", b"x", ttl_s=60)
    await lone.run()

    assert [] == await lone.get(OWNER, "a")
    with pytest.raises(Nobody):
        await ask(lone, "x")


async def test_nothing_counts_that_a_proxy_did_not_write_just_now_to_this_one() -> None:
    wire = Wire()
    here, there, stranger = wire.made(), wire.made(), wire.made(OTHER_KEY)
    async with wire.meeting.reading([there.me]) as seen:
        with pytest.raises(NoWord):
            await ask(here, there.me, patience_s=0)
        letter = await anext(seen)
    third = wire.made()
    async with wire.reads(there, third):
        with pytest.raises(NoWord):
            await ask(stranger, there.me, patience_s=0.05)
        bent = altered(letter, -2)
        for forged in ("", "x", "b1.1.AAAA", bent, letter[:40]):
            await wire.meeting.send(there.me, forged)
        await wire.meeting.send(third.me, letter)  # to somebody else
        assert [] == wire.heard
        await wire.meeting.send(there.me, letter)
        await wire.meeting.send(there.me, letter)  # twice
        await looked(wire, there, third)
        wire.clock.advance(GOOD_MS / 1000 + 1)
        await wire.meeting.send(there.me, letter)  # and late
        await looked(wire, there)

    assert 1 == wire.heard.count(b"x")
    assert (8, 1) == (refused(there), refused(third))


async def looked(wire: Wire, *posts: Post) -> None:
    """At all that was sent before."""
    last = wire.made()
    async with wire.reads(last):
        for one in posts:
            await ask(last, one.me, b"last")


async def test_an_answer_is_taken_from_nobody_else() -> None:
    wire = Wire()
    here, there = wire.made(), wire.made()
    stranger = wire.made(OTHER_KEY)
    async with wire.reads(here), wire.meeting.reading([there.me]) as seen:
        asking = asyncio.ensure_future(ask(here, there.me))
        await anext(seen)
        await stranger._send(stranger._letter("", here.me, b"forged", 1))
        await there._send(there._letter("", here.me, b"of another question", 99))
        await there._send(there._letter("", here.me, b"true", 1))

        assert b"true" == await asking


async def test_what_is_kept_is_its_owners_under_its_key() -> None:
    wire = Wire()
    here, there = wire.made(), wire.made()
    for part in ("p", "q"):
        await here.put(OWNER, "a", part.encode(), part=part, ttl_s=60)
    await here.put(OWNER, "b", b"other", ttl_s=60)
    await here.put(OWNER, "late", b"x", ttl_s=0)
    found = await there.get(OWNER, "a")
    foreign = await there.get(("tenant", "another", "server", "class"), "a")
    await there.drop(OWNER, "a", part="p")

    assert [b"p", b"q"] == sorted(found)
    assert ([], []) == (foreign, await there.get(OWNER, "late"))
    assert [b"q"] == await here.get(OWNER, "a")
    await there.drop(OWNER, "a")
    assert ([], [b"other"]) == (await here.get(OWNER, "a"), await here.get(OWNER, "b"))


async def test_what_is_kept_tells_nobody_anything_and_cannot_be_exchanged() -> None:
    wire = Wire()
    here, there = wire.made(), wire.made()
    await here.put(OWNER, "one", b"file:///secret", part="file:///secret", ttl_s=60)
    await here.put(OWNER, "other", b"innocent", ttl_s=60)
    kept = wire.meeting._kept
    for word in ("secret", "tenant", "agent", "one", "innocent"):
        assert word not in str([(name, one.parts) for name, one in kept.items()])
    (first, second) = kept.values()
    (value,) = first.parts.values()
    second.parts = dict.fromkeys(second.parts, value)

    assert [] == await there.get(OWNER, "other")
    assert 1 == refused(there)
    assert [b"file:///secret"] == await there.get(OWNER, "one")
