"""What every rendezvous promises (protocol.py), and what a lost one says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar
from uuid import uuid4

import pytest

from services.common import valkey as valkey_module
from services.common.rendezvous.protocol import RendezvousLost
from services.common.rendezvous.valkey import ValkeyRendezvous
from services.common.telemetry.logging import get_log
from services.common.valkey import open_valkey
from tests.contract.rendezvous.conftest import Meeting
from tests.fakes.asking import ask_until
from tests.fakes.valkey import running_valkey

T = TypeVar("T")


async def first(letters: AsyncIterator[T]) -> T:
    async with asyncio.timeout(5):
        return await anext(letters)


async def test_a_letter_reaches_who_reads_the_box_in_order(meeting: Meeting) -> None:
    async with meeting.there.reading(["mine", "all"]) as letters:
        sent = [await meeting.here.send(*one) for one in (("mine", "1"), ("all", "2" * 70_000))]
        got = [await first(letters) for _ in sent]

    assert [True, True] == sent
    assert ["1", "2" * 70_000] == got


async def test_where_nobody_reads_the_sender_is_told_so(meeting: Meeting) -> None:
    before = await meeting.here.send("mine", "1")
    async with meeting.there.reading(["mine"]) as letters:
        other = await meeting.here.send("another", "2")
        await meeting.here.send("mine", "3")
        got = await first(letters)
    after = await ask_until(lambda: meeting.here.send("mine", "4"), lambda taken: not taken)

    assert (False, False, False) == (before, other, after)
    assert "3" == got  # nothing waits for who comes later


async def test_several_readers_of_a_box_each_get_the_letter(meeting: Meeting) -> None:
    async with (
        meeting.here.reading(["all"]) as ours,
        meeting.there.reading(["all"]) as theirs,
    ):
        assert await meeting.here.send("all", "x")

        assert ["x", "x"] == [await first(ours), await first(theirs)]


async def test_what_is_put_is_found_from_anywhere_until_it_expires(meeting: Meeting) -> None:
    await meeting.here.put("a", "p", "1", ttl_s=60)
    await meeting.there.put("a", "q", "2", ttl_s=60)
    await meeting.here.put("a", "p", "3", ttl_s=1)

    assert {"p": "3", "q": "2"} == await meeting.there.get("a")
    assert {} == await meeting.there.get("b")
    await meeting.pass_ms(1_010)
    assert {} == await meeting.there.get("a")


async def test_parts_are_dropped_one_by_one_or_together(meeting: Meeting) -> None:
    for part in ("p", "q", "r"):
        await meeting.here.put("a", part, part, ttl_s=60)
    await meeting.there.drop("a", "q")
    await meeting.there.drop("a", "unknown")
    one = await meeting.here.get("a")
    await meeting.there.drop("a")
    await meeting.there.drop("a")

    assert {"p": "p", "r": "r"} == one
    assert {} == await meeting.here.get("a")


@pytest.mark.needs_valkey
async def test_a_lost_server_is_told_to_who_sends_reads_and_asks() -> None:
    with running_valkey(keeps="no") as server:
        async with open_valkey(server.url, get_log("test")) as valkey:
            lost = ValkeyRendezvous(valkey, prefix=str(uuid4()))
            async with lost.reading(["mine"]) as letters:
                server.kill()
                with pytest.raises(RendezvousLost):
                    await first(letters)
            for work in (
                lost.send("mine", "x"),
                lost.put("a", "p", "x", ttl_s=1),
                lost.get("a"),
                lost.drop("a"),
            ):
                with pytest.raises(RendezvousLost):
                    await work
            with pytest.raises(RendezvousLost):
                async with lost.reading(["mine"]):
                    pass
            server.started()

            async def again() -> bool:
                try:
                    async with lost.reading(["mine"]):
                        return await lost.send("mine", "x")
                except RendezvousLost:
                    return False

            assert await ask_until(again, bool)


@pytest.mark.needs_valkey
async def test_a_server_that_says_nothing_any_more_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(valkey_module, "SILENT_S", 0.05)
    with running_valkey(keeps="no") as server:
        async with open_valkey(server.url, get_log("test")) as valkey:
            meeting = ValkeyRendezvous(valkey, prefix=str(uuid4()))
            async with meeting.reading(["mine"]) as letters:
                server.pause()
                with pytest.raises(RendezvousLost):
                    await first(letters)
                server.resume()
