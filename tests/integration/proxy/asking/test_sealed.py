"""What agents carry while tool servers ask (mcp.md 9; A2): too old, of another policy set, of a
session that has ended.
"""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from services.common.clock import SystemClock
from services.proxy.continuing import Posed, Relayed, TheirTask
from services.proxy.seals import Purpose, Seals
from tests.fakes.asked import EVERYTHING, FORM, YES, Asked, elicit, session
from tests.fakes.authorizer import AGENT, TENANT
from tests.fakes.curious_server import Curious
from tests.fakes.gateway import Gateway
from tests.fakes.people import TASKS

pytestmark = pytest.mark.asyncio(loop_scope="module")

ABLE: dict[str, Any] = {**EVERYTHING, **TASKS}
ARGUMENTS: dict[str, Any] = {
    "rounds": [{"inputRequests": {"who": {"method": "elicitation/create", "params": FORM}}}]
}


def sealed(proxy: Gateway, purpose: Purpose, content: Any, *more: str) -> str:
    """By the proxy's own keys."""
    seals = Seals.load(proxy.settings.seal_keys, SystemClock())
    holder = (TENANT, AGENT, "notes", "default", *more)
    return seals.seal(purpose, holder, msgspec.msgpack.encode(content))


def now_ms() -> int:
    return SystemClock().now_ns() // 1_000_000


async def retried(proxy: Gateway, state: str) -> Any:
    more = {"inputResponses": {"who": YES}, "requestState": state}
    params = {"name": "ask", "arguments": ARGUMENTS, **more}
    return (await proxy.modern("tools/call", params, capabilities=ABLE))[1]


@pytest_asyncio.fixture(loop_scope="module")
async def another_class(proxy: Gateway) -> AsyncIterator[Any]:
    """Puts the agent under another policy set, until the end."""
    agents = proxy.authorizer.snapshot["tenants"][TENANT]["agents"]

    async def change() -> None:
        other = {**agents[AGENT], "class": "restricted"}
        await proxy.authorizer.publish(agents={**agents, AGENT: other})
        await proxy.settled()

    yield change
    await proxy.authorizer.publish(agents=agents)
    await proxy.settled()


@pytest.mark.parametrize("left_ms", [-1, 60_000], ids=["over", "running"])
async def test_a_state_is_good_for_its_time(proxy: Gateway, server: Curious, left_ms: int) -> None:
    params = {"name": "ask", "arguments": ARGUMENTS}
    await proxy.modern("tools/call", params, capabilities=ABLE)
    digest = proxy.records("call.intent")[0]["arguments"]["digest"]
    state = Relayed("tools/call", "ask", digest, 1, None, now_ms() + left_ms)
    answer = await retried(proxy, sealed(proxy, "state", state))

    assert (left_ms < 0) == ("error" in answer)
    assert 2 - (left_ms < 0) == len(server.calls())


@pytest.mark.parametrize("left_ms", [-1, 60_000], ids=["over", "running"])
async def test_a_task_is_good_for_its_time(proxy: Gateway, server: Curious, left_ms: int) -> None:
    server.tasks["their-1"] = [{"status": "working"}]
    task = TheirTask("d", "ask", "h1:x", "their-1", now_ms() + left_ms)
    value = sealed(proxy, "task", task)
    _, answer = await proxy.modern("tasks/get", {"taskId": value}, capabilities=ABLE)

    assert (left_ms < 0) == ("error" in answer)
    assert (left_ms > 0) == ("tasks/get" in [one.get("method") for one in server.seen])


async def test_an_id_that_nobody_asked_under_is_none(proxy: Gateway, legacy: Curious) -> None:
    """Even where our own keys sealed it, for this very session."""
    asked = Asked(proxy, await session(proxy), asks=[elicit()])
    request = await asked.next()
    opened = Seals.load(proxy.settings.seal_keys, SystemClock()).open(
        "session", (TENANT, AGENT, "notes", "default"), asked.headers["mcp-session-id"]
    )
    name = msgspec.msgpack.decode(opened)[0]
    made = sealed(proxy, "request", Posed("nobody", now_ms() + 60_000), name)
    refused = await asked.answer(made)
    await asked.answer(request["id"])

    assert 400 == refused
    assert {"1": {"result": YES}} == await asked.said()


async def test_under_another_policy_set_nothing_opens(
    proxy: Gateway, server: Curious, another_class: Any
) -> None:
    params = {"name": "ask", "arguments": ARGUMENTS}
    _, asked = await proxy.modern("tools/call", params, capabilities=ABLE)
    running = {"name": "ask", "arguments": {"task": [{"status": "working"}]}}
    _, begun = await proxy.modern("tools/call", running, capabilities=ABLE)
    await another_class()
    state = await retried(proxy, asked["result"]["requestState"])
    task = {"taskId": begun["result"]["taskId"]}
    _, polled = await proxy.modern("tasks/get", task, capabilities=ABLE)

    assert (-32602, -32602) == (state["error"]["code"], polled["error"]["code"])
    assert 2 == len(server.calls())
    assert 2 == len(proxy.records("call.rejected"))


async def test_a_session_that_ended_answers_nothing(proxy: Gateway, legacy: Curious) -> None:
    asked = Asked(proxy, await session(proxy), asks=[elicit()])
    request = await asked.next()
    token = {"authorization": f"Bearer {proxy.issuer.token()}"}
    async with proxy.http.delete(proxy.mcp(), headers={**asked.headers, **token}) as ended:
        assert 204 == ended.status

    assert 404 == await asked.answer(request["id"])
    assert {} == legacy.answers
    asked.task.cancel()
