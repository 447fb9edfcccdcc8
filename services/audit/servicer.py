"""AuditWriterService and AuditReaderService: limits, translates, hands on.

A shipper's records are looked at here; what is stored, and when that may be acknowledged, is the
writer's business. Lists, decisions and verifications are asked of reading.py and jobs.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Literal

import asyncpg

from behavry.audit.v1 import audit_pb2, audit_pb2_grpc
from services.audit import filters, reading
from services.audit.admission import Rejected, check_body, check_part
from services.audit.chain import is_chain
from services.audit.jobs import Job, Jobs
from services.audit.page_tokens import PageTokens
from services.audit.plan import Item, Part
from services.audit.record import Columns, columns, is_uuid
from services.audit.streams import Stream
from services.audit.writer import MAX_ROWS, Delivery, Writer
from services.common.errors import BehavryError
from services.common.outbox.record import ProfileError, check_profile
from services.common.postgres.pool import Pool
from services.common.rpc.peers import peer_of
from services.common.supervisor import Supervisor

Mode = Literal["standalone", "control_plane", "data_plane"]
OPEN_WITHIN_S: Final = 10.0
PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 500
_MAX_POSITION: Final = 2**63 - 1
_NO_COLUMNS: Final = Columns(*[""] * 10)


class AuditWriterServicer(audit_pb2_grpc.AuditWriterServiceServicer):
    def __init__(self, *, writer: Writer, supervisor: Supervisor, mode: Mode) -> None:
        self._writer = writer
        self._supervisor = supervisor
        self._mode = mode

    async def Append(  # the contract's name
        self, request_iterator: AsyncIterator[audit_pb2.AppendRequest], context: Any
    ) -> AsyncIterator[audit_pb2.AppendResponse]:
        """Open, answered by the stored position; then batches, each acknowledged in its turn."""
        opening = await _opening(request_iterator)
        peer = peer_of(context)
        if self._mode == "control_plane" and peer != "control":
            raise BehavryError("WRONG_PLANE", "events of agents stay in their data plane")
        stream = await self._writer.open(source=opening.source, boot=opening.boot, peer=peer)
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


class AuditReaderServicer(audit_pb2_grpc.AuditReaderServiceServicer):
    def __init__(self, *, pool: Pool, jobs: Jobs, tokens: PageTokens) -> None:
        self._pool = pool
        self._jobs = jobs
        self._tokens = tokens

    async def ListTraces(  # the contract's name
        self, request: audit_pb2.ListTracesRequest, context: Any
    ) -> audit_pb2.ListTracesResponse:
        tenant = _tenant(request.tenant_id)
        filter_ = filters.parse(request.filter)
        before = self._tokens.read(tenant, request.filter, request.page_token)
        size = min(request.page_size or PAGE_SIZE, MAX_PAGE_SIZE)
        async with _database():
            page = await reading.list_events(self._pool, tenant, filter_, before=before, size=size)
            ids = [row["event_id"] for row in page.shown]
            found = await reading.outcomes(self._pool, tenant, ids)
        token = ""
        if page.following:
            token = self._tokens.make(tenant, request.filter, page.following)
        return audit_pb2.ListTracesResponse(
            traces=[_trace(row, found.get(str(row["event_id"]))) for row in page.shown],
            next_page_token=token,
        )

    async def GetTrace(  # the contract's name
        self, request: audit_pb2.GetTraceRequest, context: Any
    ) -> audit_pb2.GetTraceResponse:
        tenant = _tenant(request.tenant_id)
        if not is_uuid(request.id):
            raise BehavryError("NOT_FOUND", "there is no such decision")
        async with _database():
            rows, decided = await reading.trace(self._pool, tenant, request.id)
        if not rows:
            raise BehavryError("NOT_FOUND", "there is no such decision")
        return audit_pb2.GetTraceResponse(events=[_event(row) for row in rows], input=decided)

    async def ListHeads(  # the contract's name
        self, request: audit_pb2.ListHeadsRequest, context: Any
    ) -> audit_pb2.ListHeadsResponse:
        tenant = _tenant(request.tenant_id)
        async with _database(), reading.snapshot(self._pool, tenant) as connection:
            heads = await reading.heads(connection, tenant)
        return audit_pb2.ListHeadsResponse(
            heads=[
                audit_pb2.Head(
                    chain=head.chain,
                    incarnation=head.incarnation,
                    seq=head.seq,
                    event_hash=head.event_hash,
                )
                for head in heads
            ]
        )

    async def StartVerify(  # the contract's name
        self, request: audit_pb2.StartVerifyRequest, context: Any
    ) -> audit_pb2.StartVerifyResponse:
        tenant = _tenant(request.tenant_id)
        if request.chain and not is_chain(request.chain):
            raise BehavryError("INVALID_ARGUMENT", "there is no chain of that name")
        return audit_pb2.StartVerifyResponse(
            verify_id=self._jobs.start(tenant, request.chain or None)
        )

    async def WatchVerify(  # the contract's name
        self, request: audit_pb2.WatchVerifyRequest, context: Any
    ) -> AsyncIterator[audit_pb2.WatchVerifyResponse]:
        job = self._jobs.find(_tenant(request.tenant_id), request.verify_id)
        async for step in job.steps():
            yield _progress(step)


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


@asynccontextmanager
async def _database() -> AsyncIterator[None]:
    """What the driver raises stays inside: callers learn that the store is away."""
    try:
        yield
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError) as failure:
        raise BehavryError(
            "DEPENDENCY_UNAVAILABLE", "the audit store cannot be reached", dependency="postgres"
        ) from failure


def _tenant(text: str) -> str:
    if not is_uuid(text):
        raise BehavryError("TENANT_UNSET", "the request names no tenant")
    return text


def _trace(decision: asyncpg.Record, outcome: asyncpg.Record | None) -> audit_pb2.Trace:
    return audit_pb2.Trace(
        decision=_event(decision), outcome=None if outcome is None else _event(outcome)
    )


def _event(row: asyncpg.Record) -> audit_pb2.Event:
    return audit_pb2.Event(
        tenant_id=str(row["tenant_id"]),
        chain=row["chain"],
        incarnation=row["incarnation"],
        seq=row["seq"],
        committed_at_us=row["committed_at"],
        event_id=str(row["event_id"]),
        body=row["body"],
        previous_hash=row["previous_hash"],
        event_hash=row["event_hash"],
    )


def _progress(job: Job) -> audit_pb2.WatchVerifyResponse:
    message = audit_pb2.WatchVerifyResponse(
        rows_done=job.rows_done, rows_total=job.rows_total, chain=job.chain
    )
    if (verdict := job.verdict) is not None:
        message.done = True
        message.verdict = verdict.verdict
        message.assurance = verdict.assurance
        message.chains = verdict.chains
        message.rows_done = verdict.rows
        message.why = verdict.why
        message.findings.extend(
            audit_pb2.Finding(chain=found.chain, seq=found.seq, code=found.code)
            for found in verdict.findings
        )
    return message
