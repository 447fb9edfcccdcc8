"""core-parity: the same policies and inputs give the same decisions on both engines, and the same
as the case file says; pruned and full input alike.
"""

import asyncio

import pytest

from services.authorizer import envelope
from services.authorizer.engine.batching import batcher
from services.authorizer.engine.prune import prune
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log
from tests.contract.engines.cases import Case, load, seen
from tests.contract.engines.conftest import Bench
from tests.fakes.envelopes import TENANT
from tests.promises import promise

pytestmark = pytest.mark.asyncio(loop_scope="module")

CASES = load("grants", "aggregation", "language", "failures")


async def test_there_are_at_least_forty_cases_and_each_has_an_innocent_twin() -> None:
    assert len(CASES) >= 40
    for case in CASES:
        results = {str(ask.expect.get("result", "failure")) for ask in case.asks}
        assert len(case.asks) > 1
        assert "allow" in results


@pytest.mark.parametrize("case", CASES, ids=str)
@promise("engine:parity")
async def test_each_case_is_decided_as_written(bench: Bench, case: Case) -> None:
    bundle = await bench.offer({TENANT: case.policies})
    reads = bundle.reads[TENANT]
    async with batcher(bench.engine, counters=Counters(), log=get_log("test")) as batches:
        for ask in case.asks:
            full = ask.envelope()
            for item in (prune(full, reads), envelope.encode(full)):
                deadline = asyncio.get_running_loop().time() + 5
                said = await batches.ask(
                    TENANT, bundle.bundle.revision, item, ("agent", "tool"), deadline
                )

                assert ask.expect == seen(said, ask.expect)
