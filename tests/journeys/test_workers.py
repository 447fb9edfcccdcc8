"""Several proxies on one port, with one host for their stdio servers: what one process promises,
they promise together, whichever of them is killed.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx2
import mcp_types as types
import msgspec
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from behavry.common.v1 import diagnostics_pb2, diagnostics_pb2_grpc
from services.common.postgres.pool import open_pool, tenant_tx
from services.common.rpc.client import dial
from services.common.rpc.peers import Identity
from services.control import api_keys
from services.control.store import keys
from tests.fakes import moved_in, tool_server
from tests.fakes.children import ROOT
from tests.fakes.installation import still_there
from tests.fakes.neighbour import MARK, TENANT, Crossed
from tests.fakes.stack import Refused, Rest, Stack, running, until
from tests.fakes.valkey import running_valkey
from tests.journeys.agents import (
    LEGACY,
    MODERN,
    Agent,
    decision,
    developer,
    register,
    session,
    text,
)
from tests.journeys.traffic import answered
from tests.journeys.witnesses import AGENTS, compare_all, under_traffic
from tests.promises import promise

pytestmark = pytest.mark.needs_valkey

WORKERS = 2
KILLS = 17 if os.environ.get("BEHAVRY_CHAOS") == "long" else 2
HEALS_WITHIN_S = 45
#: Of an agent's calls, one at a time, so many may meet a worker that is being killed.
FEW = 3
#: Each worker takes some part of that many conversations.
TURNS = 6
Figure = Callable[[str, object], None]


@pytest.fixture(scope="module")
def several() -> Iterator[Stack]:
    with TemporaryDirectory(prefix="bvw-") as scratch, running_valkey() as valkey:
        environment = {
            "BEHAVRY_PROXY_WORKERS": str(WORKERS),
            "BEHAVRY_COUNTER_STORE_URL": valkey.url,
            # A busy machine's authorizer gets its time: a decision that is late is a denial.
            "BEHAVRY_PROXY_DECISION_TIMEOUT_MS": "10000",
        }
        with running(Path(scratch) / "state", env=environment, beside_neighbour=True) as stack:
            yield stack


@pytest.fixture(scope="module")
def agent(several: Stack) -> Agent:
    return developer(several)


def run_dir(stack: Stack) -> Path:
    state = json.loads((Path(stack.up.state_dir) / "state.json").read_text())
    return Path(state["run_dir"])


def workers(stack: Stack) -> list[int]:
    found: list[int] = json.loads((run_dir(stack) / "proxy-workers.json").read_text())["workers"]
    return found


def serving(stack: Stack) -> set[int]:
    """Those of them that take calls."""
    return set(json.loads((run_dir(stack) / "proxy-workers.json").read_text())["ready"])


def calls_of_each(stack: Stack) -> list[int]:
    """How many calls each worker took, by its own count."""

    async def read() -> list[int]:
        owner = Identity("operator", Path(stack.up.state_dir) / "peers" / "operator.token")
        found = []
        for number in range(1, WORKERS + 1):
            async with dial(f"unix:{run_dir(stack)}/proxy-{number}.sock", owner) as link:
                asked = diagnostics_pb2_grpc.DiagnosticsServiceStub(link.channel).ReadCounters
                request = diagnostics_pb2.ReadCountersRequest()
                answer = await asked(request, timeout=5, metadata=link.metadata())
            found.append(answer.counters["proxy.calls"])
        return found

    return asyncio.run(read())


async def told(stack: Stack, agent: Agent, mode: Any) -> tuple[bool, str]:
    """What a stock client sees of an allowed and of a denied call to a stdio server."""
    repository = {"repo_path": f"{stack.up.state_dir}/demo-repo"}
    async with session(stack, agent, "git", mode) as client:
        allowed = await client.call_tool("git_status", repository)
        denied = await client.call_tool("git_reset", repository)
    return bool(allowed.is_error), str(decision(denied)["reason"])


def test_every_process_is_named(several: Stack) -> None:
    proxies = several.up.pids["proxy"]

    assert [several.processes()["proxy"]["pid"], *workers(several)] == proxies
    assert (1 + WORKERS, 1) == (len(proxies), len(several.up.pids["stdio-host"]))


@pytest.mark.parametrize("mode", [MODERN, LEGACY], ids=["modern", "legacy"])
def test_stock_clients_are_served_by_all_of_them(several: Stack, agent: Agent, mode: Any) -> None:
    before = calls_of_each(several)
    seen: set[tuple[bool, str]] = set()

    def all_served() -> bool:
        seen.add(asyncio.run(told(several, agent, mode)))
        return all(now > then for then, now in zip(before, calls_of_each(several), strict=True))

    until(all_served, "the kernel dealt connections to each worker", 60)

    assert {(False, "no_reset")} == seen


@contextmanager
def neighbours_key(stack: Stack) -> Iterator[str]:
    """An API key of the second tenant's admin, while it does something of its own."""
    moved_in.acts(
        Path(stack.up.state_dir), "control.api_keys", "control.agents", "control.agent_roles",
        "control.agent_secrets", "control.agent_sessions", "control.outbox", "audit.events",
        "audit.chain_heads", "audit.source_marks", "audit.parts",
    )  # fmt: skip
    there = moved_in.database_of(Path(stack.up.state_dir))
    key = api_keys.new_key("local")

    async def insert() -> None:
        now = datetime.now(UTC)
        async with (
            open_pool(there.dsn("behavry_control"), max_size=1) as pool,
            tenant_tx(pool, TENANT) as connection,
        ):
            await keys.insert(
                connection, TENANT, key, name=f"{MARK}-key", role="admin", created_by="a test",
                now=now, expires_at=now + timedelta(hours=1),
            )  # fmt: skip

    asyncio.run(insert())
    yield key.text


