"""core-batch: each case decided alone and inside batches, among failing, slow and foreign
neighbours, comes out the same. Poison in a batch spoils only itself.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from services.authorizer import envelope
from services.authorizer.engine.answer import EngineAnswer, EngineFailure
from services.authorizer.engine.batching import Batcher, Said, batcher
from services.authorizer.engine.protocol import Engine, EngineBundle, EngineState
from services.authorizer.engine.prune import prune
from services.common.rego.verdicts import ShadowVerdict
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from tests.contract.engines.cases import Case, load, seen
from tests.contract.engines.conftest import Bench
from tests.fakes.bundle import Made, Policy
from tests.fakes.envelopes import TENANT, example
from tests.promises import promise

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOREIGN = "0192f5c0-0000-7000-8000-000000000002"
CASES = load("grants", "aggregation", "language", "failures")
ROUNDS = 5
#: Asks that fail come in the first round only: in OPA each costs its whole batch a second asking.
FAILING_ROUNDS = 1
POISONED_EVERY = 12

#: Neighbours that live beside each case's own policies.
POISON = Policy(
    "zz_poison",
    """verdicts contains {"result": "deny", "code": "x", "reason": "r", "obligations": []} if {
    input.request.category == "poison"
    to_number(input.request.category) > 1
}
verdicts contains {"result": "deny", "code": "x", "reason": "r", "obligations": []} if {
    input.request.category == "tar"
    count([1 | some a in numbers.range(1, 4000); some b in numbers.range(1, 4000); a * b == 0]) > 0
}""",
)
STRANGER = Policy(
    "closed",
    """verdicts contains {"result": "deny", "code": "foreign", "reason": "r", "obligations": []}""",
)


@dataclass(slots=True)
class Counted:
    """A real engine that notes how many items each query carried."""

    engine: Engine
    sizes: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def state(self) -> EngineState:
        return self.engine.state

    def on_state(self, call: Callable[[EngineState], None]) -> None:
        self.engine.on_state(call)

    async def offer(self, bundle: EngineBundle) -> None:
        await self.engine.offer(bundle)

    async def evaluate(
        self, tenant: str, revision: str, items: Sequence[bytes], deadline: float
    ) -> list[EngineAnswer | EngineFailure]:
        self.sizes.append(len(items))
        return await self.engine.evaluate(tenant, revision, items, deadline)

    def shadows(self, tenant: str, revision: str) -> bool:
        return self.engine.shadows(tenant, revision)

    async def observe(
        self, tenant: str, revision: str, items: Sequence[bytes], deadline: float
    ) -> list[tuple[ShadowVerdict, ...]]:
        return await self.engine.observe(tenant, revision, items, deadline)

    async def close(self) -> None:
        await self.engine.close()


@asynccontextmanager
async def counting(bench: Bench) -> AsyncIterator[tuple[Batcher, Counted]]:
    counted = Counted(bench.engine)
    async with batcher(counted, counters=Counters(), log=get_log("test")) as batches:
        yield batches, counted


async def offered(bench: Bench, case: Case) -> Made:
    return await bench.offer({TENANT: (*case.policies, POISON), FOREIGN: (STRANGER,)})


def item(bundle: Made, tenant: str, full: envelope.Envelope) -> bytes:
    return prune(full, bundle.reads[tenant])


def neighbour(bundle: Made, tenant: str, category: str = "files") -> bytes:
    changes = {"request.category": category, "request.tool": "neighbour"}
    return item(bundle, tenant, envelope.decode(json.dumps(example(changes)).encode()))


def later(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def alone(bench: Bench, bundle: Made, asked: bytes) -> Said:
    (said,) = await bench.engine.evaluate(TENANT, bundle.bundle.revision, [asked], later(5))
    return said


@promise("engine:judged-alone")
async def test_each_case_comes_out_of_a_batch_as_it_does_alone(bench: Bench) -> None:
    """All cases in one test, because the share of big queries is counted over all of them."""
    sizes: list[int] = []
    for number, case in enumerate(CASES):
        bundle = await offered(bench, case)
        revision = bundle.bundle.revision
        poison = number % POISONED_EVERY == 0
        async with counting(bench) as (batches, counted):
            for turn in range(ROUNDS):
                expected: list[dict[str, object]] = []
                answers: list[asyncio.Future[Said]] = []
                foreign: list[asyncio.Future[Said]] = []
                for ask in case.asks:
                    if "failure" in ask.expect and turn >= FAILING_ROUNDS:
                        continue
                    asked = item(bundle, TENANT, ask.envelope())
                    expected.append(ask.expect)
                    source = ("case", str(ask.changes))
                    answers.append(batches.submit(TENANT, revision, asked, source, later(5)))
                for n in range(8):
                    category = "poison" if poison and turn == n == 0 else "files"
                    near = neighbour(bundle, TENANT, category)
                    batches.submit(TENANT, revision, near, ("near", category), later(5))
                    far = neighbour(bundle, FOREIGN)
                    foreign.append(
                        batches.submit(FOREIGN, revision, far, ("far", str(n)), later(5))
                    )

                got = [await answer for answer in answers]
                assert expected == [
                    seen(said, wanted) for said, wanted in zip(got, expected, strict=True)
                ], case.name
                for answer in foreign:
                    assert {"result": "deny", "code": "foreign"} == seen(await answer, {})
        sizes += counted.sizes

    big = sum(size >= 8 for size in sizes)
    assert big >= 0.8 * len(sizes), f"{big} of {len(sizes)} queries carried eight items or more"


async def test_an_item_that_fails_takes_nobody_with_it_and_is_asked_alone_then(
    bench: Bench,
) -> None:
    bundle = await offered(bench, CASES[0])
    revision = bundle.bundle.revision
    async with counting(bench) as (batches, counted):
        for turn in range(2):
            bad = batches.submit(
                TENANT, revision, neighbour(bundle, TENANT, "poison"), "bad", later(5)
            )
            good = [
                batches.submit(TENANT, revision, neighbour(bundle, TENANT), n, later(5))
                for n in range(9)
            ]
            spoiled = await bad

            assert isinstance(spoiled, EngineFailure)
            assert "engine_error" == spoiled.code
            for answer in good:
                assert {"result": "allow", "code": "granted"} == seen(await answer, {})
            if turn == 0:
                assert 10 in counted.sizes
                counted.sizes.clear()

        assert [1, 9] == sorted(counted.sizes)  # the spoiler alone, its neighbours together


async def test_an_item_that_is_slow_is_denied_and_the_others_are_answered(bench: Bench) -> None:
    bundle = await offered(bench, CASES[0])
    revision = bundle.bundle.revision
    async with counting(bench) as (batches, _):
        before = [
            batches.submit(TENANT, revision, neighbour(bundle, TENANT), n, later(5))
            for n in range(4)
        ]
        slow = batches.submit(TENANT, revision, neighbour(bundle, TENANT, "tar"), "slow", later(5))
        after = [
            batches.submit(TENANT, revision, neighbour(bundle, TENANT), n, later(5))
            for n in range(4)
        ]
        spoiled = await slow

        assert isinstance(spoiled, EngineFailure)
        assert "engine_timeout" == spoiled.code
        for answer in (*before, *after):
            assert {"result": "allow", "code": "granted"} == seen(await answer, {})
        assert bench.engine.state is EngineState.UP


async def test_an_expired_item_is_denied_alone(bench: Bench) -> None:
    bundle = await offered(bench, CASES[0])
    revision = bundle.bundle.revision
    async with counting(bench) as (batches, counted):
        late = batches.submit(TENANT, revision, neighbour(bundle, TENANT), "late", later(-1))
        fine = batches.submit(TENANT, revision, neighbour(bundle, TENANT), "fine", later(5))
        expired = await late

        assert isinstance(expired, EngineFailure)
        assert "engine_timeout" == expired.code
        assert {"result": "allow", "code": "granted"} == seen(await fine, {})
        assert [1] == counted.sizes


async def test_queries_stay_within_their_limits_and_what_waits_goes_together(bench: Bench) -> None:
    bundle = await offered(bench, CASES[0])
    revision = bundle.bundle.revision
    async with counting(bench) as (batches, counted):
        asked = [
            batches.submit(TENANT, revision, neighbour(bundle, TENANT), n, later(5))
            for n in range(70)
        ]
        for answer in asked:
            assert {"result": "allow", "code": "granted"} == seen(await answer, {})

        assert [32, 32, 6] == counted.sizes


async def test_a_revision_that_the_engine_has_not_is_refused(bench: Bench) -> None:
    bundle = await offered(bench, CASES[0])
    said = await alone(bench, bundle, neighbour(bundle, TENANT))
    assert isinstance(said, EngineAnswer)
    (other,) = await bench.engine.evaluate(
        TENANT, "999-0123456789abcdef", [neighbour(bundle, TENANT)], later(5)
    )

    assert isinstance(other, EngineFailure)
    assert "revision_mismatch" == other.code


async def test_a_tenant_that_is_not_in_the_bundle_is_refused(bench: Bench) -> None:
    bundle = await offered(bench, CASES[0])
    (said,) = await bench.engine.evaluate(
        "0192f5c0-0000-7000-8000-000000000009",
        bundle.bundle.revision,
        [neighbour(bundle, TENANT)],
        later(5),
    )

    assert isinstance(said, EngineFailure)
