"""How long a legacy session lasts, and how many an agent may have."""

import pytest

from services.common.counter_store.memory import MemoryCounterStore
from services.common.ids import AgentId, ServerSlug, SessionId, TenantId
from services.common.telemetry.logging import get_log
from services.proxy.backends.upstream import Session as Upstream
from services.proxy.calls import Caller, Visit
from services.proxy.endings import LIFE_S, Endings
from services.proxy.seals import Seals, Unsealed
from services.proxy.sessions import PER_AGENT, Sessions, TooMany
from services.proxy.snapshot import Agent, Server, Tenant
from tests.fakes.clock import ManualClock
from tests.fakes.replicas import lone


def visit(agent: str = "a") -> Visit:
    caller = Caller(
        tenant=TenantId("t"), agent=AgentId(agent), session=SessionId("s"), issued_at_s=0,
        expires_at_s=0, audiences=frozenset(),
    )  # fmt: skip
    return Visit(
        caller=caller,
        tenant=Tenant(slug="default", status="active"),
        agent=Agent(name="x", status="active", cls="c"),
        slug=ServerSlug("notes"),
        server=Server(id="", domain="d", transport="http"),
        revision="1",
        client_ip="",
    )


def on(clock: ManualClock) -> Sessions:
    seals = Seals([b"k" * 32], clock)
    return Sessions(seals, clock, Endings(clock, get_log("test")), lone(seals, clock))


class Two:
    """In two processes that share a store."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        seals, counts = Seals([b"k" * 32], self.clock), MemoryCounterStore(self.clock)
        self.here, self.there = (
            Sessions(
                seals, self.clock, Endings(self.clock, get_log("test"), counts),
                lone(seals, self.clock),
            )
            for _ in range(2)
        )  # fmt: skip


def made() -> tuple[Sessions, ManualClock]:
    clock = ManualClock()
    return on(clock), clock


async def test_another_process_opens_it_too() -> None:
    sessions, clock = made()
    sealed = sessions.open(visit(), "2025-06-18", Upstream("up-1", "2025-03-26"))
    elsewhere = on(clock)

    found = await elsewhere.find(visit(), sealed)

    assert ("2025-06-18", "up-1", "2025-03-26") == (
        found.version,
        found.upstream,
        found.upstream_version,
    )


async def test_it_lasts_twelve_hours_at_most() -> None:
    sessions, clock = made()
    sealed = sessions.open(visit(), "2025-06-18")
    clock.advance(LIFE_S)
    await sessions.find(visit(), sealed)
    clock.advance(1)

    with pytest.raises(Unsealed):
        await sessions.find(visit(), sealed)


async def test_an_idle_one_ends_and_its_upstream_is_told() -> None:
    sessions, clock = made()
    sealed = sessions.open(visit(), "2025-06-18", Upstream("up-1", "2025-06-18"))
    used = sessions.open(visit(), "2025-06-18", Upstream("up-2", "2025-06-18"))
    clock.advance(1200)
    await sessions.find(visit(), used)
    clock.advance(1200)

    assert ["up-1"] == [session.upstream for _, session in await sessions.sweep()]
    await sessions.find(visit(), used)
    with pytest.raises(Unsealed):
        await sessions.find(visit(), sealed)


async def test_one_with_an_open_stream_is_not_idle() -> None:
    sessions, clock = made()
    ended: list[str] = []
    sessions.when_ended = ended.append
    open_one = await sessions.find(visit(), sessions.open(visit(), "2025-06-18"))
    idle = await sessions.find(visit(), sessions.open(visit(), "2025-06-18"))
    clock.advance(1200)
    sessions.touch(visit(), open_one)
    sessions.touch(visit("b"), idle)  # another agent's word
    clock.advance(1200)

    assert [idle] == [session for _, session in await sessions.sweep()]
    assert [idle.id] == ended


async def test_an_agent_has_two_hundred_and_another_agent_its_own() -> None:
    sessions, clock = made()
    for _ in range(PER_AGENT):
        sessions.admit(visit())
        sessions.open(visit(), "2025-06-18")

    with pytest.raises(TooMany):
        sessions.admit(visit())
    sessions.admit(visit("b"))
    clock.advance(1801)
    await sessions.sweep()
    sessions.admit(visit())


async def test_a_level_that_comes_too_late_is_not_kept() -> None:
    sessions, _ = made()
    session = await sessions.find(visit(), sessions.open(visit(), "2025-06-18"))
    await sessions.set_level(visit(), session, "info")
    assert 1 == len(sessions._levels)
    await sessions.end(visit(), session)
    await sessions.set_level(visit(), session, "debug")

    assert {} == sessions._levels


async def test_what_another_process_serves_is_not_idle_and_ends_when_nobody_does() -> None:
    two = Two()
    sealed = two.here.open(visit(), "2025-06-18", Upstream("up-1", "2025-06-18"))
    for _ in range(12):  # an hour of requests elsewhere
        two.clock.advance(300)
        await two.there.find(visit(), sealed)
        assert [] == await two.there.sweep() == await two.here.sweep()
    two.here.admit(visit())
    assert {} == two.here._live
    two.clock.advance(1801)
    idle = await two.there.sweep()

    assert ["up-1"] == [session.upstream for _, session in idle]
    for sessions in (two.here, two.there):
        with pytest.raises(Unsealed):
            await sessions.find(visit(), sealed)


async def test_what_ended_in_one_process_is_over_in_all() -> None:
    two = Two()
    sealed = two.here.open(visit(), "2025-06-18")
    other = two.here.open(visit(), "2025-06-18")
    await two.there.end(visit(), await two.there.find(visit(), sealed))

    for sessions in (two.here, two.there):
        with pytest.raises(Unsealed):
            await sessions.find(visit(), sealed)
        await sessions.find(visit(), other)
