"""What is kept for who comes back: how much of one call, and of all together."""

import pytest

from services.proxy.seals import Unsealed
from services.proxy.streams import tails
from services.proxy.streams.tails import MAX_KEPT, Tail, Tails


def said(tail: Tail) -> list[bytes]:
    return [message for _, message in tail.after(0)]


async def test_of_one_call_there_is_little_and_its_answer() -> None:
    tail = Tails().begin()
    tail.add(b"a")
    tail.add(b"b" * MAX_KEPT)
    tail.add(b"c")
    tail.end(b"answer" * MAX_KEPT)

    assert [b"a", b"c", b"answer" * MAX_KEPT] == said(tail)


async def test_of_all_together_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "MAX_BYTES", 100)
    kept = Tails()
    first, second, third = kept.begin(), kept.begin(), kept.begin()
    first.add(b"x" * 50)
    second.add(b"y" * 50)
    assert first is kept.find(first.id)
    third.end(b"z")

    with pytest.raises(Unsealed):
        kept.find(first.id)
    first.add(b"x" * 90)  # what is gone counts no more
    assert second is kept.find(second.id)
    assert third is kept.find(third.id)


async def test_there_are_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "MOST", 2)
    kept = Tails()
    first, second, third = kept.begin(), kept.begin(), kept.begin()

    with pytest.raises(Unsealed):
        kept.find(first.id)
    assert [second, third] == [kept.find(one.id) for one in (second, third)]
    assert 2 == len(kept)
