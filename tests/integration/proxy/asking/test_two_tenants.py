"""Two tenants of one plane, each with a server `notes`, its tool `ask` and an agent of the same id:
nothing that the one was given is worth anything to the other (mcp.md 8, 9).

The second tenant is that of neighbour.py: whatever the first one is answered is looked at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
import pytest
import pytest_asyncio

from tests.fakes import curious_server, neighbour
from tests.fakes import mcp_wire as wire
from tests.fakes.asked import ALL
from tests.fakes.curious_server import Curious
from tests.fakes.gateway import Gateway, gateway, http_server
from tests.fakes.neighbour import MARK
from tests.integration.proxy.asking.test_rounds import ask, retry, rounds
from tests.integration.proxy.asking.test_tasks import WORKING, about, begin, id_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIST: Final = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}


@dataclass(frozen=True, slots=True)
class Side:
    """A tenant's agent with its tenant's server."""

    proxy: Gateway
    server: Curious
    token: str

    async def answered(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        return await call(self.proxy, *arguments, token=self.token)


@dataclass(frozen=True, slots=True)
class Both:
    ours: Side
    theirs: Side

    def seen(self) -> tuple[int, int]:
        return len(self.ours.server.seen), len(self.theirs.server.seen)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Both]:
    async with (
        curious_server.serving() as our_server,
        curious_server.serving() as their_server,
        gateway(
            tmp_path_factory.mktemp("two"), {"notes": http_server(our_server.url, grants=ALL)}
        ) as proxy,
        aiohttp.ClientSession() as http,
    ):
        their_server.tools = (*curious_server.TOOLS, wire.tool(MARK, "Theirs.", {}))
        our_server.resources, their_server.resources = ("one", "two"), (f"{MARK}1", f"{MARK}2")
        (entry,) = proxy.authorizer.snapshot["tenants"][neighbour.TENANT]["servers"].values()
        entry |= {"urls": [their_server.url], "grants": ALL}
        await proxy.authorizer.publish()
        await proxy.settled()
        await proxy.offered("notes", "ask")
        ours = Side(proxy, our_server, proxy.issuer.token())
        token = proxy.issuer.token(tid=neighbour.TENANT)
        theirs = Side(replace(proxy, http=http), their_server, token)
        await theirs.proxy.modern("tools/list", token=token)
        await proxy.authorizer.approve("notes", "ask", MARK)
        await proxy.settled()
        yield Both(ours, theirs)


async def test_each_is_shown_its_own_and_calls_its_own(both: Both) -> None:
    shown, ran = {}, {}
    for name, side in (("ours", both.ours), ("theirs", both.theirs)):
        before = both.seen()
        _, listed = await side.proxy.modern("tools/list", token=side.token)
        shown[name] = [one["name"] for one in listed["result"]["tools"]]
        answer = await side.answered(ask, rounds())
        assert "inputRequests" in answer["result"]
        after = both.seen()
        ran[name] = tuple(now > then for now, then in zip(after, before, strict=True))

    assert {"ours": (True, False), "theirs": (False, True)} == ran
    assert {"ours": ["ask"], "theirs": ["ask", MARK]} == shown


async def _task(side: Side) -> Any:
    return id_of(await side.answered(begin, WORKING))


async def _asked(side: Side) -> Any:
    return await side.answered(ask, rounds())


async def _cursor(side: Side) -> Any:
    _, answer = await side.proxy.modern("resources/list", token=side.token)
    return answer["result"]["nextCursor"]


async def _session(side: Side) -> Any:
    return await side.proxy.open_session(token=side.token)


async def _resume(side: Side, asked: Any) -> Any:
    return await side.answered(retry, asked, rounds())


async def _page(side: Side, cursor: str) -> Any:
    return (await side.proxy.modern("resources/list", {"cursor": cursor}, token=side.token))[1]


async def _within(side: Side, session: dict[str, str]) -> Any:
    status, answer = await side.proxy.post(LIST, headers=session, token=side.token)
    return {"error": {"code": status}} if status != 200 else answer


def _about(method: str, **more: Any) -> Callable[[Side, Any], Awaitable[Any]]:
    async def use(side: Side, task: str) -> Any:
        return await side.answered(about, method, task, more)

    return use


Make = Callable[[Side], Awaitable[Any]]
Use = Callable[[Side, Any], Awaitable[Any]]
#: How it comes to be, what it is for, and how whoever may not use it is answered.
HANDLES: Final[dict[str, tuple[Make, Use, int]]] = {
    "a task that is polled": (_task, _about("tasks/get"), -32602),
    "a task that is answered": (_task, _about("tasks/update", inputResponses={}), -32602),
    "a task that is cancelled": (_task, _about("tasks/cancel"), -32602),
    "the state of a question": (_asked, _resume, -32602),
    "a list's next page": (_cursor, _page, -32602),
    "a session": (_session, _within, 404),
}


@pytest.mark.parametrize("handle", HANDLES)
async def test_what_one_was_given_is_worth_nothing_to_the_other(both: Both, handle: str) -> None:
    make, use, code = HANDLES[handle]
    for holder, stranger in ((both.theirs, both.ours), (both.ours, both.theirs)):
        made = await make(holder)
        before = both.seen()
        refused = await use(stranger, made)
        after = both.seen()
        mine = await use(holder, made)

        assert code == refused["error"]["code"]
        assert before == after
        assert "error" not in mine, mine
