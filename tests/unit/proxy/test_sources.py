"""Streams to tool servers that several agents' streams share."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from services.proxy.backends.upstream import Hear, Heard, Listening, Session, SessionGone
from services.proxy.calls import Visit
from services.proxy.streams import sources
from services.proxy.streams.sources import Source, Sources
from tests.fakes.http_leg import visit

HERE = visit("http://tools.example/mcp")
NEWS = Heard(method="notifications/tools/list_changed", params={})


class Server:
    """It forgets its session so many times, and then says what is new, once."""

    def __init__(self, forgets: int = 0) -> None:
        self.forgets = forgets
        self.listens = 0

    async def listen(
        self, visit: Visit, listening: Listening, hear: Hear, session: Session | None
    ) -> None:
        assert (visit.slug, listening.last_event_id, session) == (HERE.slug, "", None)
        self.listens += 1
        if self.listens <= self.forgets:
            raise SessionGone
        hear(NEWS)
        await asyncio.Event().wait()


def spawned(name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    async def run() -> None:
        await work()

    return asyncio.get_running_loop().create_task(run(), name=name)


def source(server: Any, here: Visit = HERE) -> Source:
    return Source(backend=server, visit=here, listening=Listening())


async def test_after_a_forgotten_session_everybody_looks_for_what_was_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "FIRST_DELAY_S", 0)
    server, heard = Server(forgets=2), asyncio.Event()
    missed: list[str] = []
    shared = Sources(spawned)
    async with (
        asyncio.timeout(5),
        shared.joined(("k",), source(server), lambda _: heard.set(), lambda: missed.append("a")),
        shared.joined(("k",), source(server), lambda _: None, lambda: missed.append("b")),
    ):
        await heard.wait()

    assert (3, ["a", "b", "a", "b"], 0) == (server.listens, missed, len(shared))


async def test_a_server_whose_entry_changed_is_listened_to_anew() -> None:
    old, new = Server(), Server()
    there = visit("http://elsewhere.example/mcp")
    shared = Sources(spawned)
    first, second = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(5):
        async with shared.joined(("k",), source(old), lambda _: first.set(), lambda: None):
            await first.wait()
            async with shared.joined(
                ("k",), source(new, there), lambda _: second.set(), lambda: None
            ):
                await second.wait()
                assert (1, 1) == (old.listens, new.listens)
            assert 0 == len(shared)

    assert 0 == len(shared)
