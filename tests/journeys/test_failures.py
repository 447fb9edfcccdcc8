"""What is lost, and what becomes of calls: the store of escalations and counts, the disk behind the
local one, control, the receivers of notices. Each is taken away from five running processes, under
calls of an agent, and given back; nothing runs without its approval, nothing goes unrecorded.

Which test shows which row of the failure table, the promises `failure:*` say (tests/promises.py).
"""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.fakes.children import child
from tests.fakes.mcp_echo import read_ledger
from tests.fakes.receivers import http_receiver
from tests.fakes.stack import Stack, running, until
from tests.fakes.valkey import ValkeyServer, running_valkey
from tests.journeys.agents import Agent, register
from tests.journeys.people import signed_in
from tests.journeys.test_stops import Place, call, enforce, halted, kill_locally
from tests.journeys.test_under_fire import ONE_ENGINE
from tests.promises import promise

#: Calls that wait for a person are held so long before the agent is told to come back.
HOLD_S = "1"
HOOKS = "/api/v1/settings/notifications"


@contextmanager
def laid_out(stack: Stack, ledger: Path) -> Iterator[Place]:
    """A server with a ledger, an agent whose counting waits for a person."""
    with child("tests.fakes.mcp_echo", "--ledger", str(ledger)) as (_, server):
        slug = f"f-{uuid4().hex[:8]}"
        stack.add_http_server(slug, server["url"])
        agent = register(stack, slug, f"{slug}:read")
        enforce(stack, slug)
        stack.approve(slug, agent.token, {"echo": "read", "count": "read"}, slug)
        until(lambda: len(stack.listed(slug, agent.token)) == 2, "both tools are listed")
        yield Place(
            stack=stack,
            ledger=ledger,
            servers=(slug, slug),
            agents=[agent],
            person=signed_in(stack),
        )


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


