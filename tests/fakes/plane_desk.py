"""Control's end of the plane link, over real gRPC: hears what a plane says, says that it kept it,
sends what a test hands it, and replays that on each new stream until it is acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from behavry.control.v1 import plane_link_pb2 as wire
from behavry.control.v1 import plane_link_pb2_grpc
from tests.fakes import neighbour


@dataclass(slots=True)
class PlaneDesk(plane_link_pb2_grpc.PlaneLinkServiceServicer):
    """`keeps` False: control is too busy to store escalations."""

    keeps: bool = True
    connected: int = 0
    opened: dict[str, wire.EscalationOpened] = field(default_factory=dict)
    #: Per escalation, the newest version that was told.
    changed: dict[str, wire.EscalationChanged] = field(default_factory=dict)
    heard: list[wire.OpenRequest] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    _signals: dict[str, wire.OpenResponse] = field(default_factory=dict)
    _streams: set[asyncio.Queue[wire.OpenResponse | None]] = field(default_factory=set)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def serving(self, socket: Path) -> AsyncIterator[Self]:
        server = grpc.aio.server()
        plane_link_pb2_grpc.add_PlaneLinkServiceServicer_to_server(self, server)
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        try:
            yield self
        finally:
            await server.stop(0)

    async def Open(
        self, request_iterator: AsyncIterator[wire.OpenRequest], context: Any
    ) -> AsyncIterator[wire.OpenResponse]:
        queue: asyncio.Queue[wire.OpenResponse | None] = asyncio.Queue()
        for signal in self._signals.values():
            queue.put_nowait(signal)
        self._streams.add(queue)
        reading = asyncio.create_task(self._read(request_iterator, queue))
        try:
            yield wire.OpenResponse(hello_ack=wire.HelloAck())
            while (message := await queue.get()) is not None:
                yield message
        finally:
            reading.cancel()
            self._streams.discard(queue)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    def send(self, *decisions: wire.EscalationDecision) -> None:
        """Now and on every stream that comes, until it is acknowledged."""
        for decision in decisions:
            self._say(decision.signal_id, wire.OpenResponse(escalation_decision=decision))

    def revoke(self, revocation: wire.Revocation) -> None:
        self._say(revocation.signal_id, wire.OpenResponse(revocation=revocation))

    def notify(self, serial: int) -> None:
        """A newer bundle waits."""
        news = wire.OpenResponse(bundle_notify=wire.BundleNotify(serial=serial))
        for queue in self._streams:
            queue.put_nowait(news)

    def hang_up(self) -> None:
        for queue in self._streams:
            queue.put_nowait(None)

    async def until_opened(self, count: int = 1) -> list[wire.EscalationOpened]:
        await self._until(lambda: len(self.opened) >= count)
        return list(self.opened.values())

    async def until_changed(self, escalation: str, state: str) -> wire.EscalationChanged:
        await self._until(
            lambda: escalation in self.changed and self.changed[escalation].state == state
        )
        return self.changed[escalation]

    async def until_acknowledged(self, *signals: wire.EscalationDecision | wire.Revocation) -> None:
        wanted = {signal.signal_id for signal in signals}
        await self._until(lambda: wanted <= self.acknowledged)

    async def until_connected(self, count: int) -> None:
        await self._until(lambda: self.connected >= count)

    async def _until(self, holds: Any) -> None:
        async with asyncio.timeout(5):
            while not holds():
                self._news.clear()
                await self._news.wait()

    def _say(self, signal_id: str, message: wire.OpenResponse) -> None:
        self._signals[signal_id] = message
        for queue in self._streams:
            queue.put_nowait(message)

    async def _read(
        self,
        requests: AsyncIterator[wire.OpenRequest],
        queue: asyncio.Queue[wire.OpenResponse | None],
    ) -> None:
        async for request in requests:
            neighbour.unseen(request)
            self.heard.append(request)
            match request.WhichOneof("message"):
                case "hello":
                    self.connected += 1
                case "ack":
                    self.acknowledged.add(request.ack.signal_id)
                    self._signals.pop(request.ack.signal_id, None)
                case "escalation_opened" if self.keeps:
                    opened = request.escalation_opened
                    self.opened.setdefault(opened.id, opened)
                    self._keep(queue, opened.id, 0)
                case "escalation_changed" if self.keeps and request.escalation_changed.id in (
                    self.opened
                ):
                    changed = request.escalation_changed
                    known = self.changed.get(changed.id)
                    if known is None or known.version < changed.version:
                        self.changed[changed.id] = changed
                    self._keep(queue, changed.id, changed.version)
                case _:
                    pass
            self._news.set()

    @staticmethod
    def _keep(queue: asyncio.Queue[wire.OpenResponse | None], id: str, version: int) -> None:
        kept = wire.EscalationKept(id=id, version=version)
        queue.put_nowait(wire.OpenResponse(escalation_kept=kept))
