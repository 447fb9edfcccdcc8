"""The scripted engine behaves as the real ones do where tests rely on it."""

import asyncio

import pytest

from services.authorizer.engine.answer import EngineAnswer, EngineFailure
from services.authorizer.engine.batching import Said
from services.authorizer.engine.protocol import Engine
from services.common.rego.verdicts import DEFAULT_DENY
from tests.contract.engines.conftest import Bench
from tests.fakes.bundle import Policy
from tests.fakes.engine import FakeEngine, decided, fails
from tests.fakes.envelopes import TENANT

pytestmark = pytest.mark.asyncio(loop_scope="module")

GRANTED = b'{"request":{"domain":"d","action":"read"},"agent":{"permissions":["d:read"]}}'
FOREIGN = b'{"request":{"domain":"d","action":"read"},"agent":{"permissions":[]}}'
BROKEN = b'{"request":{"domain":"d","action":"read","tool":"x"},"agent":{"permissions":["d:read"]}}'
POLICY = Policy(
    "rule",
    """verdicts contains {"result": "deny", "code": "c", "reason": "r", "obligations": []} if {
    to_number(input.request.tool) > 1
}""",
)


async def told(engine: Engine, revision: str, item: bytes) -> Said:
    deadline = asyncio.get_running_loop().time() + 5
    (said,) = await engine.evaluate(TENANT, revision, [item], deadline)
    return said


def shown(said: Said) -> tuple[str, str]:
    if isinstance(said, EngineFailure):
        return "failure", said.code
    return "decision", said.decision.result


async def test_allow_deny_failure_and_revision_come_in_the_same_form(bench: Bench) -> None:
    bundle = (await bench.offer({TENANT: [POLICY]})).bundle
    fake = FakeEngine()
    await fake.offer(bundle)
    for item, script in (
        (GRANTED, decided("allow")),
        (FOREIGN, decided("deny", "default_deny")),
        (BROKEN, fails("engine_error")),
    ):
        fake.answers = script

        assert shown(await told(bench.engine, bundle.revision, item)) == shown(
            await told(fake, bundle.revision, item)
        )
    assert ("failure", "revision_mismatch") == shown(await told(fake, "9-x", GRANTED))
    assert ("failure", "revision_mismatch") == shown(await told(bench.engine, "9-x", GRANTED))


async def test_what_nobody_allows_is_the_same_default_deny(bench: Bench) -> None:
    bundle = (await bench.offer({TENANT: []})).bundle
    fake = FakeEngine(answers=decided("deny", "default_deny"))
    real = await told(bench.engine, bundle.revision, FOREIGN)
    scripted = await told(fake, bundle.revision, FOREIGN)

    assert isinstance(real, EngineAnswer)
    assert isinstance(scripted, EngineAnswer)
    assert DEFAULT_DENY == real.decision == scripted.decision
