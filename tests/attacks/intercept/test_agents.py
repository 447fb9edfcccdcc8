"""What an agent tries with an approval that it got for something else, or with what it carries.
Each attack has an innocent twin that does what it may.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from services.proxy import approval_tasks
from tests.fakes.asking import ask_until
from tests.fakes.authorizer import AGENT, TENANT
from tests.fakes.gateway import Gateway, until
from tests.fakes.people import TASKS, URLS
from tests.fakes.tool_server import ToolServer

META = "com.behavry/decision"
OTHER = "0199d0d0-0000-7000-8000-0000000000a2"
ACCEPT = {"approval": {"action": "accept"}}


@pytest.fixture(autouse=True)
def four_eyes(proxy: Gateway) -> None:
    proxy.authorizer.rules.verdicts["notes", "write_note"] = ("intercept", "four_eyes")


async def held(proxy: Gateway, name: str = "c", **options: Any) -> asyncio.Task[Any]:
    """A call that waits on its open request."""
    before = proxy.running.waiting()
    call = asyncio.create_task(proxy.call("write_note", {"call": name}, **options))
    await until(lambda: proxy.running.waiting() > before)
    return call


async def shown(proxy: Gateway, params: dict[str, Any], **options: Any) -> Any:
    return (await proxy.modern("tools/call", params, capabilities=URLS, **options))[1]["result"]


async def ended(proxy: Gateway, task: Any) -> Any:
    """What becomes of a task, once it does not wait any more."""

    async def poll() -> Any:
        params = {"taskId": task["result"]["taskId"]}
        return (await proxy.modern("tasks/get", params, capabilities=TASKS))[1]["result"]

    return await ask_until(poll, lambda found: found["status"] != "working")


def reason(answer: Any) -> str:
    return str(answer["result"]["_meta"][META]["reason"])


async def with_another_agent(proxy: Gateway) -> str:
    """The token of a second agent that may do the same."""
    agents = proxy.authorizer.snapshot["tenants"][TENANT]["agents"]
    await proxy.authorizer.publish(agents={**agents, OTHER: agents[AGENT]})
    await proxy.settled()
    return proxy.issuer.token(sub=OTHER)


@asynccontextmanager
async def holding(proxy: Gateway, count: int) -> AsyncIterator[None]:
    """So many calls of the agent's wait at once."""
    async with asyncio.TaskGroup() as group:
        calls = [
            group.create_task(proxy.call("write_note", {"call": f"h{number}"}))
            for number in range(count)
        ]
        await until(lambda: proxy.running.waiting() == count)
        yield
        for call in calls:
            call.cancel()


# What runs is what was approved ---------------------------------------------------------------


async def test_nothing_rides_on_an_approved_call_that_nobody_looked_at(
    proxy: Gateway, tools: ToolServer
) -> None:
    asked = await shown(proxy, {"name": "write_note", "arguments": {"call": "c"}})
    (escalation,) = proxy.authorizer.tickets
    proxy.authorizer.settle(escalation, "approved")
    smuggled = {
        "name": "write_note", "arguments": {"call": "c"}, "argument": {"force": True},
        "requestState": asked["requestState"], "inputResponses": ACCEPT,
    }  # fmt: skip
    _, refused = await proxy.modern("tools/call", smuggled, capabilities=URLS)
    assert "requestState belongs to another request" == refused["error"]["message"]
    assert [] == tools.ran()
    del smuggled["argument"]
    ran = await shown(proxy, smuggled, meta={"example.org/override": "all"})

    assert (False, ["c"]) == (ran["isError"], tools.ran())
    sent = orjson.loads(tools.bodies_seen()[-1])["params"]
    assert {"name", "arguments", "_meta"} == sent.keys() | {"_meta"}
    assert b"override" not in tools.bodies_seen()[-1]

    # The twin: what no approval is about brings what it likes, and is decided with it.
    await proxy.modern("tools/call", {"name": "read_note", "arguments": {"call": "r"}, "x": 1},
                       meta={"example.org/note": 1})  # fmt: skip
    sent = orjson.loads(tools.bodies_seen()[-1])["params"]
    assert (1, 1) == (sent["_meta"]["example.org/note"], sent["x"])
    assert ["call", "_beside", "_meta"] == [
        one["name"] for one in orjson.loads(proxy.authorizer.asks[-1].features)["keys"]
    ]


