"""Who waits is woken by what concerns it, however early the news comes, and by nothing else."""

import asyncio

import pytest

from services.common.ids import AgentId, SessionId, TenantId
from services.proxy import holding
from services.proxy.calls import Caller
from services.proxy.holding import Holds, Woken

REQUEST = ("session", 1)


def caller(tenant: str = "t", agent: str = "a", session: str = "s") -> Caller:
    return Caller(
        tenant=TenantId(tenant),
        agent=AgentId(agent),
        session=SessionId(session),
        issued_at_s=0,
        expires_at_s=0,
        audiences=frozenset(),
    )


async def started(holds: Holds, since: int = 0, seconds: float = 5.0) -> asyncio.Task[Woken]:
    wait = asyncio.ensure_future(
        holds.wait(
            caller(), "e", since=since, seconds=seconds, request=REQUEST, gone=asyncio.Event()
        )
    )
    await asyncio.sleep(0)
    return wait


NEWS = {
    "its escalation": lambda holds: holds.ticket_changed("t", "e"),
    "its agent": lambda holds: holds.revoked("t", frozenset({"a"}), frozenset()),
    "its session": lambda holds: holds.revoked("t", frozenset({"x"}), frozenset({"s"})),
    "its tenant": lambda holds: holds.revoked("t", frozenset(), frozenset()),
    "everybody": lambda holds: holds.revoked("", frozenset(), frozenset()),
    "a new stream": lambda holds: holds.reconnected(),
}
OTHERS = {
    "another escalation": lambda holds: holds.ticket_changed("t", "f"),
    "another tenant's": lambda holds: holds.ticket_changed("u", "e"),
    "another agent": lambda holds: holds.revoked("t", frozenset({"b"}), frozenset()),
    "another session": lambda holds: holds.revoked("t", frozenset(), frozenset({"z"})),
    "another tenant": lambda holds: holds.revoked("u", frozenset(), frozenset()),
    "another request": lambda holds: holds.cancelled(("session", 2)),
}


@pytest.mark.parametrize("news", NEWS.values(), ids=NEWS)
async def test_what_concerns_a_call_wakes_it(news: object) -> None:
    holds = Holds()
    wait = await started(holds)
    assert callable(news)
    news(holds)

    assert Woken.CHANGED is await wait
    assert 0 == len(holds)


@pytest.mark.parametrize("news", OTHERS.values(), ids=OTHERS)
async def test_what_does_not_concern_it_leaves_it_waiting(news: object) -> None:
    holds = Holds()
    wait = await started(holds)
    assert callable(news)
    news(holds)
    await asyncio.sleep(0)
    assert not wait.done()
    holds.cancelled(REQUEST)

    assert Woken.GONE is await wait


async def test_news_from_before_the_wait_and_after_the_ask_counts() -> None:
    holds = Holds()
    asked = holds.mark()
    holds.ticket_changed("t", "e")
    early = await started(holds, asked)
    late = await started(holds, holds.mark(), seconds=0.01)

    assert (Woken.CHANGED, Woken.OVER) == (await early, await late)


async def test_what_is_not_remembered_any_more_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holding, "REMEMBERED", 2)
    holds = Holds()
    asked = holds.mark()
    for escalation in ("e", "f", "g"):
        holds.ticket_changed("t", escalation)

    assert holds.changed(caller(), "e", asked)
    assert not holds.changed(caller(), "e", holds.mark())


async def test_a_process_that_ends_lets_everybody_go() -> None:
    holds = Holds()
    wait = await started(holds)
    holds.close()

    assert Woken.OVER is await wait
    assert Woken.OVER is await (await started(holds))


async def test_a_reader_that_left_ends_the_wait() -> None:
    holds, gone = Holds(), asyncio.Event()
    wait = asyncio.ensure_future(
        holds.wait(caller(), "e", since=0, seconds=5, request=None, gone=gone)
    )
    await asyncio.sleep(0)
    gone.set()

    assert Woken.GONE is await wait


async def test_an_approval_that_comes_with_the_readers_leaving_serves_nobody() -> None:
    holds, gone = Holds(), asyncio.Event()
    wait = asyncio.ensure_future(
        holds.wait(caller(), "e", since=0, seconds=5, request=None, gone=gone)
    )
    await asyncio.sleep(0)
    holds.ticket_changed("t", "e")
    gone.set()

    assert Woken.GONE is await wait
