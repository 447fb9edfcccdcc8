"""Whoever is responsible can stop anything within a second: kill switches of each scope, an agent's
suspension through the death of the authorizer, the local file, restricted mode, rate limits.

Under traffic through all five real processes. What ran is the tool server's own word: its ledger
says when, on the clock that the whole machine shares.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.fakes.children import ROOT, child
from tests.fakes.mcp_echo import read_times
from tests.fakes.stack import LIMITS, Stack, running, until
from tests.journeys.agents import META, Agent, register
from tests.journeys.people import Person, signed_in
from tests.journeys.traffic import Told, flowing
from tests.promises import promise

WITHIN_S = 1.0
WHY = "it calls what it should not"
TOOLS = {"echo": "read", "erase": "delete", "count": "read"}
POLICY = """package behavry.tenant.t{tenant}.{key}

import rego.v1

verdicts contains {{
	"result": "intercept",
	"code": "a_person_decides",
	"reason": "counting waits for a person",
	"obligations": [],
}} if {{
	input.request.server == "{slug}"
	input.request.tool == "count"
}}
"""
Figure = Callable[[str, object], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A stack with two servers that share a ledger, and two agents that may call both."""

    stack: Stack
    ledger: Path
    servers: tuple[str, str]
    agents: list[Agent]
    person: Person


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    scratch = tmp_path_factory.mktemp("stops")
    ledger = scratch / "ledger"
    with (
        child("tests.fakes.mcp_echo", "--ledger", str(ledger)) as (_, server),
        running(scratch / "state", beside_neighbour=True) as stack,
    ):
        stack.raise_limits()
        slugs = (f"a-{uuid4().hex[:8]}", f"b-{uuid4().hex[:8]}")
        for slug in slugs:
            stack.add_http_server(slug, server["url"])
        granted = [f"{slug}:{action}" for slug in slugs for action in ("read", "delete")]
        agents = [register(stack, f"agent-{number}", *granted) for number in range(2)]
        enforce(stack, slugs[0])
        for slug in slugs:
            stack.approve(slug, agents[0].token, TOOLS, slug)
        for slug in slugs:
            for agent in agents:
                until(lambda: len(stack.listed(slug, agent.token)) == len(TOOLS), "all are listed")  # noqa: B023  # called at once
        yield Place(
            stack=stack, ledger=ledger, servers=slugs, agents=agents, person=signed_in(stack)
        )


def enforce(stack: Stack, slug: str) -> None:
    """Counting waits for a person."""
    key = f"waits_{slug.replace('-', '_')}"
    body = {
        "key": key,
        "source": POLICY.format(tenant=stack.tenant().replace("-", ""), key=key, slug=slug),
        "tests": [
            {
                "name": "it waits",
                "input": {"request": {"server": slug, "tool": "count"}},
                "expect": "intercept",
            }
        ],
    }
    saved = stack.rest.post("/api/v1/policies", body)
    once = {"idempotency-key": str(saved["id"])}
    stack.rest.post(f"/api/v1/policies/{saved['id']}:enforce", headers=once)


@contextmanager
def flow(
    place: Place, *slugs: str, agents: list[Agent] | None = None
) -> Iterator[dict[str, list[Told]]]:
    """Both agents calling on each of these servers, each seen to get through."""
    callers = agents or place.agents
    with contextlib.ExitStack() as opened:
        told = {
            slug: opened.enter_context(flowing(place.stack, slug, "echo", callers))
            for slug in slugs
        }
        for one in all_of(told):
            goes_on(one)
        yield told


def all_of(told: dict[str, list[Told]]) -> list[Told]:
    return [one for some in told.values() for one in some]


def goes_on(one: Told, within_s: float = 20) -> None:
    """Calls that begin from now on go through."""
    had = len(one.allowed)
    until(lambda: len(one.allowed) > had + 2, "calls go through", within_s, look_again_s=0.02)


def stands_still(place: Place, one: Told, since: float, reason: str) -> float:
    """Refused for that reason, and nothing of it ran later than a second after. Answers how much
    later the last one ran, in seconds.
    """
    until(lambda: time.monotonic() > since + WITHIN_S, "the deadline is over")
    is_refused(one, reason)
    last = max(at for call, at in read_times(place.ledger) if call in one.arguments) - since

    assert last < WITHIN_S
    return last


