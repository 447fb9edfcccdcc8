"""Calls that wait for a person as tasks (mcp.md 5.2, 8): polls are cheap until something changed,
and the one that finds the approval runs the call once.
"""

import asyncio
from pathlib import Path
from typing import Any, Literal

import pytest
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp_types import CallToolResult, Request, RequestParams, Result

from tests.altered import altered
from tests.fakes import mcp_wire as wire
from tests.fakes.authorizer import AGENT, TENANT
from tests.fakes.gateway import Gateway, gateway, http_server, until
from tests.fakes.people import TASKS, client
from tests.fakes.tool_server import ToolServer

META = "com.behavry/decision"


@pytest.fixture(autouse=True)
def four_eyes(proxy: Gateway) -> None:
    proxy.authorizer.rules.verdicts["notes", "write_note"] = ("intercept", "four_eyes")


async def begin(proxy: Gateway, name: str = "c") -> Any:
    _, answer = await proxy.call("write_note", {"call": name}, capabilities=TASKS)
    return answer["result"]


async def poll(proxy: Gateway, task: Any, method: str = "tasks/get", **options: Any) -> Any:
    declared = {"capabilities": TASKS, **options}
    _, answer = await proxy.modern(method, {"taskId": task["taskId"]}, **declared)
    return answer.get("result", answer)


def escalation_of(task: Any) -> str:
    return str(task["_meta"][META]["escalation_id"])


async def ended(proxy: Gateway, task: Any) -> Any:
    while (state := await poll(proxy, task))["status"] == "working":
        pass
    return state


async def test_the_poll_that_finds_the_approval_runs_the_call_once(
    proxy: Gateway, tools: ToolServer
) -> None:
    task = await begin(proxy)
    asked = len(proxy.authorizer.asks)
    working = [await poll(proxy, task) for _ in range(3)]
    assert asked == len(proxy.authorizer.asks)
    proxy.authorizer.settle(escalation_of(task), "approved")
    assert [] == tools.ran()  # nothing runs unless the agent asks
    done = await ended(proxy, task)
    again = await poll(proxy, task)

    assert ("task", "working", 5000) == (
        task["resultType"], task["status"], task["pollIntervalMs"],
    )  # fmt: skip
    assert 29 * 60_000 < task["ttlMs"] <= 30 * 60_000
    assert {("complete", "working")} == {(one["resultType"], one["status"]) for one in working}
    assert "completed" == done["status"]
    assert (False, "c write_note") == (
        done["result"]["isError"], done["result"]["content"][0]["text"],
    )  # fmt: skip
    assert done == again
    assert ["c"] == tools.ran()
    assert ["call.held", "call.intent", "call.outcome"] == [
        one["type"] for one in proxy.records("call.")
    ]


@pytest.mark.parametrize("state", ["denied", "expired"])
async def test_a_task_that_is_not_approved_ends_without_a_run(
    proxy: Gateway, tools: ToolServer, state: str
) -> None:
    task = await begin(proxy)
    proxy.authorizer.settle(escalation_of(task), state)
    done = await ended(proxy, task)

    assert "completed" == done["status"]
    assert f"escalation_{state}" == done["result"]["_meta"][META]["reason"]
    assert [] == tools.ran()


async def test_a_cancelled_task_is_denied_and_its_escalation_given_up(
    proxy: Gateway, tools: ToolServer
) -> None:
    task = await begin(proxy)
    escalation = escalation_of(task)
    acknowledged = await poll(proxy, task, "tasks/cancel")
    later = await poll(proxy, task)
    await poll(proxy, task, "tasks/cancel")

    assert {"resultType": "complete"} == acknowledged
    assert "cancelled" == later["status"]
    assert "cancelled" == proxy.authorizer.tickets[escalation].state
    assert "escalation_cancelled" == proxy.records("call.denied")[0]["reason"]
    assert [] == tools.ran()


async def test_many_polls_at_once_run_it_once(proxy: Gateway, tools: ToolServer) -> None:
    task = await begin(proxy)
    proxy.authorizer.settle(escalation_of(task), "approved")
    states = await asyncio.gather(*(poll(proxy, task) for _ in range(10)))

    assert {"completed"} == {one["status"] for one in states}
    assert ["c"] == tools.ran()


async def test_nobody_else_knows_the_task(proxy: Gateway, tools: ToolServer) -> None:
    agents = proxy.authorizer.snapshot["tenants"][TENANT]["agents"]
    other = "0199d0d0-0000-7000-8000-0000000000a2"
    mine = {**agents[AGENT], "servers": ["notes", "other"]}
    await proxy.authorizer.publish(agents={**agents, AGENT: mine, other: mine})
    await proxy.settled()
    task = await begin(proxy)
    proxy.authorizer.settle(escalation_of(task), "approved")
    sealed = task["taskId"]
    flipped = {"taskId": altered(sealed, -2)}
    foreign = {"token": proxy.issuer.token(sub=other)}
    refused = [
        await poll(proxy, task, **foreign),
        await poll(proxy, task, "tasks/cancel", **foreign),
        await poll(proxy, task, server="other"),
        await poll(proxy, flipped),
        await poll(proxy, {"taskId": "b1.20000.AAAA"}),
        await poll(proxy, {"taskId": proxy.authorizer.asks[-1].escalation_id}),
    ]
    undeclared = await poll(proxy, task, capabilities={})

    assert {(-32602, "Task not found")} == {
        (one["error"]["code"], one["error"]["message"]) for one in refused
    }
    assert -32021 == undeclared["error"]["code"]
    assert TASKS == undeclared["error"]["data"]["requiredCapabilities"]
    assert [] == tools.ran()
    assert [] == proxy.authorizer.cancels
    assert len(refused) + 1 == len(proxy.records("call.rejected"))


