"""Tasks of tool servers that say how they are (mcp.md 7, 8): to who holds the id, and no other."""

from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson
import pytest

from tests.altered import altered
from tests.fakes import mcp_wire as wire
from tests.fakes.asked import ALL, EVERYTHING, FORM, SECRET
from tests.fakes.authorizer import OTHER_AGENT, TENANT
from tests.fakes.curious_server import Curious
from tests.fakes.gateway import Gateway, modern_request, until
from tests.fakes.listening import Stream, calling
from tests.fakes.people import TASKS, URLS

pytestmark = pytest.mark.asyncio(loop_scope="module")

ABLE: dict[str, Any] = {**EVERYTHING, **TASKS}
WORKING: dict[str, Any] = {"status": "working"}
DONE: dict[str, Any] = {"status": "completed", "result": {"content": [], "isError": False}}
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
CHANGED = "notifications/tasks"


async def begin(proxy: Gateway, **options: Any) -> str:
    params = {"name": "ask", "arguments": {"task": [WORKING]}}
    _, begun = await proxy.modern("tools/call", params, capabilities=ABLE, **options)
    return str(begun["result"]["taskId"])


def listening(
    proxy: Gateway, *tasks: Any, able: Any = ABLE, token: str | None = None, **others: Any
) -> AbstractAsyncContextManager[Stream]:
    wanted = {"taskIds": list(tasks), **others}
    body, sent = modern_request("subscriptions/listen", {"notifications": wanted}, able, {})
    return calling(proxy, {**body, "id": "sub-1"}, sent, token=token)


async def acknowledged(stream: Stream) -> Any:
    return (await stream.next(ACKNOWLEDGED)).message["params"]["notifications"]


async def poll(proxy: Gateway, task: str) -> Any:
    return (await proxy.modern("tasks/get", {"taskId": task}, capabilities=ABLE))[1]["result"]


async def test_its_holder_hears_of_a_task_under_its_own_id_as_a_poll_would(
    proxy: Gateway, server: Curious
) -> None:
    task, other = await begin(proxy), await begin(proxy)
    asks = len(proxy.authorizer.asks)
    async with listening(proxy, task) as stream, listening(proxy, other) as second:
        assert [{"taskIds": [task]}, {"taskIds": [other]}] == [
            await acknowledged(stream), await acknowledged(second),
        ]  # fmt: skip
        await until(lambda: sorted(server.watching()) == ["their-1", "their-2"])
        listens = [one["params"] for one, _ in server.listens]
        (listen,) = [one for one in listens if one["notifications"].get("taskIds") == ["their-1"]]
        server.tell("their-1", {**WORKING, "requestState": "s"})
        server.tell("their-1", DONE)
        told = [(await stream.next()).message for _ in range(2)]
        await until(lambda: server.watching() == ["their-2"])
        seen = second.now()

    assert {CHANGED} == {one["method"] for one in told}
    assert {task} == {one["params"]["taskId"] for one in told}
    first, last = (one["params"] for one in told)
    assert ("working", "completed") == (first["status"], last["status"])
    assert {**DONE, "taskId": task, "ttlMs": 60_000,
            "_meta": {wire.SUBSCRIPTION_META: "sub-1"}} == last  # fmt: skip
    assert "requestState" not in first
    assert [] == seen
    assert TASKS == listen["_meta"][wire.CAPABILITIES_META]
    assert (asks, DONE["result"]) == (len(proxy.authorizer.asks), last["result"])
    changed = proxy.records("call.task")
    assert ["completed"] == [one["status"] for one in changed]


async def test_nobody_hears_of_anothers_task(proxy: Gateway, server: Curious) -> None:
    task = await begin(proxy)
    theirs = proxy.issuer.token(sub=OTHER_AGENT)
    for given, token in [(task, theirs), (altered(task, -3), None), ("their-1", None)]:
        async with listening(proxy, given, token=token) as stream:
            refused = (await stream.next()).message
        assert (-32602, "Task not found") == (refused["error"]["code"], refused["error"]["message"])
    assert [] == server.watching()
    # Beside what may be heard of, it is not acknowledged, and what is said of it reaches nobody.
    async with listening(proxy, task, toolsListChanged=True, token=theirs) as stream:
        assert {"toolsListChanged": True} == await acknowledged(stream)
        await until(lambda: len(server.listens) == 1)
        before = dropped(proxy)
        server.tell("their-1", DONE, everybody=True)
        await until(lambda: dropped(proxy) == before + 1)
        assert [] == stream.now()


def dropped(proxy: Gateway) -> int:
    return proxy.running.counters.read()["proxy.upstream.dropped"]