def is_refused(one: Told, reason: str) -> None:
    """Calls that are answered from now on are all refused, and for that reason."""
    since, had = time.monotonic(), len(one.refusals)
    until(lambda: len(one.refusals) > had + 5, f"{reason} is told again and again")

    assert {reason} == one.reasons(since)


@contextmanager
def halted(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def renewed(stack: Stack, agent: Agent) -> str:
    """A token of a new session: the suspended agent's are over for good."""
    return stack.token(agent.client_id, agent.secret)


def throw(place: Place, scope: str, subject: str) -> tuple[str, float]:
    """The switch, and when its 2xx was there."""
    body = {"scope": scope, "subject": subject, "reason": WHY}
    thrown = place.stack.rest.post("/api/v1/kill-switch", body)
    return thrown["id"], time.monotonic()


def release(place: Place, switch: str) -> None:
    released = place.person.rest.post(f"/api/v1/kill-switch/{switch}:release", {"reason": WHY})
    assert "off" == released["state"]


def kill_locally(place: Place, *more: str) -> None:
    """The operator's own command, for the whole fleet of this machine."""
    state = place.stack.up.state_dir
    command = [sys.executable, "-m", "services.cli", "kill", "--local", "--state", state]
    options = ["--reason", WHY, "--confirm", "fleet", *more]
    subprocess.run([*command, *options], cwd=ROOT, check=True, timeout=30, capture_output=True)


def call(place: Place, agent: Agent, tool: str, **arguments: str) -> dict[str, Any]:
    """What the answer said of itself; empty where the tool ran."""
    answer = place.stack.ask(
        place.servers[0], agent.token, "tools/call", {"name": tool, "arguments": arguments}
    )
    said: dict[str, Any] = answer["result"].get("_meta", {}).get(META, {})
    assert answer["result"].get("isError") is bool(said), answer
    return said


@promise("stops:at-once")
def test_a_killed_agent_stands_still_and_the_other_goes_on(
    place: Place, record_property: Figure
) -> None:
    slug = place.servers[0]
    with flow(place, slug) as told:
        stopped, other = told[slug]
        switch, since = throw(place, "agent", stopped.agent.id)
        record_property("last_ran_s", stands_still(place, stopped, since, "kill_switch"))
        goes_on(other)
        release(place, switch)
        goes_on(stopped)

    assert set() == other.reasons()


@promise("stops:at-once")
def test_a_killed_server_stands_still_and_the_other_goes_on(
    place: Place, record_property: Figure
) -> None:
    dead, alive = place.servers
    with flow(place, dead, alive) as told:
        switch, since = throw(place, "server", dead)
        for one in told[dead]:
            record_property("last_ran_s", stands_still(place, one, since, "kill_switch"))
        for one in told[alive]:
            goes_on(one)
        release(place, switch)
        for one in told[dead]:
            goes_on(one)

    assert [set(), set()] == [one.reasons() for one in told[alive]]


@promise("stops:at-once")
def test_a_killed_tenant_stands_still_as_a_whole(place: Place, record_property: Figure) -> None:
    with flow(place, *place.servers) as told:
        switch, since = throw(place, "tenant", "")
        for one in all_of(told):
            record_property("last_ran_s", stands_still(place, one, since, "kill_switch"))
        release(place, switch)
        for one in all_of(told):
            goes_on(one)


@promise("stops:without-control")
def test_the_local_file_stops_without_control_and_lets_go_when_it_is_gone(
    place: Place, record_property: Figure
) -> None:
    slug = place.servers[0]
    with flow(place, slug) as told, halted(place.stack.pids()["control"]):
        kill_locally(place)
        since = time.monotonic()
        try:
            for one in told[slug]:
                record_property("last_ran_s", stands_still(place, one, since, "kill_switch"))
        finally:
            kill_locally(place, "--off")
        for one in told[slug]:
            goes_on(one)


@promise("stops:never-forgotten")
def test_a_suspended_agent_stays_so_through_the_death_of_the_authorizer(
    place: Place, record_property: Figure
) -> None:
    """Control is halted as soon as the plane knows, mostly before there is a bundle that says it:
    what the next authorizer knows is what the one before kept.
    """
    slug, stack = place.servers[0], place.stack
    pids = stack.pids()
    condemned = register(stack, "condemned", f"{slug}:read")
    until(lambda: "echo" in stack.listed(slug, condemned.token), "the new agent is let in")
    with flow(place, slug, agents=[condemned, place.agents[0]]) as told:
        stopped, other = told[slug]
        path = f"/api/v1/agents/{stopped.agent.id}"
        stack.rest.post(f"{path}:suspend")
        since = time.monotonic()
        until(lambda: bool(stopped.reasons(since)), "it is told", look_again_s=0.005)
        with halted(pids["control"]):
            os.kill(pids["authorizer"], signal.SIGKILL)
            until(lambda: stack.pids().get("authorizer") not in {None, pids["authorizer"]}, "next")
            goes_on(other, 45)
            record_property("last_ran_s", stands_still(place, stopped, since, "agent_suspended"))
    stack.rest.post(f"{path}:resume")
    again = replace(condemned, token=renewed(stack, condemned))
    until(lambda: "echo" in stack.listed(slug, again.token), "it sees the tool again")
    until(lambda: not call(place, again, "echo", call="resumed", text="t"), "it is let in again")


@promise("stops:at-once")
@pytest.mark.parametrize(
    ("stop", "reason"), [("kill", "kill_switch"), ("suspend", "agent_suspended")]
)
def test_a_call_that_waits_for_a_person_ends_with_the_stop(
    place: Place, record_property: Figure, stop: str, reason: str
) -> None:
    agent = register(place.stack, f"patient-{stop}", f"{place.servers[0]}:read")
    until(lambda: "count" in place.stack.listed(place.servers[0], agent.token), "it is let in")
    with ThreadPoolExecutor(1) as beside:
        held = beside.submit(call, place, agent, "count", call=f"held-{stop}", text="t")
        place.person.waiting(agent.id)
        assert not held.done()
        if stop == "kill":
            _, since = throw(place, "agent", agent.id)
        else:
            place.stack.rest.post(f"/api/v1/agents/{agent.id}:suspend")
            since = time.monotonic()
        said = held.result(10)
        record_property("refused_s", time.monotonic() - since)

    assert ("deny", reason) == (said["verdict"], said["reason"])
    assert time.monotonic() - since < WITHIN_S
    assert f"held-{stop}" not in [made for made, _ in read_times(place.ledger)]


def test_a_restricted_agent_may_only_read_until_it_is_lifted(place: Place) -> None:
    held, free = place.agents
    path = f"/api/v1/agents/{held.id}"
    assert {} == call(place, held, "erase", call="before", note="n")
    ends = datetime.now(UTC) + timedelta(hours=1)
    body = {"profile": "read_only", "until": ends.isoformat(), "reason": WHY}
    place.stack.rest.post(f"{path}:restrict", body)
    until(lambda: bool(call(place, held, "erase", call="poll", note="n")), "it is restricted")
    said = call(place, held, "erase", call="never", note="n")

    assert ("deny", "restricted") == (said["verdict"], said["reason"])
    assert {} == call(place, held, "echo", call="reads", text="t")
    assert {} == call(place, free, "erase", call="other", note="n")
    place.stack.rest.post(f"{path}:unrestrict", {"reason": WHY})
    until(lambda: not call(place, held, "erase", call="after", note="n"), "it is lifted")
    ran = {made for made, _ in read_times(place.ledger)}
    assert {"before", "reads", "other", "after"} <= ran
    assert "never" not in ran


@promise("limits:the-innocent-go-on")
def test_who_calls_too_fast_is_told_when_to_come_back_and_others_are_not(place: Place) -> None:
    rest = place.stack.rest
    held = rest.get(LIMITS)
    fast, slow = place.agents
    slowed = {**held["rates"], "agent_per_minute": 60, "agent_burst": 3}
    rest.put(LIMITS, {**held, "rates": slowed}, headers={"if-match": "*"})
    said: dict[str, Any] = {}

    def refused() -> bool:
        said.update(call(place, fast, "echo", call="fast", text="t"))
        return bool(said)

    until(refused, "the limit is in force", look_again_s=0)
    other = call(place, slow, "echo", call="slow", text="t")
    rest.put(LIMITS, held, headers={"if-match": "*"})

    assert ("deny", "rate_limited", True) == (said["verdict"], said["reason"], said["retryable"])
    assert 0 < said["retry_after_ms"] <= 1000
    assert {} == other
    until(lambda: not call(place, fast, "echo", call="again", text="t"), "the limit is lifted")
