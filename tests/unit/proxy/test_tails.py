"""What is kept for who comes back: how much of one call, and of all together."""

import pytest

from services.proxy.seals import Unsealed
from services.proxy.streams import tails
from services.proxy.streams.tails import MAX_KEPT, Tail, Tails, place


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
    assert (first, 1) == kept.find(place(first, 1))
    third.end(b"z")

    with pytest.raises(Unsealed):
        kept.find(place(first, 0))
    first.add(b"x" * 90)  # what is gone counts no more
    assert (second, 0) == kept.find(place(second, 0))
    assert (third, 0) == kept.find(place(third, 0))


async def test_there_are_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "MOST", 2)
    kept = Tails()
    first, second, third = kept.begin(), kept.begin(), kept.begin()

    with pytest.raises(Unsealed):
        kept.find(place(first, 0))
    assert [(second, 0), (third, 0)] == [kept.find(place(one, 0)) for one in (second, third)]
    assert 2 == len(kept)
