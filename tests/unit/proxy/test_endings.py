"""What is known of ended sessions: here, by all, without the shared store, and with many."""

import pytest

from services.common.counter_store.memory import MemoryCounterStore
from services.common.counter_store.protocol import CounterStoreLost
from services.common.ids import AgentId, TenantId
from services.common.telemetry.logging import get_log
from services.proxy import endings
from services.proxy.endings import LIFE_S, MOST, Endings
from tests.fakes.clock import START_NS, ManualClock

OWNER = (TenantId("t"), AgentId("a"))
NOW_S = START_NS // 10**9


class Shaky(MemoryCounterStore):
    """May be away."""

    away = False

    async def remember(self, key: str, ttl_s: int) -> bool:
        self._look()
        return await super().remember(key, ttl_s)

    async def known(self, key: str) -> bool:
        self._look()
        return await super().known(key)

    def _look(self) -> None:
        if self.away:
            raise CounterStoreLost("away")


def made(shared: Shaky | None = None) -> tuple[Endings, ManualClock]:
    clock = ManualClock()
    return Endings(clock, get_log("test"), shared), clock


async def over(
    known: Endings, session: str, opened_s: int = NOW_S, *, in_use: bool = False
) -> bool:
    return await known.over(OWNER, session, opened_s, in_use=lambda: in_use)


async def test_what_ended_is_over_until_it_would_be_too_old_anyhow() -> None:
    known, clock = made()
    known.note(OWNER, "s", NOW_S)

    assert (True, False) == (await over(known, "s"), await over(known, "other"))
    clock.advance(LIFE_S + 1)
    await known.sweep()
    assert 0 == len(known)


async def test_all_who_share_a_store_know_it() -> None:
    store = Shaky(ManualClock())
    here, there = Endings(ManualClock(), get_log("test"), store), made(store)[0]
    await here.tell("s", NOW_S)

    assert (True, False) == (await over(there, "s"), await over(there, "other"))


async def test_without_the_store_each_goes_on_by_what_it_knows_and_tells_it_later() -> None:
    store = Shaky(ManualClock())
    here, there = made(store)[0], made(store)[0]
    store.away = True
    here.note(OWNER, "s", NOW_S)
    await here.tell("s", NOW_S)
    during = [await over(one, name) for one in (here, there) for name in ("s", "other")]
    await here.sweep()
    store.away = False
    before = await over(there, "s")
    await here.sweep()

    assert [True, False, False, False] == during
    assert (False, True) == (before, await over(there, "s"))


async def test_what_nobody_can_be_told_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "MOST_UNTOLD", 2)
    store = Shaky(ManualClock())
    here, there = made(store)[0], made(store)[0]
    store.away = True
    for name in ("first", "second", "third"):
        await here.tell(name, NOW_S)
    store.away = False
    await here.sweep()

    assert [False, True, True] == [await over(there, one) for one in ("first", "second", "third")]


async def test_who_cannot_tell_whether_a_session_is_used_says_so() -> None:
    store = Shaky(ManualClock())
    here, there = made(store)[0], made(store)[0]
    assert await here.used("s", 60)
    told = [await there.used_elsewhere(name) for name in ("s", "other")]
    store.away = True

    assert ([True, False], None) == (told, await there.used_elsewhere("s"))
    assert not await here.used("s", 60)
    assert await made()[0].used_elsewhere("s") is False  # there is nobody else


async def test_of_many_the_older_are_known_by_their_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "MOST", 10)
    known, clock = made()
    for number in range(1_000):
        known.note(OWNER, str(number), NOW_S + number)
        assert len(known) <= MOST
    assert len(known) <= 10
    still = [await over(known, str(number), NOW_S + number) for number in range(1_000)]
    used = await over(known, "used", NOW_S, in_use=True)
    newer = await over(known, "newer", NOW_S + 1_000)
    other = await known.over((TenantId("t"), AgentId("b")), "x", NOW_S, in_use=lambda: False)

    assert {True} == set(still)
    assert (False, False, False) == (used, newer, other)
    clock.advance(LIFE_S + 2_000)
    await known.sweep()
    assert not known._of
