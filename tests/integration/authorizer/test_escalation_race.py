"""At most one execution per approval, whoever asks at once and whoever dies in between: real
processes, killed with SIGKILL, over a journal on the disk and over one Valkey.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from behavry.authorizer.v1 import authorizer_pb2 as wire
from behavry.control.v1 import plane_link_pb2
from services.common.clock import SystemClock
from tests.fakes.asks import Decider, ask
from tests.fakes.authorizer_process import authorizer_process
from tests.fakes.control import TENANT, FakeControl, policy, rows
from tests.fakes.peers import make_peers
from tests.fakes.plane_desk import PlaneDesk
from tests.fakes.valkey import ValkeyServer, running_valkey
from tests.integration.authorizer.test_decide import ALLOW, ASK_FIRST, INTERCEPT
from tests.promises import promise

RETRIES = 25
CLOCK = SystemClock()


def now_ms() -> int:
    return CLOCK.now_ns() // 1_000_000


@pytest.fixture
async def desk(state_dir: Path, control: FakeControl) -> AsyncIterator[PlaneDesk]:
    (state_dir / "run").mkdir(exist_ok=True)
    make_peers(state_dir / "peers")
    plain = rows(policies=[policy(TENANT, "ask_first", ASK_FIRST)])
    rates = {**plain.limits["rates"], "agent_per_minute": 60_000, "agent_burst": 10_000}
    fast = replace(plain, limits={**plain.limits, "rates": rates})
    control.publish(fast, now_s=now_ms() // 1000)
    async with PlaneDesk().serving(state_dir / "run" / "control.sock") as made:
        yield made


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


def call(number: int) -> wire.Ask:
    return ask(arguments_digest=f"h1:00000000:{number}")


async def judged(decider: Decider, number: int) -> wire.Decision:
    """Asked until policy is there: a fresh process may not have its bundle yet."""
    async with asyncio.timeout(10):
        while True:
            (verdict,) = await decider.ask(call(number))
            if verdict.decision.reason_code not in {"policy_missing", "policy_unavailable"}:
                return verdict.decision


async def volley(decider: Decider, number: int) -> list[Any]:
    """Many retries at once; those whose authorizer dies come back as errors."""
    answers = await asyncio.gather(
        *(decider.ask(call(number)) for _ in range(RETRIES)), return_exceptions=True
    )
    assert all(isinstance(one, list | ConnectionError) for one in answers)
    return answers


def allowed(*volleys: list[Any]) -> int:
    return sum(
        one[0].decision.result == ALLOW
        for answers in volleys
        for one in answers
        if isinstance(one, list)
    )


async def approved(
    desk: PlaneDesk, control: FakeControl, decider: Decider, number: int
) -> plane_link_pb2.EscalationOpened:
    """One call is asked, and people say yes."""
    held = await judged(decider, number)
    assert INTERCEPT == held.result
    opened = desk.opened.get(held.escalation.id)
    while opened is None:
        await desk.until_opened(len(desk.opened) + 1)
        opened = desk.opened.get(held.escalation.id)
    decision = control.decide(opened, now_ms=now_ms())
    desk.send(decision)
    await desk.until_acknowledged(decision)
    return opened


@promise("escalations:once")
async def test_killed_between_any_two_steps_it_keeps_tickets_and_clocks_and_runs_nothing_twice(
    control: FakeControl, desk: PlaneDesk, environment: dict[str, str], state_dir: Path
) -> None:
    async with authorizer_process(environment, state_dir) as first:
        held = await judged(first.decider, 1)
        await first.kill()
    async with authorizer_process(environment, state_dir) as second:
        again = await judged(second.decider, 1)
        opened = await approved(desk, control, second.decider, 1)
        await second.kill()
    async with authorizer_process(environment, state_dir) as third:
        shots = asyncio.create_task(volley(third.decider, 1))
        await asyncio.wait({shots}, timeout=0.005)
        await third.kill()
        before = await shots
    async with authorizer_process(environment, state_dir) as fourth:
        await judged(fourth.decider, 2)
        after = await volley(fourth.decider, 1)

    assert held.escalation == again.escalation
    assert opened.id == held.escalation.id
    assert allowed(before, after) <= 1
    # Whoever lived through it is answered: by the approval, or by a new question.
    assert RETRIES == len([one for one in after if isinstance(one, list)])


@pytest.mark.needs_valkey
@promise("escalations:once")
async def test_of_fifty_retries_at_two_replicas_one_runs(
    control: FakeControl,
    desk: PlaneDesk,
    valkey: ValkeyServer,
    environment: dict[str, str],
    state_dir: Path,
) -> None:
    shared = {
        **environment,
        "BEHAVRY_COUNTER_STORE_URL": valkey.url,
        "BEHAVRY_AUTHORIZER_REPLICAS": "2",
    }
    counts = []
    async with (
        authorizer_process(shared, state_dir, name="a") as one,
        authorizer_process(shared, state_dir, name="b") as other,
    ):
        held, elsewhere = await asyncio.gather(judged(one.decider, 0), judged(other.decider, 0))
        for number in range(1, 4):
            await approved(desk, control, one.decider, number)
            shots = await asyncio.gather(volley(one.decider, number), volley(other.decider, number))
            counts.append(allowed(*shots))
        await approved(desk, control, other.decider, 9)
        told = {await one.decider.ticket_changed() for _ in range(4)}
        dying = asyncio.create_task(volley(one.decider, 9))
        living = asyncio.create_task(volley(other.decider, 9))
        await asyncio.wait({dying}, timeout=0.01)
        await one.kill()
        last = await asyncio.gather(dying, living)
    assert held.escalation == elsewhere.escalation
    assert [1, 1, 1] == counts
    assert allowed(*last) <= 1
    assert {"approved", "consumed"} <= {state for _, state in told}


@pytest.mark.needs_valkey
@promise("escalations:once")
async def test_of_two_replicas_either_may_die_at_any_step_and_nothing_runs_twice(
    control: FakeControl,
    desk: PlaneDesk,
    valkey: ValkeyServer,
    environment: dict[str, str],
    state_dir: Path,
) -> None:
    """Killed after the question, after the answer of people, and while fifty ask for the one use;
    who comes back, and who lived on, know the same ticket with the same clocks.
    """
    shared = {
        **environment,
        "BEHAVRY_COUNTER_STORE_URL": valkey.url,
        "BEHAVRY_AUTHORIZER_REPLICAS": "2",
    }
    shots: list[list[Any]] = []
    async with authorizer_process(shared, state_dir, name="a") as one:
        held = await judged(one.decider, 1)
        async with authorizer_process(shared, state_dir, name="b") as other:
            await one.kill()
            elsewhere = await judged(other.decider, 1)
            opened = await approved(desk, control, other.decider, 1)
            await other.kill()
    async with (
        authorizer_process(shared, state_dir, name="a") as one,
        authorizer_process(shared, state_dir, name="b") as other,
    ):
        await asyncio.gather(judged(one.decider, 2), judged(other.decider, 2))
        dying = asyncio.create_task(volley(one.decider, 1))
        living = asyncio.create_task(volley(other.decider, 1))
        await asyncio.wait({dying, living}, timeout=0.005)
        await one.kill()
        shots += await asyncio.gather(dying, living)
        async with authorizer_process(shared, state_dir, name="a") as again:
            await judged(again.decider, 2)
            shots += await asyncio.gather(volley(again.decider, 1), volley(other.decider, 1))
            after = await judged(again.decider, 1)

    assert held.escalation == elsewhere.escalation
    assert opened.id == held.escalation.id
    assert allowed(*shots) <= 1
    assert (INTERCEPT, "pending") == (after.result, after.escalation.state)
    assert opened.id != after.escalation.id


@pytest.mark.needs_valkey
@promise("failure:escalation-store")
async def test_a_shared_store_that_is_away_denies_and_loses_nothing(
    control: FakeControl,
    desk: PlaneDesk,
    valkey: ValkeyServer,
    environment: dict[str, str],
    state_dir: Path,
) -> None:
    shared = {**environment, "BEHAVRY_COUNTER_STORE_URL": valkey.url}
    async with authorizer_process(shared, state_dir) as authorizer:
        await approved(desk, control, authorizer.decider, 1)
        valkey.kill()
        (away,) = await authorizer.decider.ask(call(1))
        valkey.started()
        async with asyncio.timeout(10):
            back = await judged(authorizer.decider, 1)
            while back.reason_code == "escalation_unavailable":
                back = await judged(authorizer.decider, 1)
        after = await judged(authorizer.decider, 1)

    assert "escalation_unavailable" == away.decision.reason_code
    assert ALLOW == back.result
    assert INTERCEPT == after.result