async def test_without_the_extension_nobody_listens_for_tasks(
    proxy: Gateway, server: Curious
) -> None:
    task = await begin(proxy)
    async with listening(proxy, task, able=EVERYTHING) as stream:
        refused = (await stream.next()).message
        assert (400, -32021) == (stream.status, refused["error"]["code"])
    servers = proxy.authorizer.snapshot["tenants"][TENANT]["servers"]
    ungranted = {**servers["notes"], "grants": {**ALL, "extensions": []}}
    await proxy.authorizer.publish(servers={**servers, "notes": ungranted})
    await proxy.settled()
    try:
        async with listening(proxy, task) as stream:
            taken = (await stream.next()).message
    finally:
        await proxy.authorizer.publish(servers=servers)
        await proxy.settled()
    for odd in ("x", [1], [f"x{number}" for number in range(65)]):
        async with listening(proxy, taskIds=odd) as stream:
            assert -32602 == (await stream.next()).message["error"]["code"]

    assert "Task not found" == taken["error"]["message"]
    assert [] == server.watching()


async def test_an_approvals_task_is_told_of_by_no_stream(proxy: Gateway, server: Curious) -> None:
    proxy.authorizer.rules.verdicts["notes", "ask"] = ("intercept", "look")
    params = {"name": "ask", "arguments": {"task": [WORKING]}}
    _, begun = await proxy.modern("tools/call", params, capabilities=TASKS)
    async with listening(proxy, begun["result"]["taskId"]) as stream:
        refused = (await stream.next()).message

    assert "Task not found" == refused["error"]["message"]


async def test_after_any_change_the_authorizer_is_asked_before_it_is_told(
    proxy: Gateway, server: Curious
) -> None:
    task = await begin(proxy)
    async with listening(proxy, task) as stream:
        await acknowledged(stream)
        await until(lambda: server.watching() == ["their-1"])
        asks = len(proxy.authorizer.asks)
        await proxy.authorizer.publish()
        await proxy.settled()
        server.tell("their-1", {"status": "input_required", "inputRequests": {}})
        allowed = (await stream.next()).message["params"]
        asked = proxy.authorizer.asks[asks:]
        server.tell("their-1", {**WORKING, "statusMessage": "again"})
        cheap = (await stream.next()).message["params"]
        proxy.authorizer.rules.verdicts["notes", ""] = ("deny", "no_polling")
        await proxy.authorizer.publish()
        await proxy.settled()
        server.tell("their-1", DONE)
        await until(lambda: server.watching() == [])
        heard = stream.now()

    assert ["tasks/get"] == [orjson.loads(one.request)["method"] for one in asked]
    assert ("working", task) == (allowed["status"], allowed["taskId"])  # what a poll says now
    assert "again" == cheap["statusMessage"]
    assert [] == heard
    assert "no_polling" == proxy.records("call.denied")[-1]["reason"]


async def test_what_a_task_asks_is_screened_before_it_is_told(
    proxy: Gateway, server: Curious
) -> None:
    task = await begin(proxy)
    async with listening(proxy, task) as stream:
        await acknowledged(stream)
        await until(lambda: server.watching() == ["their-1"])
        for form in (SECRET, FORM):
            asking = {"who": {"method": "elicitation/create", "params": form}}
            server.tell("their-1", {"status": "input_required", "inputRequests": asking})
        for odd in ({"status": "odd"}, {"status": 1}, {}):
            server.tell("their-1", odd)
        told = (await stream.next()).message["params"]
        server.tell("their-1", DONE)
        last = (await stream.next()).message["params"]

    assert FORM == told["inputRequests"]["who"]["params"]
    assert "completed" == last["status"]


async def test_one_who_shows_no_page_is_not_sent_to_one_by_a_task(
    proxy: Gateway, server: Curious
) -> None:
    """What the listening request declares is what counts."""
    task = await begin(proxy)
    page = {"mode": "url", "message": "?", "url": "https://login.example.com/a"}
    asking = {"go": {"method": "elicitation/create", "params": page}}
    async with listening(proxy, task, able=TASKS) as stream:
        await acknowledged(stream)
        await until(lambda: server.watching() == ["their-1"])
        server.tell("their-1", {"status": "input_required", "inputRequests": asking})
        server.tell("their-1", DONE)
        assert "completed" == (await stream.next()).message["params"]["status"]
    task = await begin(proxy)
    async with listening(proxy, task, able={**URLS, **TASKS}) as stream:
        await acknowledged(stream)
        await until(lambda: server.watching() == ["their-2"])
        server.tell("their-2", {"status": "input_required", "inputRequests": asking})
        told = (await stream.next()).message["params"]
        assert page == told["inputRequests"]["go"]["params"]
