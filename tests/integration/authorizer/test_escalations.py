"""A call that policy holds, from the question to people to the one execution they approved, through
a running authorizer and a real link to a control plane that can be bent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from behavry.authorizer.v1 import authorizer_pb2 as wire
from tests.fakes.asks import ask
from tests.fakes.clock import ManualClock
from tests.fakes.control import TENANT, FakeControl, policy, rows
from tests.fakes.plane_desk import PlaneDesk
from tests.integration.authorizer.conftest import Start
from tests.integration.authorizer.test_decide import (
    ALLOW,
    ASK_FIRST,
    DENY,
    INTERCEPT,
    now_s,
    until_serial,
)

ASKING = rows(policies=[policy(TENANT, "ask_first", ASK_FIRST)])


def now_ms(clock: ManualClock) -> int:
    return clock.now_ns() // 1_000_000


def said(verdict: wire.Verdict) -> tuple[int, str, str]:
    """Result, reason and the escalation's state."""
    decision = verdict.decision
    return decision.result, decision.reason_code, decision.escalation.state


@pytest.fixture
async def desk(state_dir: Path, control: FakeControl) -> AsyncIterator[PlaneDesk]:
    assert control.url
    (state_dir / "run").mkdir(exist_ok=True)
    async with PlaneDesk().serving(state_dir / "run" / "control.sock") as made:
        yield made


async def test_an_approved_call_runs_once_and_the_next_asks_people_again(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        (held,) = await authorizer.decider.ask(ask())
        (again,) = await authorizer.decider.ask(ask())
        (opened,) = await desk.until_opened()
        decision = control.decide(opened, now_ms=now_ms(clock))
        desk.send(decision)
        told = await authorizer.decider.ticket_changed()
        (allowed,) = await authorizer.decider.ask(ask(escalation=opened.id))
        used = await desk.until_changed(opened.id, "consumed")
        (fresh,) = await authorizer.decider.ask(ask())
        await desk.until_acknowledged(decision)

    assert (INTERCEPT, "ask_first", "pending") == said(held)
    assert held.decision.escalation == again.decision.escalation
    assert opened.id == held.decision.escalation.id
    assert now_ms(clock) + 86_400_000 == held.decision.escalation.decide_by_ms
    assert (opened.id, "approved") == told
    assert (ALLOW, "ask_first", "consumed") == said(allowed)
    assert ["ask_first"] == list(allowed.decision.escalation.codes)
    assert (2, 0) == (used.version, used.uses_left)
    assert (INTERCEPT, "ask_first", "pending") == said(fresh)
    assert opened.id != fresh.decision.escalation.id


async def test_a_denied_call_stays_denied(
    control: FakeControl, clock: ManualClock, desk: PlaneDesk, start: Start
) -> None:
    control.publish(ASKING, now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await authorizer.decider.ask(ask())
        (opened,) = await desk.until_opened()
        desk.send(control.decide(opened, "deny", now_ms=now_ms(clock)))
        told = await authorizer.decider.ticket_changed()
        (by_id,) = await authorizer.decider.ask(ask(escalation=opened.id))
        (repeated,) = await authorizer.decider.ask(ask())

    assert (opened.id, "denied") == told
    assert (DENY, "escalation_denied", "denied") == said(by_id) == said(repeated)
