"""What the plane has to tell control arrives, however often the link between them breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from behavry.authorizer.v1 import authorizer_pb2, authorizer_pb2_grpc
from behavry.control.v1 import plane_link_pb2 as wire
from behavry.control.v1 import plane_link_pb2_grpc
from tests.fakes.clock import ManualClock
from tests.fakes.control import SCHEMA_HASH, TENANT, FakeControl, rows
from tests.integration.authorizer.conftest import RunningAuthorizer, Start
from tests.integration.authorizer.test_decide import now_s, until_serial

OTHER_HASH = "sha256:" + "7" * 64


class Desk(plane_link_pb2_grpc.PlaneLinkServiceServicer):
    """Control's end of the link: hears, and hangs up when told to."""

    def __init__(self) -> None:
        self.connected = 0
        self.heard: asyncio.Queue[tuple[int, list[str]]] = asyncio.Queue()
        self.hang_up = asyncio.Event()

    async def Open(
        self, request_iterator: AsyncIterator[wire.OpenRequest], context: Any
    ) -> AsyncIterator[wire.OpenResponse]:
        self.connected += 1
        self.hang_up.clear()
        reading = asyncio.create_task(self._read(self.connected, request_iterator))
        try:
            yield wire.OpenResponse(hello_ack=wire.HelloAck())
            await self.hang_up.wait()
        finally:
            reading.cancel()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    async def _read(self, stream: int, requests: AsyncIterator[wire.OpenRequest]) -> None:
        async for request in requests:
            if request.HasField("tools_seen"):
                names = [tool.name for tool in request.tools_seen.tools]
                self.heard.put_nowait((stream, names))

    async def next(self) -> tuple[int, list[str]]:
        return await asyncio.wait_for(self.heard.get(), 5)


@pytest.fixture
async def desk(state_dir: Path, control: FakeControl) -> AsyncIterator[Desk]:
    assert control.url
    (state_dir / "run").mkdir(exist_ok=True)
    made = Desk()
    async with listening(made, state_dir / "run" / "control.sock"):
        yield made


@asynccontextmanager
async def listening(desk: Desk, socket: Path) -> AsyncIterator[None]:
    server = grpc.aio.server()
    plane_link_pb2_grpc.add_PlaneLinkServiceServicer_to_server(desk, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def report(authorizer: RunningAuthorizer, **tools: str) -> None:
    """As the proxy does: everything that the server offers, name and hash."""
    seen = [
        authorizer_pb2.ReportedTool(name=name, schema_hash=hash_, definition=b"{}")
        for name, hash_ in tools.items()
    ]
    request = authorizer_pb2.ReportToolsRequest(tenant_id=TENANT, server="files", tools=seen)
    stub = authorizer_pb2_grpc.AuthorizerServiceStub(authorizer.proxy.channel)
    await stub.ReportTools(request, timeout=5, metadata=authorizer.proxy.metadata())


async def test_tools_are_told_again_on_every_new_link(
    control: FakeControl, clock: ManualClock, desk: Desk, start: Start
) -> None:
    control.publish(rows(), now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await report(authorizer, read_file=SCHEMA_HASH, new_tool=OTHER_HASH)
        told = [await desk.next()]
        for _ in range(3):
            desk.hang_up.set()
            told.append(await desk.next())
            await report(authorizer, read_file=SCHEMA_HASH, new_tool=OTHER_HASH)
            told.append(await desk.next())

    assert {("new_tool",)} == {tuple(names) for _, names in told}
    assert [1, 2, 2, 3, 3, 4, 4] == [stream for stream, _ in told]


async def test_what_a_server_took_back_is_not_told_again(
    control: FakeControl, clock: ManualClock, desk: Desk, start: Start
) -> None:
    control.publish(rows(), now_s=now_s(clock))
    async with start() as authorizer:
        await until_serial(authorizer, 1)
        await report(authorizer, read_file=OTHER_HASH)
        first = await desk.next()
        await report(authorizer, read_file=SCHEMA_HASH)
        desk.hang_up.set()
        async with asyncio.timeout(5):
            while desk.connected < 2:
                await report(authorizer, read_file=SCHEMA_HASH)
        await report(authorizer, another=OTHER_HASH)
        second = await desk.next()

    assert (["read_file"], ["another"]) == (first[1], second[1])