async def test_a_task_ends_with_its_time(proxy: Gateway, tools: ToolServer) -> None:
    proxy.authorizer.rules.decide_ms = -600_000
    task = await begin(proxy)

    assert (-32602, 0) == ((await poll(proxy, task))["error"]["code"], task["ttlMs"])
    assert [] == tools.ran()


async def test_after_a_restart_the_agent_is_told_to_call_again_and_the_approval_serves_it(
    tmp_path: Path, tools: ToolServer
) -> None:
    assert tools.url is not None
    state, servers = tmp_path / "again", {"notes": http_server(tools.url)}
    async with gateway(state, servers) as before:
        await before.offered("notes", "write_note")
        before.authorizer.rules.verdicts["notes", "write_note"] = ("intercept", "four_eyes")
        task = await begin(before)
        tickets = before.authorizer.tickets
    async with gateway(state, servers) as after:
        after.authorizer.tickets = tickets
        await after.offered("notes", "write_note")
        after.authorizer.rules.verdicts["notes", "write_note"] = ("intercept", "four_eyes")
        after.authorizer.settle(escalation_of(task), "approved")
        lost = await poll(after, task)
        assert [] == tools.ran()
        again = await begin(after)

    assert ("completed", True) == (lost["status"], lost["result"]["isError"])
    assert "call_again" == lost["result"]["_meta"][META]["reason"]
    assert (["c"], False) == (tools.ran(), again["isError"])


async def test_what_changed_without_a_stream_is_found_by_the_next_poll(
    proxy: Gateway, tools: ToolServer
) -> None:
    task = await begin(proxy)
    ticket = proxy.authorizer.tickets[escalation_of(task)]
    ticket.state, ticket.uses = "approved", 1  # and nobody was told
    connected = proxy.running.counters.counter("proxy.decide.streams")
    before = connected.value
    proxy.authorizer.hang_up()
    await until(lambda: connected.value > before)
    done = await ended(proxy, task)

    assert "completed" == done["status"]
    assert ["c"] == tools.ran()


async def test_without_an_authorizer_a_task_goes_on_waiting(
    proxy: Gateway, tools: ToolServer
) -> None:
    task = await begin(proxy)
    proxy.authorizer.silent = True
    proxy.authorizer.settle(escalation_of(task), "approved")
    away = await poll(proxy, task)
    proxy.authorizer.silent = False
    proxy.authorizer.tickets[escalation_of(task)].state = "approved"  # its answer was lost
    proxy.authorizer.tickets[escalation_of(task)].uses = 1
    done = await ended(proxy, task)

    assert ("working", "completed") == (away["status"], done["status"])
    assert ["c"] == tools.ran()


async def test_a_result_too_large_to_keep_is_said_to_be(proxy: Gateway, tools: ToolServer) -> None:
    tools.behave(leak="x" * 1_100_000)
    task = await begin(proxy)
    proxy.authorizer.settle(escalation_of(task), "approved")
    done = await ended(proxy, task)

    assert "capacity" == done["result"]["_meta"][META]["reason"]
    assert ["c"] == tools.ran()


async def test_other_methods_do_not_become_tasks(proxy: Gateway) -> None:
    proxy.authorizer.rules.verdicts["notes", ""] = ("intercept", "four_eyes")
    reading = asyncio.ensure_future(
        proxy.modern("resources/read", {"uri": "file:///a"}, capabilities=TASKS)
    )
    await until(lambda: proxy.running.waiting() == 1)
    (escalation,) = proxy.authorizer.tickets
    proxy.authorizer.settle(escalation, "denied")
    _, answer = await reading

    assert 4030 == answer["error"]["code"]


class Handle(Result):
    result_type: Literal["task"] = "task"
    task_id: str


class TaskParams(RequestParams):
    task_id: str


class GetTask(Request[TaskParams, Literal["tasks/get"]]):
    method: Literal["tasks/get"] = "tasks/get"
    params: TaskParams

    name_param = "taskId"


class State(Result):
    status: str
    result: CallToolResult | None = None


class Polling(ClientExtension):
    """The tasks extension as a stock client is given it."""

    identifier = "io.modelcontextprotocol/tasks"

    def __init__(self, meanwhile: Any) -> None:
        self.polls = 0
        self._meanwhile = meanwhile

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Handle, resolve=self._resolve)]

    async def _resolve(self, handle: Handle, context: ClaimContext) -> CallToolResult:
        while True:
            self.polls += 1
            request = GetTask(params=TaskParams(task_id=handle.task_id))
            state = await context.session.send_request(request, State)
            if state.result is not None:
                return state.result
            self._meanwhile()


@pytest.mark.parametrize("state", ["approved", "denied"])
async def test_a_stock_client_polls_to_the_end(
    proxy: Gateway, tools: ToolServer, state: str
) -> None:
    def decide() -> None:
        (escalation,) = proxy.authorizer.tickets
        proxy.authorizer.settle(escalation, state)

    polling = Polling(decide)
    async with client(proxy, wire.MODERN, None, polling) as agent:
        answer = await agent.call_tool("write_note", {"call": "c"})

    assert (state == "denied") == answer.is_error
    assert (["c"] if state == "approved" else []) == tools.ran()
    assert polling.polls >= 2
