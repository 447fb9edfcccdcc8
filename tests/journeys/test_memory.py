"""What clients that go away leave behind in the proxy: next to no memory, and nothing else.

Ten thousand sessions that nobody ends, from as many agents as that takes, and a thousand callers
that vanish: while a person is waited for, while the tool runs, while they listen. The proxy is a
process of its own; tasks are counted in one that runs here.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
import pytest

from services.common.settings import load
from services.proxy.settings import ProxySettings
from tests.fakes import mcp_wire as wire
from tests.fakes import tool_server
from tests.fakes.authorizer import AGENT, TENANT, FakeAuthorizer, serving, snapshot
from tests.fakes.children import ROOT, child, end
from tests.fakes.gateway import (
    BOTH,
    Issuer,
    environment,
    gateway,
    http_server,
    modern_request,
    until_true,
)
from tests.fakes.ports import free_port
from tests.fakes.tool_server import ToolServer
from tests.perf.procs import family, parents

SESSIONS = 10_000
DISCONNECTS = 1_000
#: An agent may have 200.
AGENTS = 52
AT_ONCE = 25
#: That one agent may have.
STREAMS = 16
GROWTH_KIB = 16 * 1024
SETTLE_S = 30
RUNNING, HELD = "read_note", "write_note"
#: No tool: a stream that ends when its reader does.
LISTENING = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a process has at a moment."""

    descriptors: int
    processes: int


def left(pid: int) -> Left:
    return Left(
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        processes=len(family(pid, parents())),
    )


