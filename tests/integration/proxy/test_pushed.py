"""Calls of legacy agents that wait for a person: the page is pushed on the open answer, and the
user's answer comes as a request of its own (mcp.md 5.2, third row).
"""

import asyncio
from typing import Any

import orjson
import pytest

from tests.altered import altered
from tests.fakes.authorizer import AGENT, TENANT
from tests.fakes.gateway import ISSUER, Gateway, until
from tests.fakes.people import URLS
from tests.fakes.tool_server import ToolServer

META = "com.behavry/decision"
CALL = {
    "jsonrpc": "2.0",
    "id": "call-1",
    "method": "tools/call",
    "params": {"name": "write_note", "arguments": {"call": "c"}, "_meta": {"progressToken": 9}},
}


@pytest.fixture(autouse=True)
def four_eyes(proxy: Gateway) -> None:
    proxy.authorizer.rules.verdicts["notes", "write_note"] = ("intercept", "four_eyes")


async def session(proxy: Gateway, capabilities: Any = URLS, **options: Any) -> dict[str, str]:
    return await proxy.open_session(capabilities, **options)


class Held:
    """A call on its open stream."""

    def __init__(self, proxy: Gateway, headers: dict[str, str]) -> None:
        self.proxy = proxy
        self.headers = headers
        self.pushed: asyncio.Queue[Any] = asyncio.Queue()
        self.task = asyncio.ensure_future(self._read())

    async def _read(self) -> Any:
        async with self.proxy.sending(CALL, headers=self.headers) as response:
            async for line in response.content:
                if line.startswith(b"data: "):
                    message = orjson.loads(line[6:])
                    if message.get("id") == CALL["id"]:
                        return message
                    self.pushed.put_nowait(message)
        raise AssertionError("no answer")

    async def next(self, method: str) -> Any:
        async with asyncio.timeout(5):
            while (message := await self.pushed.get())["method"] != method:
                pass
        return message

    async def answer(self, id: Any, result: Any, **changes: Any) -> int:
        body = {"jsonrpc": "2.0", "id": id, "result": result}
        status, _ = await self.proxy.post(body, **{"headers": self.headers, **changes})
        return status


async def test_the_page_is_pushed_and_only_the_approval_runs_the_call(
    proxy: Gateway, tools: ToolServer
) -> None:
    held = Held(proxy, await session(proxy))
    request = await held.next("elicitation/create")
    (escalation,) = proxy.authorizer.tickets
    accepted = await held.answer(request["id"], {"action": "accept"})
    twice = await held.answer(request["id"], {"action": "accept"})
    asked = len(proxy.authorizer.asks)
    assert ([], 1) == (tools.ran(), asked)
    proxy.authorizer.settle(escalation, "approved")
    answer = await held.task

    assert (202, 202) == (accepted, twice)
    assert ("url", f"{ISSUER}/approve/{escalation}", escalation) == (
        request["params"]["mode"], request["params"]["url"], request["params"]["elicitationId"],
    )  # fmt: skip
    assert {"elicitationId": escalation} == (await held.next("notifications/elicitation/complete"))[
        "params"
    ]
    assert answer["result"]["isError"] is False
    assert ["c"] == tools.ran()


@pytest.mark.parametrize("action", ["decline", "cancel"])
async def test_a_user_who_declines_ends_the_call(
    proxy: Gateway, tools: ToolServer, action: str
) -> None:
    held = Held(proxy, await session(proxy))
    request = await held.next("elicitation/create")
    status = await held.answer(request["id"], {"action": action})
    answer = await held.task

    (escalation,) = proxy.authorizer.tickets
    assert 202 == status
    assert "escalation_cancelled" == answer["result"]["_meta"][META]["reason"]
    assert "cancelled" == proxy.authorizer.tickets[escalation].state
    assert [] == tools.ran()


async def test_an_answer_from_anywhere_else_is_none(proxy: Gateway, tools: ToolServer) -> None:
    agents = proxy.authorizer.snapshot["tenants"][TENANT]["agents"]
    other = "0199d0d0-0000-7000-8000-0000000000a2"
    await proxy.authorizer.publish(agents={**agents, other: agents[AGENT]})
    await proxy.settled()
    foreign = proxy.issuer.token(sub=other)
    theirs = await session(proxy, token=foreign)
    second = await session(proxy)
    held = Held(proxy, await session(proxy))
    request = await held.next("elicitation/create")
    declined = {"action": "decline"}
    flipped = altered(request["id"], -2)
    statuses = [
        await held.answer(request["id"], declined, headers=second),
        await held.answer(request["id"], declined, headers=theirs, token=foreign),
        await held.answer(flipped, declined),
        await held.answer(1, declined),
        await held.answer("b1.20000.AAAA", declined),
    ]
    proxy.authorizer.settle(next(iter(proxy.authorizer.tickets)), "approved")
    answer = await held.task

    assert [400] * 5 == statuses
    assert [] == proxy.authorizer.cancels
    assert answer["result"]["isError"] is False
    assert ["c"] == tools.ran()


async def test_an_error_for_an_answer_leaves_it_to_the_approver(
    proxy: Gateway, tools: ToolServer
) -> None:
    held = Held(proxy, await session(proxy))
    request = await held.next("elicitation/create")
    error = {"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "no"}}
    status, _ = await proxy.post(error, headers=held.headers)
    proxy.authorizer.settle(next(iter(proxy.authorizer.tickets)), "approved")

    assert 202 == status
    assert (await held.task)["result"]["isError"] is False
    assert ["c"] == tools.ran()


SILENT = {
    "declares forms alone": ({"elicitation": {}}, "2025-11-25"),
    "an older version": (URLS, "2025-06-18"),
    "declares nothing": ({}, "2025-11-25"),
}


@pytest.mark.parametrize(("capabilities", "version"), SILENT.values(), ids=SILENT)
@pytest.mark.parametrize("hold", ["0.3"])
async def test_who_cannot_show_a_page_is_asked_nothing(
    proxy: Gateway, tools: ToolServer, capabilities: Any, version: str
) -> None:
    held = Held(proxy, await session(proxy, capabilities, version=version))
    answer = await held.task

    assert ["notifications/progress"] == [
        held.pushed.get_nowait()["method"] for _ in range(held.pushed.qsize())
    ]
    assert "approval_pending" == answer["result"]["_meta"][META]["reason"]
    assert [] == tools.ran()


@pytest.mark.parametrize("hold", ["0.3"])
async def test_who_does_not_answer_is_told_to_call_again(proxy: Gateway, tools: ToolServer) -> None:
    held = Held(proxy, await session(proxy))
    answer = await held.task

    assert "approval_pending" == answer["result"]["_meta"][META]["reason"]
    assert [] == tools.ran()


async def test_a_call_that_its_agent_gave_up_does_not_run(
    proxy: Gateway, tools: ToolServer
) -> None:
    held = Held(proxy, await session(proxy))
    await held.next("elicitation/create")
    for request_id in ("another", CALL["id"]):
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled",
                "params": {"requestId": request_id}}  # fmt: skip
        await proxy.post(note, headers=held.headers)
    await held.task
    await until(lambda: proxy.running.waiting() == 0)
    proxy.authorizer.settle(next(iter(proxy.authorizer.tickets)), "approved")

    assert [] == tools.ran()