def refusal(stack: Stack, token: str, method: str, **params: Any) -> str:
    """Of the endpoint that both tenants have under this name."""
    try:
        answer = stack.ask("git", token, method, params)
    except Refused as refused:
        answer = refused.body
    return str(answer.get("error", answer))


@promise("tenancy:others-are-not-found")
def test_two_tenants_with_servers_of_one_name_come_to_their_own(
    several: Stack, agent: Agent
) -> None:
    """The second one's `git` leads nowhere; the first one's tools are behind the same address."""
    repository = {"repo_path": f"{several.up.state_dir}/demo-repo"}
    call = {"name": "git_status", "arguments": repository}
    with neighbours_key(several) as key:
        theirs = Rest(several.up.control_url, key, sees_neighbour=True)
        theirs.put(f"/api/v1/roles/{MARK}-git", {"permissions": ["git:read"]})
        wanted = {"name": f"{MARK}-git", "roles": [f"{MARK}-git"], "class": f"{MARK}-name-1"}
        made = theirs.post("/api/v1/agents", wanted)
        token = several.token(made["client_id"], made["client_secret"])

        def unreachable() -> bool:
            return "upstream_unreachable" in refusal(several, token, "tools/list")

        until(unreachable, "its server is known and does not answer", 10)
        refused = refusal(several, token, "tools/call", **call)
        seen = {
            what: msgspec.json.encode(theirs.get(f"/api/v1/{what}")).decode()
            for what in ("agents", "servers", "traces", "escalations", "policies", "audit/heads")
        }
        with pytest.raises(Crossed):
            Rest(several.up.control_url, key).get("/api/v1/agents")
    ours = several.ask("git", agent.token, "tools/call", call)

    assert not ours["result"].get("isError")
    assert "upstream_unreachable" in refused
    ids = (agent.id, several.tenant())
    assert [] == [what for what, said in seen.items() if any(one in said for one in ids)]
    assert MARK in seen["agents"]


async def elicited(context: Any, params: Any) -> types.ElicitResult:  # the protocol's names
    return types.ElicitResult(action="accept", content={"name": "Ada", "username": "Ada"})


async def answers(stack: Stack, agent: Agent) -> str:
    """What a hosted legacy server hears from whom it asks in the middle of a call."""
    headers = {"authorization": f"Bearer {agent.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(
            streamable_http_client(stack.mcp_url("curious"), http_client=http),
            mode=LEGACY,
            elicitation_callback=elicited,
        ) as client,
    ):
        return text(await client.call_tool("test_elicitation", {"message": "Who?"}))


