"""A22: many agents on one tool server, all of whose requests have the same ids and tokens. No
answer, no progress and no cancellation reaches anybody but whom it belongs to.

BEHAVRY_CROSSING says how many calls each of the 50 agents makes; 200 by hand.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fakes import mcp_wire as wire
from tests.fakes.authorizer import server_entry
from tests.fakes.children import ROOT
from tests.fakes.gateway import (
    Gateway,
    gateway,
    hosted,
    hosting,
    http_server,
    modern_request,
    until,
)
from tests.fakes.listening import calling
from tests.fakes.talker import Exchange, Talker, talking

AGENTS: Final = 50
CALLS: Final = int(os.environ.get("BEHAVRY_CROSSING", "12"))
#: Each agent's calls at once.
AT_ONCE: Final = 2
SERVERS: Final = ("new", "old", "child")
#: One call in so many is given up.
GIVEN_UP: Final = 6
TOKEN: Final = "token"
#: How long the last news may take: all of it happens in one process, which looks at ten thousand
#: records for seconds.
PATIENCE_S: Final = 60


@dataclass
class Seen:
    """What went wrong, and what was given up."""

    crossed: list[str] = field(default_factory=list)
    given_up: set[str] = field(default_factory=set)
    answers: int = 0
    progress: int = 0


@pytest.mark.parametrize("apart", [False, True], ids=["own child", "hosted child"])
async def test_nothing_reaches_anybody_else(tmp_path: Path, apart: bool) -> None:
    heard: set[str] = set()
    seen = Seen()
    async with crossroads(tmp_path, heard, apart=apart) as proxy:
        async with asyncio.TaskGroup() as group:
            for number in range(AGENTS):
                token = proxy.issuer.token(sub=agent_id(number))
                group.create_task(Agent(proxy, number, seen, token).run())
        child = tmp_path / "given_up"
        with suppress(TimeoutError):
            await until(lambda: heard | lines(child) == seen.given_up, seconds=PATIENCE_S)
        assert seen.given_up == heard | lines(child)
        outcomes = await proxy.recorded("call.outcome", count=AGENTS * CALLS, seconds=PATIENCE_S)

    assert [] == seen.crossed
    assert AGENTS * CALLS == seen.answers + len(seen.given_up)
    assert 2 * AGENTS * CALLS == seen.progress
    assert len(seen.given_up) == sum(one["status"] == "cancelled" for one in outcomes)
    assert AGENTS * CALLS == len(outcomes)


@dataclass
class Agent:
    """Half of them are of each era. Their ids begin anew with each."""

    proxy: Gateway
    number: int
    seen: Seen
    token: str
    sessions: dict[str, dict[str, str]] = field(default_factory=dict)

    async def run(self) -> None:
        if self.number % 2:
            for server in SERVERS:
                opening = self.proxy.sending(OPEN, server=server, token=self.token)
                async with opening as response:
                    session = response.headers["mcp-session-id"]
                made = {"mcp-session-id": session, "mcp-protocol-version": "2025-11-25"}
                self.sessions[server] = made
        places = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for turn in range(CALLS):
                await places.acquire()
                call = group.create_task(self.call(turn, SERVERS[turn % len(SERVERS)]))
                call.add_done_callback(lambda _: places.release())

    async def call(self, turn: int, server: str) -> None:
        hangs = (self.number + turn) % GIVEN_UP == 0
        name = f"{self.number}/{turn}" + ("hang" if hangs else "")
        body, headers = self.request(turn, name, server)
        opened = calling(self.proxy, body, headers, server=server, token=self.token)
        async with opened as stream:
            for _ in range(2):
                self.told(name, (await stream.next()).message)
            if hangs:
                self.seen.given_up.add(name)
                if server not in self.sessions:
                    return  # which closes the stream
                note = {"jsonrpc": "2.0", "method": "notifications/cancelled",
                        "params": {"requestId": turn}}  # fmt: skip
                await self.proxy.post(note, headers=headers, server=server, token=self.token)
            rest = [one.message for one in await stream.rest()]
        self.answered(name, turn, rest)

    def request(self, turn: int, name: str, server: str) -> tuple[Any, dict[str, str]]:
        params: dict[str, Any] = {"name": "talk", "arguments": {"call": name}}
        meta = {"progressToken": TOKEN}
        if server not in self.sessions:
            body, headers = modern_request("tools/call", params, {}, meta)
            return {**body, "id": turn}, headers
        params["_meta"] = meta
        body = {"jsonrpc": "2.0", "id": turn, "method": "tools/call", "params": params}
        return body, self.sessions[server]

    def told(self, name: str, message: Any) -> None:
        assert "method" in message, f"{name} was answered {message}"
        self.seen.progress += 1
        params = message["params"]
        if (params["progressToken"], params["message"]) != (TOKEN, name):
            self.seen.crossed.append(f"{name} was told {message}")

    def answered(self, name: str, turn: int, rest: list[Any]) -> None:
        said = [(one["id"], one["result"]["content"][0]["text"]) for one in rest]
        given_up = name.endswith("hang")
        self.seen.answers += not given_up
        if said != ([] if given_up else [(turn, name)]):
            self.seen.crossed.append(f"{name} was answered {said}")


OPEN: Final = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    },
}


def agent_id(number: int) -> str:
    return f"0199d0d0-0000-7000-8000-{number + 0xA000:012x}"


def lines(file: Path) -> set[str]:
    return set(file.read_text().split()) if file.exists() else set()


@asynccontextmanager
async def crossroads(tmp_path: Path, heard: set[str], *, apart: bool) -> AsyncIterator[Gateway]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    child = {
        "command": sys.executable,
        "args": ["-m", "tests.fakes.shared_child", str(tmp_path / "given_up")],
        "cwd": str(ROOT),
    }
    text = "[shared]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in child.items())
    (state / "stdio.toml").write_text(text)
    (state / "stdio.toml").chmod(0o600)
    async with talking() as new, talking() as old:
        new.eras, old.eras = {"modern"}, {"legacy"}
        servers = {
            "new": http_server(new.url),
            "old": http_server(old.url),
            "child": server_entry(transport="stdio", stdio="shared", share="server"),
        }
        # All of them share one busy process: the authorizer in it gets its time.
        settings = {
            "BEHAVRY_PROXY_DECISION_TIMEOUT_MS": "10000",
            **(hosted(state) if apart else {}),
        }
        async with (
            hosting(state) if apart else nullcontext(),
            gateway(state, servers, **settings) as proxy,
        ):
            entry = {"name": "a", "class": "default", "status": "active", "servers": list(SERVERS)}
            ours = {agent_id(number): entry for number in range(AGENTS)}
            agents = proxy.authorizer.snapshot["tenants"][proxy.tenant]["agents"]
            await proxy.authorizer.publish(agents={**agents, **ours})
            await proxy.settled()
            for server in SERVERS:
                await proxy.offered(server, "talk")
            proxy.forget_records()
            new.serve(lambda exchange: answer(exchange, new, heard))
            old.serve(lambda exchange: answer(exchange, old, heard))
            yield proxy


async def answer(exchange: Exchange, talker: Talker, heard: set[str]) -> None:
    name = exchange.params["arguments"]["call"]
    exchange.progress(1, name)
    await asyncio.sleep(0)
    exchange.progress(2, name)
    if "hang" not in name:
        exchange.answer(wire.content(name))
        return
    if "modern" in talker.eras:
        await exchange.gone.wait()
    else:
        await talker.cancelled(exchange.message["id"], seconds=PATIENCE_S)
        exchange.answer(wire.content("late"))
    heard.add(name)
