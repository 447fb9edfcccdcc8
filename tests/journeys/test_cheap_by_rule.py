"""What a thousand allowed calls may cost, proven by counters and not by a clock.

In proxy and authorizer: no SQL, no new connection, no word with entitlements; one Decide round trip
and one fdatasync before each call goes out.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from behavry.common.v1 import diagnostics_pb2, diagnostics_pb2_grpc
from services.common.rpc.client import dial
from services.common.rpc.peers import Identity
from tests.fakes.children import child
from tests.fakes.stack import Stack, until
from tests.journeys.agents import Agent, register
from tests.perf.load import Order, Pool, Result, Slice
from tests.perf.subjects import targets

WARM_UP = 50
CALLS = 1000
SENT = WARM_UP + CALLS
SLUG = "cheap"
DATA_PATH = ("proxy", "authorizer")
NEVER = (
    "postgres.statements",
    "postgres.connections",
    "entitlements.calls",
    "proxy.upstream.connections",
    "proxy.decide.streams",
    "proxy.decide.timeouts",
    "proxy.control.requests",
)


@pytest.fixture
def echo_url() -> Iterator[str]:
    with child("tests.fakes.mcp_echo") as (_, ready):
        yield ready["url"]


async def test_a_thousand_calls_cost_a_thousand_round_trips_and_syncs_and_nothing_else(
    running_stack: Stack, echo_url: str
) -> None:
    running_stack.raise_limits()
    running_stack.add_http_server(SLUG, echo_url)
    agent = register(running_stack, SLUG, f"{SLUG}:read")
    running_stack.approve(SLUG, agent.token, {"echo": "read"}, category=SLUG)
    until(lambda: ["echo"] == running_stack.listed(SLUG, agent.token), "echo is listed")
    with Pool() as pool:
        assert WARM_UP == len(calls(running_stack, agent.token, pool, WARM_UP).latencies_us)
        before = await read(running_stack)
        result = calls(running_stack, agent.token, pool, CALLS)
        after = await read(running_stack)

    assert ({}, CALLS) == (result.errors, len(result.latencies_us))
    grown = {
        (process, name): after[process].get(name, 0) - before[process].get(name, 0)
        for process in DATA_PATH
        for name in after[process]
    }
    assert {} == {key: n for key, n in grown.items() if key[1] in NEVER and n}
    assert CALLS == grown["proxy", "proxy.allowed"]
    assert CALLS == grown["proxy", "proxy.decide.asks"] == grown["proxy", "proxy.decide.messages"]
    assert CALLS == grown["authorizer", "authorizer.decisions.allow"]
    # One before each forward; the outcome may share the next call's or have one of its own.
    assert CALLS <= grown["proxy", "outbox.syncs"] <= 2 * CALLS
    # Beside intents and outcomes: a mark per thousand records, a heartbeat.
    assert 2 * CALLS <= grown["proxy", "outbox.records"] <= 2 * CALLS + 5
    until(lambda: SENT == count(running_stack, agent, "call.outcome"), "all records are chained")
    assert SENT == count(running_stack, agent, "call.intent")


def count(stack: Stack, agent: Agent, kind: str) -> int:
    return sum(record["type"] == kind for record in stack.chain_of(agent.id))


def calls(stack: Stack, token: str, pool: Pool, count: int) -> Result:
    order = Order(
        targets=targets(stack.mcp_url(SLUG), [token]),
        tool="echo",
        prefix=f"n{count}",
        seconds=60,
        limit=count,
    )
    return Slice(order, pool).run()


async def read(stack: Stack) -> dict[str, dict[str, int]]:
    """All counters of proxy and authorizer, asked as the machine's owner."""
    state = Path(stack.up.state_dir)
    run_dir = json.loads((state / "state.json").read_text())["run_dir"]
    owner = Identity("operator", state / "peers" / "operator.token")
    found = {}
    for process in DATA_PATH:
        async with dial(f"unix:{run_dir}/{process}.sock", owner) as link:
            asked = diagnostics_pb2_grpc.DiagnosticsServiceStub(link.channel).ReadCounters
            answer = await asked(
                diagnostics_pb2.ReadCountersRequest(), timeout=5, metadata=link.metadata()
            )
        found[process] = dict(answer.counters)
    return found
