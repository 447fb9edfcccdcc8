"""A human decides: a call waits, a person approves or denies it, and it runs once or not at all.

Through all five real processes, by stock MCP clients that open the approval page themselves and by
ones that do not; the page in a real browser.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import httpx2
import pytest
from mcp import Client
from mcp.client.client import ConnectMode
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ElicitRequestURLParams, ElicitResult

from tests.fakes.browser import Seat, browsing
from tests.fakes.neighbour import Answers
from tests.fakes.stack import Stack, until
from tests.fakes.tool_server import ToolServer
from tests.journeys.agents import LEGACY, MODERN, Agent, decision, register, session, text
from tests.journeys.people import Person, password, signed_in
from tests.promises import promise

TOOL = "write_note"
POLICY = """package behavry.tenant.t{tenant}.{key}

import rego.v1

verdicts contains {{
	"result": "intercept",
	"code": "a_person_decides",
	"reason": "writing waits for a person",
	"obligations": [],
}} if {{
	input.request.server == "{slug}"
	input.request.tool == "write_note"
}}
"""

both_eras = pytest.mark.parametrize("mode", [MODERN, LEGACY], ids=["modern", "legacy"])


class Place:
    """A tool server whose `write_note` waits for a person, and an agent that may call it."""

    def __init__(self, stack: Stack, server: ToolServer) -> None:
        self.stack = stack
        self.server = server
        name = uuid4().hex[:8]
        self.slug = f"notes-{name}"
        assert server.url is not None
        stack.add_http_server(self.slug, server.url)
        self.agent: Agent = register(
            stack, f"writer-{name}", f"{self.slug}:read", f"{self.slug}:write"
        )
        self._enforce(f"waits_{name}")
        # Classified after the policy counts: a bundle that shows the tool holds the policy too.
        stack.approve(self.slug, self.agent.token, {TOOL: "write"}, category=self.slug)
        until(lambda: [TOOL] == stack.listed(self.slug, self.agent.token), "the tool is listed", 5)
        self.person = signed_in(stack)

    def _enforce(self, key: str) -> None:
        tenant = self.stack.tenant().replace("-", "")
        body = {
            "key": key,
            "source": POLICY.format(tenant=tenant, key=key, slug=self.slug),
            "tests": [
                {
                    "name": "it waits",
                    "input": {"request": {"server": self.slug, "tool": TOOL}},
                    "expect": "intercept",
                }
            ],
        }
        saved = self.stack.rest.post("/api/v1/policies", body)
        once = {"idempotency-key": str(saved["id"])}
        self.stack.rest.post(f"/api/v1/policies/{saved['id']}:enforce", headers=once)

    def kinds(self) -> list[str]:
        """Types of the agent's records of calls, oldest first."""
        return [one["type"] for one in reversed(self.stack.chain_of(self.agent.id))]


@pytest.fixture
def place(running_stack: Stack, tool_server: ToolServer) -> Place:
    return Place(running_stack, tool_server)


@asynccontextmanager
async def opening_urls(place: Place, mode: ConnectMode, opened: list[str]) -> AsyncIterator[Client]:
    """A client whose person opens the page, decides nothing there yet, and says so."""

    async def elicited(context: Any, params: Any) -> ElicitResult:  # its name is the protocol's
        assert isinstance(params, ElicitRequestURLParams)
        opened.append(params.url)
        return ElicitResult(action="accept")

    headers = {"authorization": f"Bearer {place.agent.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(
            streamable_http_client(place.stack.mcp_url(place.slug), http_client=http),
            mode=mode,
            elicitation_callback=elicited,
        ) as client,
    ):
        yield cast("Client", Answers(client))


def approved_later(place: Place, verb: str = "approve", **said: Any) -> "asyncio.Task[str]":
    """A person decides as soon as the call is in the inbox; gives the escalation's id."""

    async def decide() -> str:
        found = await asyncio.to_thread(place.person.waiting, place.agent.id)
        await asyncio.to_thread(place.person.decide, found["id"], verb, **said)
        return str(found["id"])

    return asyncio.create_task(decide())


@promise("intercept:a-person-decides")
@both_eras
async def test_a_client_that_opens_urls_gets_its_result_once_a_person_has_approved(
    place: Place, mode: ConnectMode
) -> None:
    opened: list[str] = []
    async with opening_urls(place, mode, opened) as client:
        deciding = approved_later(place)
        answer = await client.call_tool(TOOL, {"call": "c-1"})
        escalation = await deciding

    assert not answer.is_error, text(answer)
    assert ["c-1"] == place.server.ran()
    assert {f"{place.stack.up.control_url.rstrip('/')}/approve/{escalation}"} == set(opened)
    until(lambda: "call.outcome" in place.kinds(), "the outcome is chained")
    intent = next(
        one for one in place.stack.chain_of(place.agent.id) if one["type"] == "call.intent"
    )
    assert escalation == intent["approval"]["escalation"]
    assert "a_person_decides" in intent["approval"]["codes"]
    until(lambda: "consumed" == place.person.state(escalation), "the inbox says that it ran")


@both_eras
async def test_a_denied_call_does_not_run_whatever_the_client_accepted(
    place: Place, mode: ConnectMode
) -> None:
    opened: list[str] = []
    async with opening_urls(place, mode, opened) as client:
        deciding = approved_later(place, "deny")
        answer = await client.call_tool(TOOL, {"call": "c-1"})
        await deciding

    assert answer.is_error
    assert "escalation_denied" == decision(answer)["reason"]
    assert [] == place.server.ran()


