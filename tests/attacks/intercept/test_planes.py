"""What is tried at a running plane, between what people decided and the one execution. Each attack
has an innocent twin.
"""

from __future__ import annotations

from typing import Any

from behavry.authorizer.v1 import authorizer_pb2 as asked
from behavry.authorizer.v1 import authorizer_pb2_grpc
from behavry.control.v1 import plane_link_pb2 as wire
from tests.fakes.asks import ask
from tests.fakes.clock import ManualClock
from tests.fakes.control import AGENT, TENANT, FakeControl
from tests.fakes.plane_desk import PlaneDesk
from tests.integration.authorizer.conftest import Start
from tests.integration.authorizer.test_decide import ALLOW, DENY, INTERCEPT, now_s, until_serial
from tests.integration.authorizer.test_escalations import ASKING, now_ms, said

FIRST: dict[str, Any]
SECOND: dict[str, Any]
FIRST, SECOND = ({"arguments_digest": f"h1:00000000:{number}"} for number in (1, 2))


async def test_an_approval_is_kept_from_a_stopped_agent_and_serves_it_again_when_it_goes_on(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    stop = wire.Revocation(
        signal_id="stop", tenant_id=TENANT, min_serial=2,
        stops=[wire.Stop(scope="agent", subject=AGENT)],
    )  # fmt: skip
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask())
        (opened,) = await desk.until_opened()
        # At one moment: a yes, and the stop right behind it.
        desk.send(control.decide(opened, now_ms=now_ms(clock)))
        desk.revoke(stop)
        await desk.until_acknowledged(stop)
        assert (opened.id, "approved") == await authorizer.decider.ticket_changed()
        stopped = await authorizer.decider.ask(*(ask(escalation=opened.id) for _ in range(20)))
        view = await authorizer_pb2_grpc.AuthorizerServiceStub(authorizer.proxy.channel).View(
            asked.ViewRequest(tenant_id=TENANT, agent_id=AGENT, server="files"),
            metadata=authorizer.proxy.metadata(), timeout=2,
        )  # fmt: skip
        control.publish(ASKING, now_s=now_s(clock))  # gives back, and changes nothing else
        desk.notify(2)
        await until_serial(authorizer, 2)
        again = await authorizer.decider.ask(*(ask(escalation=opened.id) for _ in range(20)))

    assert {(DENY, "kill_switch", "")} == {said(one) for one in stopped}
    assert [] == list(view.visible)
    assert 1 == [said(one)[0] for one in again].count(ALLOW)


async def test_a_decision_is_no_decision_about_another_escalation_nor_a_second_time(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask(**FIRST))
        (first,) = await desk.until_opened()
        await authorizer.decider.ask(ask(**SECOND))
        second = next(one for one in await desk.until_opened(2) if one.id != first.id)
        genuine = control.decide(first, now_ms=now_ms(clock))
        swapped, replayed = wire.EscalationDecision(), wire.EscalationDecision()
        swapped.CopyFrom(genuine)
        swapped.escalation_id, swapped.signal_id = second.id, "swapped"
        desk.send(swapped, genuine)
        await desk.until_acknowledged(genuine)
        (ran,) = await authorizer.decider.ask(ask(**FIRST))
        replayed.CopyFrom(genuine)
        replayed.signal_id = "replayed"
        desk.send(replayed)
        await desk.until_acknowledged(replayed)
        verdicts = await authorizer.decider.ask(ask(**FIRST), ask(**SECOND))

    assert ALLOW == said(ran)[0]
    assert "swapped" not in desk.acknowledged
    assert [INTERCEPT, INTERCEPT] == [said(one)[0] for one in verdicts]


async def test_under_many_retries_a_no_that_a_yes_follows_is_a_no_and_the_other_yes_runs_once(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask(**FIRST))
        (no,) = await desk.until_opened()
        await authorizer.decider.ask(ask(**SECOND))
        yes = next(one for one in await desk.until_opened(2) if one.id != no.id)
        contrary = control.decide(no, now_ms=now_ms(clock))
        desk.send(
            control.decide(no, "deny", now_ms=now_ms(clock)),
            contrary,
            control.decide(yes, now_ms=now_ms(clock)),
        )
        verdicts = []
        while contrary.signal_id not in desk.acknowledged:
            verdicts += await authorizer.decider.ask(*(ask(**FIRST) for _ in range(10)))
        verdicts += await authorizer.decider.ask(*(ask(**FIRST) for _ in range(10)))
        while await authorizer.decider.ticket_changed() != (yes.id, "approved"):
            continue
        ran = await authorizer.decider.ask(*(ask(**SECOND) for _ in range(50)))

    results = [said(one)[0] for one in verdicts]
    assert (0, DENY) == (results.count(ALLOW), results[-1])
    assert 1 == [said(one)[0] for one in ran].count(ALLOW)