def test_whoever_is_asked_may_answer_to_another_worker(several: Stack, tmp_path: Path) -> None:
    line = ["-m", "tests.conformance.cell_server", "stdio", "--ledger", str(tmp_path / "ledger")]
    with (Path(several.up.state_dir) / "stdio.toml").open("a") as commands:
        entry = {"command": sys.executable, "args": line, "cwd": str(ROOT)}
        commands.write("\n[curious]\n")
        commands.writelines(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
    server = {
        "slug": "curious",
        "domain": "curious",
        "trust": "trusted",
        "transport": "stdio",
        "stdio": "curious",
        "era": "legacy",
        "grants": {"elicitation_form": True},
    }
    several.rest.post("/api/v1/servers", server)
    asked = register(several, "asked", "curious:read")
    several.approve("curious", asked.token, {"test_elicitation": "read"}, category="curious")
    until(lambda: bool(several.listed("curious", asked.token)), "it is listed")

    said = [asyncio.run(answers(several, asked)) for _ in range(TURNS)]

    assert TURNS == sum("Ada" in one for one in said), said


@pytest.mark.chaos
def test_a_killed_worker_loses_nothing_and_the_others_go_on(
    several: Stack, tmp_path: Path, record_property: Figure
) -> None:
    ledger = tmp_path / "ledger"

    with under_traffic(several, ledger) as flows:
        for number in range(KILLS):
            killed = workers(several)[number % WORKERS]
            os.kill(killed, signal.SIGKILL)
            had = answered(flows)
            until(lambda: answered(flows) > had + AGENTS, "others answer", HEALS_WITHIN_S)  # noqa: B023  # called at once
            until(
                lambda: len(serving(several) - {killed}) == WORKERS,  # noqa: B023  # as above
                "another one serves",
                HEALS_WITHIN_S,
            )

    lost = sum(len(one.nothing) for one in flows)
    assert lost <= KILLS * AGENTS * FEW
    for figure, value in compare_all(several, flows, ledger).items():
        record_property(figure, value)


def test_a_killed_host_is_started_again_and_serves(several: Stack, agent: Agent) -> None:
    before = several.pids()["stdio-host"]
    os.kill(before, signal.SIGKILL)

    def healed() -> bool:
        now = several.processes()["stdio-host"]
        return bool(now["ready"]) and now["pid"] != before

    until(healed, "another host runs", HEALS_WITHIN_S)

    assert (False, "no_reset") == asyncio.run(told(several, agent, MODERN))


def test_requests_end_before_the_workers_do(several: Stack, tmp_path: Path) -> None:
    with tool_server.serving(tmp_path) as tools:
        assert tools.url is not None
        several.add_http_server("slow", tools.url)
        caller = register(several, "patient", "slow:read")
        several.approve("slow", caller.token, {"read_note": "read"}, category="slow")
        until(lambda: ["read_note"] == several.listed("slow", caller.token), "it is listed")
        tools.behave(stream=True, held=True)
        answers: list[dict[str, Any]] = []
        params = {"name": "read_note", "arguments": {"call": "c1"}}

        def call() -> None:
            answers.append(several.ask("slow", caller.token, "tools/call", params))

        calling = threading.Thread(target=call)
        calling.start()
        until(lambda: "c1" in tools.ran(), "it runs")
        supervisor, before = several.pids()["proxy"], workers(several)
        os.kill(supervisor, signal.SIGTERM)
        until(lambda: not listens(several), "nobody listens any more")
        tools.behave(stream=True)
        calling.join()

        assert not still_there({supervisor, *before}, within_s=20)
        assert answers[0]["result"]["isError"] is False
        until(lambda: bool(several.processes()["proxy"]["ready"]), "up starts them again", 45)


def listens(stack: Stack) -> bool:
    where = urlsplit(stack.up.proxy_url)
    try:
        socket.create_connection((str(where.hostname), where.port or 0), timeout=5).close()
    except OSError:
        return False
    return True
