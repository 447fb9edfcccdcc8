"""What the proxy may rely on when a call waits for a person: equal on the told and on the real
authorizer.
"""

from typing import Any

import pytest

from behavry.authorizer.v1 import authorizer_pb2 as wire
from behavry.authorizer.v1 import authorizer_pb2_grpc
from services.common.clock import SystemClock
from services.common.ids import is_uuid
from services.proxy.calls import Decision, Result
from services.proxy.clients.decide import read
from tests.contract.decide.conftest import Authorizer
from tests.contract.decide.test_decide import NOBODY, part
from tests.fakes.asks import DIGEST, ask
from tests.fakes.control import AGENT, TENANT

OTHER_DIGEST = "h1:00000000:" + "1" * 64


@pytest.fixture(autouse=True)
async def with_policy(authorizer: Authorizer) -> None:
    """The first snapshot says that there is a bundle."""
    await part(authorizer, "proxy")


async def decided(authorizer: Authorizer, escalation: str = "", **changes: Any) -> Decision:
    question = ask(tool="hold_file", escalation=escalation, **changes)
    (verdict,) = await authorizer.decider.ask(question)
    return read(verdict, changes.get("arguments_digest", DIGEST))


def state(decision: Decision) -> tuple[Result, str, str]:
    assert decision.escalation is not None
    return decision.result, decision.reason_code, decision.escalation.state


def id_of(decision: Decision) -> str:
    assert decision.escalation is not None
    return decision.escalation.id


async def cancel(authorizer: Authorizer, escalation: str, agent: str = AGENT) -> str:
    stub = authorizer_pb2_grpc.AuthorizerServiceStub(authorizer.proxy.channel)
    request = wire.CancelEscalationRequest(
        tenant_id=TENANT, agent_id=agent, escalation_id=escalation
    )
    answer = await stub.CancelEscalation(request, timeout=5, metadata=authorizer.proxy.metadata())
    return answer.state


async def test_the_same_call_joins_its_escalation_and_another_does_not(
    authorizer: Authorizer,
) -> None:
    first = await decided(authorizer)
    again = await decided(authorizer, id_of(first))
    other = await decided(authorizer, arguments_digest=OTHER_DIGEST)

    assert (Result.INTERCEPT, "ask_first", "pending") == state(first)
    assert first.escalation is not None
    assert is_uuid(first.escalation.id)
    assert first.escalation.decide_by_ms > SystemClock().now_ns() // 10**6
    assert ("ask_first",) == first.escalation.codes == first.codes
    assert first.escalation == again.escalation
    assert id_of(first) != id_of(other)


async def test_an_approval_is_told_and_serves_once(authorizer: Authorizer) -> None:
    first = id_of(await decided(authorizer))
    await authorizer.settle(first, "approved")
    assert (first, "approved") == await authorizer.decider.ticket_changed()
    other = await decided(authorizer, first, arguments_digest=OTHER_DIGEST)
    served = await decided(authorizer, first)
    next_one = await decided(authorizer, first)

    assert (Result.INTERCEPT, "pending") == state(other)[::2]
    assert (Result.ALLOW, "consumed") == state(served)[::2]
    assert served.escalation is not None
    assert (first, ("ask_first",)) == (served.escalation.id, served.escalation.codes)
    assert served.envelope
    assert (Result.INTERCEPT, "pending") == state(next_one)[::2]
    assert first != id_of(next_one)


async def test_a_denial_is_told_and_answers_to_its_id(authorizer: Authorizer) -> None:
    first = id_of(await decided(authorizer))
    await authorizer.settle(first, "denied")
    assert (first, "denied") == await authorizer.decider.ticket_changed()
    denied = await decided(authorizer, first)

    assert (Result.DENY, "escalation_denied", "denied") == state(denied)
    assert first == id_of(denied)


async def test_what_an_agent_gives_up_is_cancelled_and_nobody_elses(
    authorizer: Authorizer,
) -> None:
    first = id_of(await decided(authorizer))
    foreign = await cancel(authorizer, first, NOBODY)
    waiting = await decided(authorizer, first)
    given_up = await cancel(authorizer, first)
    twice = await cancel(authorizer, first)
    assert (first, "cancelled") == await authorizer.decider.ticket_changed()
    denied = await decided(authorizer, first)

    assert ("", "cancelled", "cancelled") == (foreign, given_up, twice)
    assert "pending" == state(waiting)[2]
    assert (Result.DENY, "escalation_cancelled", "cancelled") == state(denied)