@pytest.fixture(scope="module")
def shared(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An installation that keeps its escalations and counts in a Valkey."""
    environment = {"BEHAVRY_COUNTER_STORE_URL": valkey.url, "BEHAVRY_HOLD_SECONDS": HOLD_S}
    state = tmp_path_factory.mktemp("failures") / "state"
    with running(state, env=environment, beside_neighbour=True) as stack:
        yield stack


@pytest.fixture
def place(shared: Stack, tmp_path: Path) -> Iterator[Place]:
    with laid_out(shared, tmp_path / "ledger") as made:
        yield made


def asks(place: Place, tool: str, number: str, agent: Agent | None = None) -> str:
    """Why it did not run; empty where it did."""
    said = call(place, agent or place.agents[0], tool, call=number, text="t")
    return str(said.get("reason", ""))


def approved(place: Place, number: str) -> None:
    """Counting is asked, and a person says yes before anybody comes back for it."""
    held = call(place, place.agents[0], "count", call=number, text="t")
    assert "approval_pending" == held["reason"]
    place.person.decide(held["escalation_id"], "approve")


def runs_again(place: Place, number: str) -> None:
    """What was approved runs after all; then it is a new question."""
    until(lambda: asks(place, "count", number) == "", f"{number} runs", 45)

    assert "approval_pending" == asks(place, "count", number)
    assert 1 == read_ledger(place.ledger).count(number)


def traces(place: Place, tool: str) -> list[dict[str, Any]]:
    query = f"agent:{place.agents[0].id} type:call.* tool:{tool}"
    items = place.stack.rest.get("/api/v1/traces", filter=query, page_size=100)["items"]
    return [item for item in items if item["verdict"]]


def is_recorded(place: Place, tool: str, reason: str) -> None:
    """Each refusal by the proxy; the use of the approval, late, by the authorizer."""
    query = f"agent:{place.agents[0].id} type:escalation.consumed"
    until(lambda: place.stack.rest.get("/api/v1/traces", filter=query)["items"], "its use is told")
    until(lambda: reason in {one["reason"] for one in traces(place, tool)}, f"{reason} is recorded")


@pytest.mark.needs_valkey
@promise("failure:escalation-store")
@promise("failure:counter-store")
def test_a_store_that_dies_denies_what_waits_consumes_nothing_and_counts_go_on(
    place: Place, valkey: ValkeyServer
) -> None:
    approved(place, "v-1")
    valkey.kill()
    try:
        refused = [asks(place, "count", number) for number in ("v-1", "v-2", "v-1")]
        others = [asks(place, "echo", f"v-{number}") for number in range(10, 13)]
    finally:
        valkey.started()
    assert ["escalation_unavailable"] * 3 == refused
    assert ["", "", ""] == others
    assert not {"v-1", "v-2"} & set(read_ledger(place.ledger))

    runs_again(place, "v-1")
    is_recorded(place, "count", "escalation_unavailable")
    until(lambda: len(traces(place, "echo")) == len(others), "each call is recorded")
    counted = [
        place.stack.rest.get(f"/api/v1/traces/{one['id']}")["input"]["context"]["counters_state"]
        for one in traces(place, "echo")
    ]
    assert ["local"] * 3 == counted


@contextmanager
def no_room(pid: int) -> Iterator[None]:
    """Every write of that process to any file fails, at the kernel's hands."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("running_stack", ONE_ENGINE, indirect=True)  # tickets know none
@promise("failure:escalation-store")
def test_a_disk_that_takes_no_ticket_denies_what_waits_and_consumes_nothing(
    running_stack: Stack, tmp_path: Path
) -> None:
    with laid_out(running_stack, tmp_path / "ledger") as place:
        approved(place, "d-1")
        with no_room(running_stack.pids()["authorizer"]):
            refused = [asks(place, "count", number) for number in ("d-1", "d-2", "d-1")]
            other = asks(place, "echo", "d-3")
        ran = read_ledger(place.ledger)
        runs_again(place, "d-1")
        is_recorded(place, "count", "escalation_unavailable")

    assert ["escalation_unavailable"] * 3 == refused
    assert ("", ["d-3"]) == (other, ran)


@pytest.mark.needs_valkey
@promise("failure:outbox-disk")
def test_a_disk_that_takes_no_record_lets_nothing_run_until_it_does(place: Place) -> None:
    with no_room(place.stack.pids()["proxy"]):
        refused = [asks(place, "echo", f"o-{number}") for number in range(3)]
    until(lambda: asks(place, "echo", "o-9") == "", "it goes on")

    assert ["audit_unavailable"] * 3 == refused
    assert ["o-9"] == read_ledger(place.ledger)


@pytest.mark.needs_valkey
@promise("failure:control-link")
def test_without_control_calls_go_on_tickets_wait_and_local_stops_hold(place: Place) -> None:
    with halted(place.stack.pids()["control"]):
        others = [asks(place, "echo", f"c-{number}") for number in range(10, 13)]
        held = call(place, place.agents[0], "count", call="c-1", text="t")
        kill_locally(place)
        try:
            until(lambda: asks(place, "echo", "c-2") == "kill_switch", "it is stopped", 5)
        finally:
            kill_locally(place, "--off")
        until(lambda: asks(place, "echo", "c-3") == "", "it goes on", 5)
        still = call(place, place.agents[0], "count", call="c-1", text="t")
    waiting = place.person.waiting(place.agents[0].id)
    place.person.decide(waiting["id"], "approve")

    assert ["", "", ""] == others
    assert ["approval_pending"] * 2 == [held["reason"], still["reason"]]
    assert held["escalation_id"] == still["escalation_id"] == waiting["id"]
    runs_again(place, "c-1")


@pytest.mark.needs_valkey
@promise("failure:notifier")
async def test_who_cannot_be_told_is_told_later_and_people_decide_meanwhile(place: Place) -> None:
    """The receiver is away for three attempts. The call is asked, approved and run in that time."""
    rest = place.stack.rest
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (Path(place.stack.up.state_dir) / "secrets" / "hook").write_text("k" * 32)
    made = rest.post(
        HOOKS,
        {
            "name": place.servers[0],
            "kind": "webhook",
            "settings": {"url": f"http://127.0.0.1:{port}/hook", "key": "secret://hook"},
            "events": ["escalation.opened", "escalation.settled"],
        },
    )

    def deliveries() -> dict[str, dict[str, Any]]:
        items = rest.get(f"{HOOKS}/{made['id']}/deliveries")["items"]
        return {item["event"]: item for item in items}

    def tried(times: int) -> bool:
        return any(one["attempts"] >= times for one in deliveries().values())

    try:
        held = await asyncio.to_thread(call, place, place.agents[0], "count", call="n-1", text="t")
        before = rest.get(f"/api/v1/escalations/{held['escalation_id']}")
        await asyncio.to_thread(until, lambda: tried(2), "it is tried again")
        after = rest.get(f"/api/v1/escalations/{held['escalation_id']}")
        health = rest.get(f"{HOOKS}/health")
        place.person.decide(held["escalation_id"], "approve")
        await asyncio.to_thread(runs_again, place, "n-1")
        async with http_receiver(port=port) as receiver:
            told = await asyncio.wait_for(receiver.next(), 5)
            await asyncio.to_thread(
                until, lambda: deliveries()["escalation.settled"]["state"] == "delivered", "told"
            )
    finally:
        rest.call("DELETE", f"{HOOKS}/{made['id']}", headers={"if-match": "*"})

    assert ("pending", before["decide_by"]) == (after["state"], after["decide_by"])
    assert 1 == health["failing"]
    assert b"escalation." in told.body