def rss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@dataclass(frozen=True, slots=True)
class Door:
    """Where a proxy listens, and how clients come that are too rude for a client library."""

    url: str
    tokens: Sequence[str]
    tools: ToolServer

    async def abandon(self, count: int) -> None:
        """Sessions that nobody uses or ends."""
        turns = cycle(self.tokens)
        async with asyncio.TaskGroup() as group:
            for share in shares(count, 8):
                group.create_task(self._open(list(islice(turns, share))))

    async def vanish(self, tool: str, count: int) -> None:
        """Callers leave in the middle of the answer; where none has begun, of the call."""
        ran, turns = len(self.tools.ran()), cycle(self.tokens)
        for share in shares(count, -(-count // AT_ONCE)):
            ran += share
            async with AsyncExitStack() as callers:
                for token in islice(turns, share):
                    reader, writer = await callers.enter_async_context(self._entered())
                    writer.write(self._call(token, tool))
                    if tool != RUNNING:
                        assert b"text/event-stream" in await reader.readuntil(b"\r\n\r\n")
                if tool == RUNNING:
                    await until_true(self._have_run(ran), seconds=SETTLE_S)

    async def look(self) -> None:
        """What there is becomes known."""
        body, headers = modern_request("tools/list", {}, {}, {})
        for slug in ("echo", "notes"):
            async with self._entered() as (reader, writer):
                writer.write(self._request(slug, self.tokens[0], body, headers))
                assert b" 200 OK" in await reader.readuntil(b"\r\n\r\n")

    def _have_run(self, count: int) -> Callable[[], Awaitable[bool]]:
        async def checked() -> bool:
            return len(self.tools.ran()) >= count

        return checked

    async def _open(self, tokens: list[str]) -> None:
        client = {"name": "t", "version": "1"}
        params = {"protocolVersion": wire.LEGACY[0], "capabilities": {}, "clientInfo": client}
        body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        async with self._entered() as (reader, writer):
            for token in tokens:
                writer.write(self._request("echo", token, body, {}))
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                assert "\r\nmcp-session-id: " in head, head
                (length,) = (line[16:] for line in head.splitlines() if "content-length: " in line)
                await reader.readexactly(int(length))

    def _call(self, token: str, tool: str) -> bytes:
        if tool == LISTENING:
            wanted = {"notifications": {"toolsListChanged": True}}
            body, headers = modern_request("subscriptions/listen", wanted, {}, {})
        else:
            body, headers = modern_request("tools/call", {"name": tool, "arguments": {}}, {}, {})
        return self._request("notes", token, body, headers)

    def _request(self, slug: str, token: str, body: Any, headers: dict[str, str]) -> bytes:
        content = json.dumps(body).encode()
        sent = {
            "host": urlsplit(self.url).netloc, "authorization": f"Bearer {token}",
            "content-type": "application/json", "accept": BOTH,
            "content-length": str(len(content)), **headers,
        }  # fmt: skip
        head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        return f"POST /mcp/v1/{slug} HTTP/1.1\r\n{head}\r\n".encode() + content

    @asynccontextmanager
    async def _entered(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        where = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            await writer.wait_closed()


def shares(count: int, parts: int) -> list[int]:
    return [count // parts + (number < count % parts) for number in range(parts)]


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[ToolServer]:
    """Never ends what it begins."""
    with tool_server.serving(tmp_path / "tools") as made:
        made.behave(hang=True)
        yield made


@pytest.fixture
def echo_url() -> Iterator[str]:
    with child("tests.fakes.mcp_echo") as (_, ready):
        yield ready["url"]


def agent(number: int) -> str:
    return str(UUID(int=UUID(AGENT).int + number))


@asynccontextmanager
async def proxy_process(env: dict[str, str], log: Path) -> AsyncIterator[tuple[str, int]]:
    """(url, pid), once it is ready."""
    everything = {**os.environ, **env, "PYTHONPATH": f"{ROOT}:{ROOT}/protos/gen"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.proxy"],
            cwd=ROOT, env=everything, stdout=out, stderr=out,
        )  # fmt: skip
    url = f"http://{env['BEHAVRY_PROXY_HTTP_LISTEN']}"

    async def ready() -> bool:
        try:
            async with aiohttp.ClientSession() as http, http.get(f"{url}/readyz") as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        await until_true(ready, seconds=SETTLE_S)
        yield url, process.pid
    finally:
        end(process)


async def as_before(pid: int, settled: Left) -> None:
    """Waits until the process has no more than this."""

    async def checked() -> bool:
        now = left(pid)
        return now.descriptors <= settled.descriptors and now.processes <= settled.processes

    try:
        await until_true(checked, seconds=SETTLE_S)
    except TimeoutError:
        raise AssertionError(f"{left(pid)} is left, {settled} was there") from None


async def test_what_clients_abandon_costs_next_to_nothing(
    tmp_path: Path, tools: ToolServer, echo_url: str
) -> None:
    assert tools.url is not None
    env = environment(
        tmp_path / "s",
        BEHAVRY_PROXY_HTTP_LISTEN=f"127.0.0.1:{free_port()}",
        BEHAVRY_HOLD_SECONDS="55",
    )
    settings = load(ProxySettings, env)
    issuer = Issuer()
    servers = {"echo": http_server(echo_url, id=AGENT), "notes": http_server(tools.url)}
    fake = FakeAuthorizer(snapshot(servers), issuer.jwks())
    fake.rules.verdicts["notes", HELD] = ("intercept", "four_eyes")
    known = fake.snapshot["tenants"][TENANT]["agents"]
    known.update({agent(number): known[AGENT] for number in range(AGENTS)})
    tokens = [issuer.token(sub=agent(number)) for number in range(AGENTS)]
    async with (
        serving(fake, settings.authorizer_address, settings.peers_dir),
        proxy_process(env, tmp_path / "proxy.log") as (url, pid),
    ):
        door = Door(url, tokens, tools)
        await door.look()
        await fake.approve("notes", RUNNING, HELD)
        settled = left(pid)
        await door.abandon(AGENTS)
        for what in (HELD, RUNNING, LISTENING):
            await door.vanish(what, 2 * AT_ONCE)
        await as_before(pid, settled)
        before = rss_kib(pid)
        await door.abandon(SESSIONS)
        for what, count in zip((HELD, RUNNING, LISTENING), shares(DISCONNECTS, 3), strict=True):
            await door.vanish(what, count)
        await as_before(pid, settled)
        grown = rss_kib(pid) - before

    assert grown <= GROWTH_KIB


async def test_whoever_vanishes_leaves_no_task(tmp_path: Path, tools: ToolServer) -> None:
    assert tools.url is not None
    async with gateway(
        tmp_path / "s", {"notes": http_server(tools.url)}, BEHAVRY_HOLD_SECONDS="55"
    ) as proxy:
        proxy.authorizer.rules.verdicts["notes", HELD] = ("intercept", "four_eyes")
        await proxy.offered("notes", RUNNING, HELD)
        door = Door(proxy.url, [proxy.issuer.token()], tools)
        before = len(asyncio.all_tasks())
        for tool in (HELD, RUNNING, LISTENING):
            await door.vanish(tool, STREAMS)

        async def gone() -> bool:
            return len(asyncio.all_tasks()) <= before

        await until_true(gone, seconds=SETTLE_S)
        ended = [one["status"] for one in await proxy.recorded("call.outcome", count=STREAMS)]

    assert ["cancelled"] * STREAMS == ended