async def test_an_approval_of_big_arguments_is_for_every_byte_of_them(
    proxy: Gateway, tools: ToolServer
) -> None:
    size = 70_000  # policy is not shown them any more
    arguments = {"call": "c", "text": "a" * size}
    changed = {**arguments, "text": "a" * (size - 1) + "b"}
    asked = await shown(proxy, {"name": "write_note", "arguments": arguments})
    (escalation,) = proxy.authorizer.tickets
    proxy.authorizer.settle(escalation, "approved")
    more = {"requestState": asked["requestState"], "inputResponses": ACCEPT}
    _, refused = await proxy.modern(
        "tools/call", {"name": "write_note", "arguments": changed, **more}, capabilities=URLS
    )
    fresh = await shown(proxy, {"name": "write_note", "arguments": changed})
    assert ("input_required", []) == (fresh["resultType"], tools.ran())
    ran = await shown(proxy, {"name": "write_note", "arguments": arguments, **more})

    assert "requestState belongs to another request" == refused["error"]["message"]
    assert (False, ["c"]) == (ran["isError"], tools.ran())


async def test_the_poll_and_the_repeated_call_share_one_approval(
    proxy: Gateway, tools: ToolServer
) -> None:
    _, task = await proxy.call("write_note", {"call": "c"}, capabilities=TASKS)
    sealed = task["result"]["taskId"]
    (escalation,) = proxy.authorizer.tickets
    proxy.authorizer.settle(escalation, "approved")
    polls = (proxy.modern("tasks/get", {"taskId": sealed}, capabilities=TASKS) for _ in range(5))
    calls = (shown(proxy, {"name": "write_note", "arguments": {"call": "c"}}) for _ in range(5))
    await asyncio.gather(*polls, *calls)

    assert ["c"] == tools.ran()
    # The twin: another approval, another run.
    (pending,) = {one.id for one in proxy.authorizer.tickets.values() if one.state == "pending"}
    proxy.authorizer.settle(pending, "approved")
    await shown(proxy, {"name": "write_note", "arguments": {"call": "c"}})
    assert ["c", "c"] == tools.ran()


# What an agent carries ------------------------------------------------------------------------


async def test_what_another_agent_carries_opens_nothing_and_cancels_nothing(
    proxy: Gateway, tools: ToolServer
) -> None:
    token = await with_another_agent(proxy)
    params = {"name": "write_note", "arguments": {"call": "c"}}
    asked = await shown(proxy, params)
    (escalation,) = proxy.authorizer.tickets
    declined = {"requestState": asked["requestState"],
                "inputResponses": {"approval": {"action": "decline"}}}  # fmt: skip
    _, stolen = await proxy.modern(
        "tools/call", {**params, **declined}, capabilities=URLS, token=token
    )
    _, guessed = await proxy.modern(
        "tools/call", {**params, **declined, "requestState": escalation}, capabilities=URLS,
        token=token,
    )  # fmt: skip

    # A value of somebody else's and none at all read alike: no oracle.
    assert stolen["error"] == guessed["error"]
    assert ("pending", []) == (proxy.authorizer.tickets[escalation].state, proxy.authorizer.cancels)

    proxy.authorizer.settle(escalation, "approved")
    theirs = await shown(proxy, params, token=token)
    assert ("input_required", []) == (theirs["resultType"], tools.ran())
    mine = await shown(
        proxy, {**params, "requestState": asked["requestState"], "inputResponses": ACCEPT}
    )
    assert (False, ["c"]) == (mine["isError"], tools.ran())


async def test_a_value_of_one_kind_is_no_value_of_another(
    proxy: Gateway, tools: ToolServer
) -> None:
    _, task = await proxy.call("write_note", {"call": "c"}, capabilities=TASKS)
    asked = await shown(proxy, {"name": "write_note", "arguments": {"call": "c"}})
    proxy.authorizer.settle(next(iter(proxy.authorizer.tickets)), "approved")
    _, as_state = await proxy.modern(
        "tools/call",
        {"name": "write_note", "arguments": {"call": "c"},
         "requestState": task["result"]["taskId"], "inputResponses": ACCEPT},
        capabilities=URLS,
    )  # fmt: skip
    _, as_task = await proxy.modern(
        "tasks/get", {"taskId": asked["requestState"]}, capabilities=TASKS
    )

    assert (-32602, -32602) == (as_state["error"]["code"], as_task["error"]["code"])
    assert [] == tools.ran()
    own = await ended(proxy, task)
    assert ("completed", ["c"]) == (own["status"], tools.ran())


