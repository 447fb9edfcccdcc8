"""Natural batching: what waits goes together, what spoils goes alone, nobody is forgotten."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.authorizer.engine.answer import EngineAnswer, EngineFailure
from services.authorizer.engine.batching import ALONE_FOR_S, Batcher, Said, batcher
from services.common.rego.verdicts import ShadowVerdict
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from tests.fakes.engine import FakeEngine, decided, fails, spoiled_by
from tests.fakes.envelopes import TENANT

REVISION = "1-0123456789abcdef"


@pytest_asyncio.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest_asyncio.fixture
async def batches(engine: FakeEngine, counters: Counters) -> AsyncIterator[Batcher]:
    async with batcher(engine, counters=counters, log=get_log("test")) as opened:
        yield opened


def submit(
    batches: Batcher, item: bytes, *, source: str = "", seconds: float = 5, tenant: str = TENANT
) -> asyncio.Future[Said]:
    deadline = asyncio.get_running_loop().time() + seconds
    return batches.submit(tenant, REVISION, item, source or item.decode(), deadline)


async def test_a_lone_ask_leaves_at_once_and_alone(batches: Batcher, engine: FakeEngine) -> None:
    said = await submit(batches, b"1")

    assert isinstance(said, EngineAnswer)
    assert [[b"1"]] == engine.queries


async def test_what_comes_while_a_query_is_under_way_goes_as_one(
    batches: Batcher, engine: FakeEngine, counters: Counters
) -> None:
    engine.hold.clear()
    asked = [submit(batches, b"first")]
    await asyncio.wait_for(engine.asked.wait(), 5)
    asked += [submit(batches, b"%d" % n) for n in range(9)]
    engine.hold.set()
    await asyncio.gather(*asked)

    assert [1, 9] == [len(query) for query in engine.queries]
    read = counters.read()
    assert 2 == read["authorizer.engine.queries"]
    assert 10 == read["authorizer.engine.items"]
    assert 9 == read["authorizer.engine.items_in_batches_of_8"]


async def test_tenants_are_never_in_one_query(batches: Batcher, engine: FakeEngine) -> None:
    await asyncio.gather(
        submit(batches, b"a"), submit(batches, b"b", tenant="other"), submit(batches, b"c")
    )

    assert [[b"a", b"c"], [b"b"]] == engine.queries


async def test_a_query_stays_below_its_size(batches: Batcher, engine: FakeEngine) -> None:
    big = [bytes([65 + n]) * (400 << 10) for n in range(4)]
    await asyncio.gather(*(submit(batches, item, source=str(n)) for n, item in enumerate(big)))

    assert [2, 2] == [len(query) for query in engine.queries]


@pytest.mark.parametrize("code", ["engine_error", "engine_timeout", "engine_invalid"])
async def test_poison_spoils_only_itself_and_is_asked_alone_from_then_on(
    batches: Batcher, engine: FakeEngine, code: str
) -> None:
    engine.answers = spoiled_by(b"poison", code)  # type: ignore[arg-type]  # parametrised literals
    first = await asyncio.gather(*(submit(batches, item) for item in (b"a", b"poison", b"b")))
    engine.queries.clear()
    second = await asyncio.gather(*(submit(batches, item) for item in (b"a", b"poison", b"b")))

    for said in (first, second):
        assert [True, False, True] == [isinstance(one, EngineAnswer) for one in said]
    assert [[b"poison"], [b"a", b"b"]] == sorted(engine.queries, key=len)


async def test_a_spoiler_is_forgiven_after_a_minute(
    batches: Batcher, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.answers = fails("engine_error")
    await submit(batches, b"x")
    engine.answers = decided("allow")
    loop = asyncio.get_running_loop()
    later = loop.time() + ALONE_FOR_S + 1
    monkeypatch.setattr(loop, "time", lambda: later)
    engine.queries.clear()
    await asyncio.gather(submit(batches, b"x"), submit(batches, b"y"))

    assert [[b"x", b"y"]] == engine.queries


async def test_an_outage_marks_nobody_as_a_spoiler(batches: Batcher, engine: FakeEngine) -> None:
    engine.answers = fails("policy_unavailable")
    await asyncio.gather(submit(batches, b"x"), submit(batches, b"y"))
    engine.queries.clear()
    await asyncio.gather(submit(batches, b"x"), submit(batches, b"y"))

    assert [[b"x", b"y"]] == engine.queries


async def test_what_has_expired_is_denied_alone(batches: Batcher, engine: FakeEngine) -> None:
    late, fine = await asyncio.gather(submit(batches, b"l", seconds=-1), submit(batches, b"f"))

    assert isinstance(late, EngineFailure)
    assert "engine_timeout" == late.code
    assert isinstance(fine, EngineAnswer)
    assert [[b"f"]] == engine.queries


async def test_an_engine_that_answers_too_few_allows_nothing(
    batches: Batcher, engine: FakeEngine
) -> None:
    engine.answers = lambda items: decided("allow")(items[1:])
    said = await asyncio.gather(submit(batches, b"a"), submit(batches, b"b"))

    assert ["engine_invalid"] * 2 == [getattr(one, "code", "") for one in said]


async def test_a_broken_engine_denies_instead_of_leaving_callers_waiting(
    batches: Batcher, engine: FakeEngine
) -> None:
    def broken(_: object) -> list[Said]:
        raise RuntimeError

    engine.answers = broken
    said = await asyncio.gather(submit(batches, b"a"), submit(batches, b"b"))
    engine.answers = decided("allow")

    assert ["engine_error"] * 2 == [getattr(one, "code", "") for one in said]
    assert isinstance(await submit(batches, b"c"), EngineAnswer)


async def test_closing_denies_what_is_under_way(engine: FakeEngine, counters: Counters) -> None:
    async with batcher(engine, counters=counters, log=get_log("test")) as batches:
        engine.hold.clear()
        asked = submit(batches, b"a")
        await asyncio.wait_for(engine.asked.wait(), 5)

    assert isinstance(await asked, EngineFailure)


async def test_a_caller_that_went_away_takes_no_room(batches: Batcher, engine: FakeEngine) -> None:
    gone, here = submit(batches, b"gone"), submit(batches, b"here")
    gone.cancel()
    await here

    assert [[b"here"]] == engine.queries


async def test_shadow_verdicts_come_with_the_decision(batches: Batcher, engine: FakeEngine) -> None:
    engine.shadowed = (ShadowVerdict(policy="trial", result="deny", code="x"),)
    said = await submit(batches, b"a")

    assert isinstance(said, EngineAnswer)
    assert "allow" == said.decision.result
    assert engine.shadowed == said.decision.shadow
