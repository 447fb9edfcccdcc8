"""AuditWriterService: reads a shipper's stream, looks at each record, hands them to the writer.

Limits and translates; what is stored and when it may be acknowledged is the writer's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

from behavry.audit.v1 import audit_pb2, audit_pb2_grpc
from services.audit.admission import Rejected, check_body, check_part
from services.audit.plan import Item, Part
from services.audit.record import Columns, columns, is_uuid
from services.audit.streams import Stream
from services.audit.writer import MAX_ROWS, Delivery, Writer
from services.common.errors import BehavryError
from services.common.outbox.record import ProfileError, check_profile
from services.common.rpc.peers import peer_of
from services.common.supervisor import Supervisor

OPEN_WITHIN_S: Final = 10.0
_MAX_POSITION: Final = 2**63 - 1
_NO_COLUMNS: Final = Columns("", *[None] * 9)


class AuditWriterServicer(audit_pb2_grpc.AuditWriterServiceServicer):
    def __init__(self, *, writer: Writer, supervisor: Supervisor) -> None:
        self._writer = writer
        self._supervisor = supervisor

    async def Append(  # the contract's name
        self, request_iterator: AsyncIterator[audit_pb2.AppendRequest], context: Any
    ) -> AsyncIterator[audit_pb2.AppendResponse]:
        """Open, answered by the stored position; then batches, each acknowledged in its turn."""
        opening = await _opening(request_iterator)
        stream = await self._writer.open(
            source=opening.source, boot=opening.boot, peer=peer_of(context)
        )
        reader = self._supervisor.once("append", partial(self._read, request_iterator, stream))
        try:
            position = audit_pb2.Position(pos=stream.committed_pos)
            yield audit_pb2.AppendResponse(position=position)
            while (acked := await stream.next_ack()) is not None:
                yield audit_pb2.AppendResponse(ack=audit_pb2.Ack(committed_pos=acked))
        finally:
            reader.cancel()
            await self._writer.detach(stream)

    async def _read(self, requests: AsyncIterator[audit_pb2.AppendRequest], stream: Stream) -> None:
        failure = BehavryError("INTERNAL", "the stream could not be read")
        ended = False
        try:
            async for request in requests:
                await stream.room()
                if request.WhichOneof("message") != "batch":
                    raise BehavryError("INVALID_ARGUMENT", "after Open only batches may come")
                self._take(request.batch, stream)
            ended = True
        except BehavryError as refused:
            failure = refused
        finally:
            if ended:
                stream.close()
            else:
                stream.fail(failure)

    def _take(self, batch: audit_pb2.Batch, stream: Stream) -> None:
        if not batch.entries:
            return
        if len(batch.entries) > MAX_ROWS:
            raise BehavryError("INVALID_ARGUMENT", f"a batch has at most {MAX_ROWS} entries")
        tenants: dict[str, list[Item]] = {}
        for entry in batch.entries:
            _check_entry(entry)
            tenants.setdefault(entry.tenant_id, []).append(look_at(entry, stream))
        begun = stream.begin(last_pos=batch.entries[-1].pos, tenants=len(tenants))
        for tenant, items in tenants.items():
            self._writer.submit(tenant, Delivery(begun, items))


def look_at(entry: audit_pb2.Entry, stream: Stream) -> Item:
    """The record with what filters need, or with the reason for which it cannot be taken."""
    body = entry.body
    try:
        parsed = check_profile(body)
        check_body(
            parsed,
            peer=stream.peer,
            source=stream.source,
            boot=entry.boot,
            n=entry.n,
            tenant=entry.tenant_id,
            chain_name=entry.chain,
            id=entry.event_id,
        )
        for part in entry.parts:
            check_part(parsed, kind=part.kind, salt=part.salt, stored=part.stored, mode=part.mode)
        derived, rejection = columns(parsed), ""
    except ProfileError:
        derived, rejection = _NO_COLUMNS, "profile"
    except Rejected as rejected:
        derived, rejection = _NO_COLUMNS, rejected.reason
    parts = tuple(Part(part.kind, part.salt, part.stored, part.mode) for part in entry.parts)
    return Item(
        stream.peer, stream.source, entry.boot, entry.n, entry.chain, entry.event_id, body,
        derived, parts, rejection,
    )  # fmt: skip


def _check_entry(entry: audit_pb2.Entry) -> None:
    """What no source can mean: the stream ends, because nothing after it can be trusted either."""
    if not is_uuid(entry.tenant_id):
        raise BehavryError("TENANT_UNSET", "a record names no tenant")
    if not is_uuid(entry.boot) or not 0 < entry.n <= _MAX_POSITION or entry.pos > _MAX_POSITION:
        raise BehavryError("INVALID_ARGUMENT", "a record has no usable number")


async def _opening(requests: AsyncIterator[audit_pb2.AppendRequest]) -> audit_pb2.Open:
    try:
        async with asyncio.timeout(OPEN_WITHIN_S):
            first = await anext(requests)
    except (StopAsyncIteration, TimeoutError):
        raise BehavryError("INVALID_ARGUMENT", "the first message is Open") from None
    if first.WhichOneof("message") != "open":
        raise BehavryError("INVALID_ARGUMENT", "the first message is Open")
    if not is_uuid(first.open.source) or not is_uuid(first.open.boot):
        raise BehavryError("INVALID_ARGUMENT", "source and boot are UUIDs")
    return first.open
