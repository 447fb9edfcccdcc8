"""What a thousand requests may cost, proven by counters and not by a clock.

In proxy and authorizer: no SQL, no new connection, no word with entitlements. An allowed call: one
Decide round trip and one fdatasync before it goes out. A request that only keeps a connection alive
or tells what there is: not a word with the authorizer.
"""

import http.client
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import pytest

from behavry.common.v1 import diagnostics_pb2, diagnostics_pb2_grpc
from services.common.rpc.client import dial
from services.common.rpc.peers import Identity
from tests.fakes import mcp_wire as wire
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
LIFECYCLE = "lifecycle"
#: What every question to the authorizer counts.
ASKED = (
    "proxy.decide.asks",
    "proxy.decide.messages",
    "authorizer.asks",
)
#: What the doctor, the supervisor and this test itself ask meanwhile, at most.
BESIDE = 10


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


async def test_a_thousand_requests_that_run_nothing_ask_the_authorizer_nothing(
    running_stack: Stack, echo_url: str
) -> None:
    running_stack.raise_limits()
    running_stack.add_http_server(LIFECYCLE, echo_url)
    agent = register(running_stack, LIFECYCLE, f"{LIFECYCLE}:read")
    running_stack.approve(LIFECYCLE, agent.token, {"echo": "read"}, category=LIFECYCLE)
    until(lambda: ["echo"] == running_stack.listed(LIFECYCLE, agent.token), "echo is listed")
    life = Life(running_stack.mcp_url(LIFECYCLE), agent.token)
    life.round()  # fills what is kept
    before = await read(running_stack)
    life.sent = 0
    while life.sent < CALLS:
        life.round()
    after = await read(running_stack)
    life.close()

    grown = {
        (process, name): after[process].get(name, 0) - before[process].get(name, 0)
        for process in DATA_PATH
        for name in after[process]
    }
    assert {} == {key: n for key, n in grown.items() if key[1] in (*NEVER, *ASKED) and n}
    assert grown["authorizer", "rpc.calls"] <= BESIDE


class Expected(NamedTuple):
    """A request of a client's life, and what tells the right answer to it."""

    method: str
    status: int
    told: bytes


MODERN_LIFE = (
    Expected("server/discover", 200, b'"supportedVersions"'),
    Expected("tools/list", 200, b'"echo"'),
)
LEGACY_LIFE = (
    Expected("initialize", 200, b'"protocolVersion"'),
    Expected("notifications/initialized", 202, b""),
    Expected("ping", 200, b'"result":{}'),
    Expected("tools/list", 200, b'"echo"'),
)


class Life:
    """Clients that come, look around and go, in both eras, on one connection."""

    def __init__(self, url: str, token: str) -> None:
        where = urlsplit(url)
        self._path = where.path
        self._http = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
        self._headers = {
            "authorization": f"Bearer {token}",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
        }
        self._ids = itertools.count(1)
        self.sent = 0

    def round(self) -> None:
        for one in MODERN_LIFE:
            self._modern(one)
        session = {"mcp-protocol-version": wire.LEGACY[0]}
        for one in LEGACY_LIFE:
            session |= self._legacy(one, session)
        self._ask("DELETE", None, session)

    def close(self) -> None:
        self._http.close()

    def _modern(self, one: Expected) -> None:
        meta = {
            wire.VERSION_META: wire.MODERN,
            wire.CLIENT_META: {"name": "t", "version": "1"},
            wire.CAPABILITIES_META: {},
        }
        headers = {"mcp-protocol-version": wire.MODERN, "mcp-method": one.method}
        body = {"method": one.method, "params": {"_meta": meta}, "id": next(self._ids)}
        self._expect(one, self._ask("POST", body, headers))

    def _legacy(self, one: Expected, session: dict[str, str]) -> dict[str, str]:
        """The headers that the answer adds to the following requests."""
        body: dict[str, Any] = {"method": one.method}
        if not one.method.startswith("notifications/"):
            body["id"] = next(self._ids)
        if one.method == "initialize":
            client = {"name": "t", "version": "1"}
            body["params"] = {
                "protocolVersion": wire.LEGACY[0], "capabilities": {}, "clientInfo": client,
            }  # fmt: skip
            session = {}
        status, answer, given = self._ask("POST", body, session)
        self._expect(one, (status, answer, given))
        return {"mcp-session-id": given} if given else {}

    def _expect(self, one: Expected, had: tuple[int, bytes, str | None]) -> None:
        assert one.status == had[0], (one.method, had)
        assert one.told in had[1], (one.method, had)

    def _ask(
        self, verb: str, body: dict[str, Any] | None, headers: dict[str, str]
    ) -> tuple[int, bytes, str | None]:
        content = None if body is None else msgspec.json.encode({"jsonrpc": "2.0", **body})
        self._http.request(verb, self._path, content, {**self._headers, **headers})
        answer = self._http.getresponse()
        self.sent += 1
        return answer.status, answer.read(), answer.headers.get("mcp-session-id")


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
