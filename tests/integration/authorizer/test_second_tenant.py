"""The twins of what every test of the authorizer relies on: each bundle holds the second tenant of
neighbour.py, under the same ids and slugs as the first and with a policy that refuses everything;
nothing of it decides or shows in what is decided for the first.
"""

from __future__ import annotations

import pytest

from behavry.authorizer.v1 import authorizer_pb2 as wire
from tests.fakes.asks import ask, reasons
from tests.fakes.clock import ManualClock
from tests.fakes.control import AGENT, FakeControl, rows
from tests.fakes.neighbour import MARK, TENANT, Crossed
from tests.integration.authorizer.conftest import Start
from tests.integration.authorizer.test_decide import now_s, until_serial


async def test_its_policies_are_its_own(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    control.publish(rows(), now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        ours = await reasons(authorizer.decider, ask())
        (verdict,) = await authorizer.decider.ask(ask(caller={"tenant_id": TENANT}))

    assert [""] == ours
    assert (wire.DECISION_RESULT_DENY, MARK) == (
        verdict.decision.result, verdict.decision.reason_code,
    )  # fmt: skip
    assert f"{MARK}-agent" in verdict.envelope.decode()


async def test_what_is_decided_is_looked_at(
    control: FakeControl, clock: ManualClock, start: Start
) -> None:
    plain = rows()
    agents = {AGENT: {**plain.agents[AGENT], "name": MARK}}
    control.publish(rows(agents=agents), now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        with pytest.raises(Crossed):
            await authorizer.decider.ask(ask())
