"""Hands records to the audit service, in order, until it has committed them.

Decides batches, flow control and when to try again. Sends synced records only, exactly as stored;
where to begin is what audit says on connect, never what this process remembers: a restored audit
database asks for everything it lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from behavry.audit.v1 import audit_pb2
from services.common.ids import BootId, SourceId
from services.common.outbox.reader import Shipment
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log

GATHER_S: Final = 0.05
MAX_RECORDS: Final = 1_000
MAX_BYTES: Final = 1024 * 1024
IN_FLIGHT: Final = 8
FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 10.0
ANSWER_S: Final = 30.0
RECLAIM_S: Final = 1.0

_BATCH_TAG: Final = b"\x12"  # AppendRequest.batch, length-delimited


class Shippable(Protocol):
    """An outbox as the shipper sees it. `first_pos` is where its present boot began."""

    @property
    def source(self) -> SourceId: ...
    @property
    def boot(self) -> BootId: ...
    @property
    def first_pos(self) -> int: ...

    async def news(self) -> None: ...
    async def seek(self, pos: int) -> None: ...
    async def read(self, *, max_records: int, max_bytes: int) -> Shipment: ...
    async def committed(self, pos: int) -> None: ...
    async def reclaim(self) -> None: ...


class TransportLost(Exception):
    """The stream ended or could not be opened; the message is a status, never a payload."""


class AppendStream(Protocol):
    """One `Append` call. Both methods raise TransportLost."""

    async def send(self, request: bytes) -> None: ...
    async def receive(self) -> audit_pb2.AppendResponse: ...


class Transport(Protocol):
    def append(self) -> AbstractAsyncContextManager[AppendStream]:
        """Opens the stream; entering or using it raises TransportLost."""


class Shipper:
    """`run` never returns by itself; cancel it."""

    def __init__(
        self,
        outbox: Shippable,
        transport: Transport,
        *,
        log: Log,
        counters: Counters,
        gather_s: float = GATHER_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._outbox = outbox
        self._transport = transport
        self._log = log
        self._shipped = counters.counter("outbox.shipped")
        self._gather_s = gather_s
        self._sleep = sleep
        self._attempts = 0
        #: The last position that this process sent, over all streams.
        self._sent_pos = outbox.first_pos - 1

    async def run(self) -> None:
        while True:
            try:
                async with self._transport.append() as stream:
                    await self._ship(stream)
            except* (TransportLost, TimeoutError, OSError) as lost:
                self._log.warning("outbox_stream_lost", attempt=self._attempts, why=_why(lost))
            longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**self._attempts)
            self._attempts = min(self._attempts + 1, 10)
            await self._sleep(random.uniform(FIRST_DELAY_S, max(FIRST_DELAY_S, longest)))  # noqa: S311  # jitter

    async def _ship(self, stream: AppendStream) -> None:
        """1. say who we are 2. audit says what it has 3. send and take acknowledgements."""
        hello = audit_pb2.Open(source=self._outbox.source, boot=self._outbox.boot)
        await stream.send(audit_pb2.AppendRequest(open=hello).SerializeToString())  # 1
        async with asyncio.timeout(ANSWER_S):
            answer = await stream.receive()
        if answer.WhichOneof("message") != "position":
            raise TransportLost("the first answer was no position")
        pos = answer.position.pos  # 2
        if pos > self._sent_pos:
            # Audit has what this directory does not know to have sent: it was restored from a copy
            # or lost its end. Its positions mean nothing then; the marks sort out duplicates.
            self._log.error("outbox_position_ahead", position=pos, sent=self._sent_pos)
            pos = 0
        await self._outbox.seek(pos)
        self._attempts = 0
        flight = _Flight()
        async with asyncio.TaskGroup() as tasks:  # 3
            tasks.create_task(self._send(stream, flight))
            tasks.create_task(self._receive(stream, flight))
            tasks.create_task(self._reclaim())

    async def _send(self, stream: AppendStream, flight: _Flight) -> None:
        full = False
        while True:
            if not full:
                await self._outbox.news()
                await self._sleep(self._gather_s)  # what comes meanwhile shares the message
            await flight.room()
            shipment = await self._outbox.read(max_records=MAX_RECORDS, max_bytes=MAX_BYTES)
            full = shipment.full
            if shipment.stored:
                await stream.send(encode_batch(shipment.stored))
                flight.add(shipment.last_pos)
                self._sent_pos = max(self._sent_pos, shipment.last_pos)
                self._shipped.value += len(shipment.stored)

    async def _receive(self, stream: AppendStream, flight: _Flight) -> None:
        while True:
            await flight.something()
            async with asyncio.timeout(ANSWER_S):
                answer = await stream.receive()
            if answer.WhichOneof("message") != "ack":
                raise TransportLost("an answer was no acknowledgement")
            pos = min(answer.ack.committed_pos, self._sent_pos)
            flight.take(pos)
            await self._outbox.committed(pos)

    async def _reclaim(self) -> None:
        while True:
            await self._outbox.reclaim()
            await self._sleep(RECLAIM_S)


class _Flight:
    """Batches that were sent and are not acknowledged."""

    def __init__(self) -> None:
        self._last: list[int] = []
        self._changed = asyncio.Event()

    def add(self, last_pos: int) -> None:
        self._last.append(last_pos)
        self._changed.set()

    def take(self, committed_pos: int) -> None:
        self._last = [last for last in self._last if last > committed_pos]
        self._changed.set()

    async def room(self) -> None:
        while len(self._last) >= IN_FLIGHT:
            self._changed.clear()
            await self._changed.wait()

    async def something(self) -> None:
        while not self._last:
            self._changed.clear()
            await self._changed.wait()


def encode_batch(stored: list[bytes]) -> bytes:
    """An AppendRequest with a Batch. StoredRecord and Batch both hold Entry as field 1, so stored
    records in a row are a batch, and nothing is parsed or built again.
    """
    batch = b"".join(stored)
    return _BATCH_TAG + _varint(len(batch)) + batch


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _why(group: BaseExceptionGroup[Exception]) -> str:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return str(first) if isinstance(first, TransportLost) else type(first).__name__
