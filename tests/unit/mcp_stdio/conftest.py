"""The relay in the test's own process, before a scripted gateway: lines in, lines out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.mcp_stdio.credential import AgentKey, Credential
from services.mcp_stdio.gateway import Gateway, client_session
from services.mcp_stdio.relay import Relay
from tests.fakes.scripted_gateway import PATIENCE_S, ScriptedGateway, scripted

VERSION_META = "io.modelcontextprotocol/protocolVersion"
MODERN, LEGACY = "2026-07-28", "2025-11-25"
PAUSES_S = (0.01, 0.02)


class Client:
    """What a client says and hears."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.words: list[str] = []

    async def lines(self) -> AsyncIterator[bytes | None]:
        while (line := await self._said.get()) != b"":
            yield line

    def line(self, line: bytes | None) -> None:
        self._said.put_nowait(line)

    def end(self) -> None:
        self._said.put_nowait(b"")

    def say(self, method: str, params: dict[str, Any] | None = None, *, id: Any = None) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        if id is not None:
            message["id"] = id
        if params is not None:
            message["params"] = params
        self.line(msgspec.json.encode(message))

    def modern(self, method: str, params: dict[str, Any] | None = None, *, id: Any = 1) -> None:
        self.say(method, {**(params or {}), "_meta": {VERSION_META: MODERN}}, id=id)

    async def hear_raw(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.heard.get()

    async def hear(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(await self.hear_raw())
        return found

    async def open_session(self) -> None:
        self.say("initialize", {"protocolVersion": LEGACY, "capabilities": {}}, id=0)
        await self.hear()
        self.say("notifications/initialized")


@asynccontextmanager
async def relaying(
    gateway: ScriptedGateway,
    credential: Credential | None = None,
    *,
    requester: str = "",
    ca: Path | None = None,
) -> AsyncIterator[Client]:
    """Until the block ends; then the client has nothing more to say."""
    client = Client()
    async with client_session(ca) as http:
        leg = Gateway(
            http,
            gateway.url,
            credential=credential or AgentKey("bhv_ak_a.b"),
            requester=requester,
            say=client.words.append,
            pauses_s=PAUSES_S,
        )

        async def write(line: bytes) -> None:
            client.heard.put_nowait(line)

        relay = Relay(leg, write, client.words.append)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(relay.run(client.lines()))
            yield client
            client.end()


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with scripted() as running:
        yield running