@both_eras
async def test_a_client_that_knows_nothing_of_urls_is_held_and_then_served(
    place: Place, mode: ConnectMode
) -> None:
    async with session(place.stack, place.agent, place.slug, mode) as client:
        deciding = approved_later(place)
        answer = await client.call_tool(TOOL, {"call": "c-1"})
        await deciding

    assert not answer.is_error, text(answer)
    assert ["c-1"] == place.server.ran()


async def test_a_call_that_waited_too_long_is_asked_again_and_runs_exactly_once(
    place: Place,
) -> None:
    async with session(place.stack, place.agent, place.slug, MODERN) as client:
        held = await client.call_tool(TOOL, {"call": "c-1"})
        place.person.decide(decision(held)["escalation_id"], "approve")
        served = await client.call_tool(TOOL, {"call": "c-1"})
        again = await client.call_tool(TOOL, {"call": "c-1"})

    assert "approval_pending" == decision(held)["reason"]
    assert not served.is_error, text(served)
    assert "approval_pending" == decision(again)["reason"]  # a new ticket: the first is used up
    assert decision(held)["escalation_id"] != decision(again)["escalation_id"]
    assert ["c-1"] == place.server.ran()


async def test_an_api_key_approves_nothing(place: Place) -> None:
    async with session(place.stack, place.agent, place.slug, MODERN) as client:
        held = await client.call_tool(TOOL, {"call": "c-1"})
    machine = Person(place.stack.rest)

    with pytest.raises(Exception, match="human_required"):
        machine.decide(decision(held)["escalation_id"], "approve")
    assert [] == place.server.ran()


# --- the page ------------------------------------------------------------------------------------


#: The engine makes no difference to the page: one is enough.
one_engine = pytest.mark.parametrize(
    "running_stack",
    [pytest.param("embedded", marks=(pytest.mark.needs_regorus, pytest.mark.needs_browser))],
    indirect=True,
)


async def sign_in(seat: Seat, stack: Stack) -> None:
    await seat.page.get_by_label("User name").fill(stack.up.admin.username)
    await seat.page.get_by_label("Password").fill(password(stack))
    await seat.page.get_by_role("button", name="Sign in").click()


@one_engine
@pytest.mark.parametrize("javascript", [True, False], ids=["script", "no-script"])
async def test_the_page_signs_in_shows_the_call_and_approves_it(
    place: Place,
    javascript: bool,
) -> None:
    async with session(place.stack, place.agent, place.slug, MODERN) as client:
        held = await client.call_tool(TOOL, {"call": "c-1"})
        escalation = decision(held)["escalation_id"]
        url = f"{place.stack.up.control_url.rstrip('/')}/approve/{escalation}"
        async with browsing(javascript=javascript) as seat:
            await seat.page.goto(url)
            await sign_in(seat, place.stack)
            shown = await seat.page.locator("main").inner_text()
            await seat.page.get_by_role("button", name="Approve once").click()
            after = await seat.page.locator("main").inner_text()
        served = await client.call_tool(TOOL, {"call": "c-1"})

    assert TOOL in shown
    assert place.slug in shown
    assert "writing waits for a person" in shown
    assert "pproved" in after
    assert not served.is_error, text(served)
    assert ["c-1"] == place.server.ran()
    assert 1 == len(seat.hosts)


@one_engine
async def test_the_page_denies_with_a_reason(place: Place) -> None:
    async with session(place.stack, place.agent, place.slug, MODERN) as client:
        held = await client.call_tool(TOOL, {"call": "c-1"})
        escalation = decision(held)["escalation_id"]
        url = f"{place.stack.up.control_url.rstrip('/')}/approve/{escalation}"
        async with browsing() as seat:
            await seat.page.goto(url)
            await sign_in(seat, place.stack)
            await seat.page.get_by_label("Reason; it is recorded", exact=True).fill("not today")
            await seat.page.get_by_role("button", name="Deny").click()
            after = await seat.page.locator("main").inner_text()
        refused = await client.call_tool(TOOL, {"call": "c-1"})

    assert "enied" in after
    assert "escalation_denied" == decision(refused)["reason"]
    assert [] == place.server.ran()


@one_engine
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_the_page_is_usable_by_everybody_in_each_of_its_states(
    place: Place,
    dark: bool,
) -> None:
    async with session(place.stack, place.agent, place.slug, MODERN) as client:
        held = await client.call_tool(TOOL, {"call": "c-1"})
    escalation = decision(held)["escalation_id"]
    base = place.stack.up.control_url.rstrip("/")
    findings: dict[str, list[str]] = {}
    async with browsing(dark=dark) as seat:
        await seat.page.goto(f"{base}/approve/{escalation}")
        findings["sign in"] = await seat.grave_findings()
        await seat.page.get_by_label("User name").fill("nobody")
        await seat.page.get_by_label("Password").fill("wrong")
        await seat.page.get_by_role("button", name="Sign in").click()
        findings["wrong password"] = await seat.grave_findings()
        await sign_in(seat, place.stack)
        findings["pending"] = await seat.grave_findings()
        await seat.page.get_by_role("button", name="Approve once").click()
        findings["approved"] = await seat.grave_findings()
        await seat.page.goto(f"{base}/approve/{uuid4()}")
        findings["unknown"] = await seat.grave_findings()

    assert {state: [] for state in findings} == findings
    assert {base.split("/")[2]} == seat.hosts
