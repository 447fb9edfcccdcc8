"""An audit service as a shipper sees it: takes Append streams, keeps what it is sent, and can be
told to stop answering, drop a stream, or forget.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from behavry.audit.v1 import audit_pb2, audit_pb2_grpc
from services.common.outbox.transport import GrpcTransport
from services.common.rpc.client import dial
from services.common.rpc.peers import Identity


@dataclass(slots=True)
class Source:
    position: int = 0
    boots: list[str] = field(default_factory=list)
    #: Everything that came, repetitions included, in the order it came.
    entries: list[audit_pb2.Entry] = field(default_factory=list)

    def once(self) -> list[audit_pb2.Entry]:
        """What an idempotent store would hold."""
        kept: dict[tuple[str, str, int], audit_pb2.Entry] = {}
        for entry in self.entries:
            kept.setdefault((entry.boot, entry.tenant_id, entry.n), entry)
        return list(kept.values())


class AppendServer(audit_pb2_grpc.AuditWriterServiceServicer):
    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self.batches: list[audit_pb2.Batch] = []
        self.streams = 0
        self.answering = asyncio.Event()
        self.answering.set()
        #: Ends the stream without an acknowledgement at this batch of it, once.
        self.drop_at: int | None = None
        self.unanswered = 0
        self.most_unanswered = 0
        self._changed = asyncio.Event()

    async def Append(
        self, request_iterator: AsyncIterator[audit_pb2.AppendRequest], context: Any
    ) -> AsyncIterator[audit_pb2.AppendResponse]:
        self.streams += 1
        opening = await anext(request_iterator)
        source = self.sources.setdefault(opening.open.source, Source())
        source.boots.append(opening.open.boot)
        self._changed.set()
        yield audit_pb2.AppendResponse(position=audit_pb2.Position(pos=source.position))
        waiting: asyncio.Queue[int] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(request_iterator, source, waiting))
            while True:
                last_pos = await waiting.get()
                if last_pos < 0:
                    reader.cancel()
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "dropped")
                await self.answering.wait()
                self.unanswered -= 1
                source.position = max(source.position, last_pos)
                self._changed.set()
                yield audit_pb2.AppendResponse(ack=audit_pb2.Ack(committed_pos=source.position))

    async def _read(
        self,
        requests: AsyncIterator[audit_pb2.AppendRequest],
        source: Source,
        waiting: asyncio.Queue[int],
    ) -> None:
        count = 0
        async for request in requests:
            self.batches.append(request.batch)
            source.entries += request.batch.entries
            self._changed.set()
            if count == self.drop_at:
                self.drop_at = None
                waiting.put_nowait(-1)
                return
            count += 1
            self.unanswered += 1
            self.most_unanswered = max(self.most_unanswered, self.unanswered)
            waiting.put_nowait(request.batch.entries[-1].pos)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Looked at again after each stream, batch and acknowledgement; at most 5 s."""
        async with asyncio.timeout(5):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def came(self, count: int) -> None:
        """Until that many batches came."""
        await self.until(lambda: len(self.batches) >= count)

    async def holds(self, source: str, count: int) -> None:
        """Until that many entries of a source came."""
        await self.until(lambda: len(self.sources[source].entries) >= count)


@asynccontextmanager
async def serving(servicer: AppendServer, directory: Path) -> AsyncIterator[str]:
    """Answers the address."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 40 << 20)])
    audit_pb2_grpc.add_AuditWriterServiceServicer_to_server(servicer, server)
    address = f"unix:{directory}/a.sock"
    server.add_insecure_port(address)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


@asynccontextmanager
async def transport_to(address: str, directory: Path) -> AsyncIterator[GrpcTransport]:
    token = directory / "proxy.token"
    token.write_text("0" * 64)
    async with dial(address, Identity("proxy", token)) as link:
        yield GrpcTransport(link)