# What stands still ----------------------------------------------------------------------------


async def test_a_call_released_at_the_moment_of_a_stop_does_not_run(
    proxy: Gateway, tools: ToolServer
) -> None:
    token = await with_another_agent(proxy)
    stopped, goes_on = await held(proxy), await held(proxy, "d", token=token)
    first, second = proxy.authorizer.tickets
    proxy.authorizer.rules.agents[AGENT] = "kill_switch"
    proxy.authorizer.settle(first, "approved")
    proxy.authorizer.revoke(agents=[AGENT])
    proxy.authorizer.settle(second, "approved")
    denied, allowed = (await stopped)[1], (await goes_on)[1]

    assert ("kill_switch", False) == (reason(denied), allowed["result"]["isError"])
    assert ["d"] == tools.ran()


async def test_an_approved_task_of_a_stopped_agent_does_not_run(
    proxy: Gateway, tools: ToolServer
) -> None:
    _, task = await proxy.call("write_note", {"call": "c"}, capabilities=TASKS)
    (escalation,) = proxy.authorizer.tickets
    proxy.authorizer.settle(escalation, "approved")
    await standing(proxy, "suspended")
    _, refused = await proxy.modern(
        "tasks/get", {"taskId": task["result"]["taskId"]}, capabilities=TASKS
    )

    assert ("agent_suspended", []) == (refused["error"]["message"], tools.ran())
    await standing(proxy, "active")
    polled = await ended(proxy, task)
    assert ("completed", ["c"]) == (polled["status"], tools.ran())


async def test_a_tool_server_hears_nothing_for_an_agent_that_was_stopped_while_it_waited(
    proxy: Gateway, tools: ToolServer
) -> None:
    waiting = await held(proxy)
    proxy.authorizer.rules.agents[AGENT] = "kill_switch"
    await standing(proxy, "suspended")
    proxy.forget_catalog()
    heard = len(tools.bodies_seen())
    proxy.authorizer.revoke(agents=[AGENT])

    assert "kill_switch" == reason((await waiting)[1])
    assert heard == len(tools.bodies_seen())


async def standing(proxy: Gateway, status: str) -> None:
    """The agent's state changes by a signal of the link: no newer bundle, no other revision."""
    agents = proxy.authorizer.snapshot["tenants"][TENANT]["agents"]
    await proxy.authorizer.signal(agents={**agents, AGENT: {**agents[AGENT], "status": status}})
    await ask_until(lambda: proxy.modern("tools/list"), lambda told: _let_in(told) == status)


def _let_in(told: tuple[int, Any]) -> str:
    return "active" if "result" in told[1] else "suspended"


# How much one agent can take ------------------------------------------------------------------


async def test_an_agent_that_holds_all_its_places_holds_up_no_other(
    proxy: Gateway, tools: ToolServer
) -> None:
    token = await with_another_agent(proxy)
    async with holding(proxy, 64):
        _, refused = await proxy.call("read_note", {"call": "mine"})
        _, served = await proxy.call("read_note", {"call": "theirs"}, token=token)

    assert "rate_limited" == refused["result"]["_meta"][META]["reason"]
    assert (False, ["theirs"]) == (served["result"]["isError"], tools.ran())


async def test_tasks_keep_no_more_of_an_agents_arguments_than_there_is_room_for(
    proxy: Gateway, tools: ToolServer
) -> None:
    big = {"call": "c", "text": "a" * (approval_tasks.MAX_ARGUMENTS // 2 - 100)}
    tasks = [
        (await proxy.call("write_note", big, capabilities=TASKS))[1]["result"] for _ in range(2)
    ]
    more = asyncio.create_task(proxy.call("write_note", big, capabilities=TASKS))
    await until(lambda: proxy.running.waiting() == 1)  # it is held like any other call
    small = (await proxy.call("write_note", {"call": "s"}, capabilities=TASKS))[1]["result"]
    more.cancel()

    assert ["task", "task", "task"] == [one["resultType"] for one in (*tasks, small)]
    assert [] == tools.ran()
