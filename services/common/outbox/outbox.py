"""The file outbox of a process: numbers records, makes them durable, keeps them until the audit
store has them.

Decides when a record may be taken (pressure), its number, which calls are open, and when a segment
may go. Bytes on disk are the journal's; sending is the shipper's. One instance owns its directory;
all methods belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.common.clock import Clock, micros
from services.common.ids import NIL_TENANT, BootId, EventId, SourceId, TenantId, uuid7
from services.common.outbox.digests import Digester
from services.common.outbox.files import DirectoryLock, DiskFiles, Files
from services.common.outbox.journal import Durability, Journal, OutboxFailed, Segment
from services.common.outbox.parts import Part
from services.common.outbox.pressure import (
    LOW_DISK_BYTES,
    Budget,
    Level,
    Merger,
    OutboxFull,
    Role,
    kind_of,
    role_of,
)
from services.common.outbox.reader import Reader, Shipment
from services.common.outbox.record import ProfileError, Record
from services.common.outbox.recovery import (
    SET_ASIDE,
    OpenIntent,
    Recovered,
    mark_reported,
    read_all,
    recover,
)
from services.common.outbox.segment import MAX_FRAME_BYTES, SEGMENT_BYTES, Kind, encode_frame, scan
from services.common.outbox.stamp import Origin, Stamp
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log

HEARTBEAT_NS: Final = 60_000_000_000
MARK_NS: Final = 3_600_000_000_000
MARK_EVERY: Final = 1_000
KEEP_NS: Final = 24 * 3_600_000_000_000
SYSTEM_CHAIN: Final = "system"
DEFAULT_MAX_BYTES: Final = 1 << 30
#: Outcomes that wait in memory for a disk that refused.
_HELD_IN_MEMORY: Final = 10_000
#: How many tenants one source record lists, well under 32 KiB.
_LISTED: Final = 200
#: What an outcome repeats of its intent.
_REPEATED: Final = ("actor", "server", "tool", "method", "trace_id", "parent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    durability: Durability = "power"
    segment_bytes: int = SEGMENT_BYTES


class FileOutbox:
    """Made by `open_outbox`."""

    def __init__(
        self,
        *,
        directory: Path,
        recovered: Recovered,
        origin: Origin,
        budget: Budget,
        clock: Clock,
        counters: Counters,
        log: Log,
        digester: Digester | None,
        files: Files,
        tuning: Tuning,
    ) -> None:
        self.source: SourceId = recovered.source
        self.boot = BootId(uuid7(clock.now_ns()))
        self.committed_pos = 0
        self.first_pos = recovered.next_pos
        self._directory = directory
        self._budget = budget
        self._clock = clock
        self._log = log
        self._digester = digester
        self._files = files
        self._stamp = Stamp(
            kind=origin.kind,
            source=self.source,
            boot=self.boot,
            plane=origin.plane,
            version=origin.version,
        )
        self._pos = recovered.next_pos - 1
        self._n: dict[TenantId, int] = {}
        self._open: dict[EventId, int] = {}
        self._orphans: dict[EventId, OpenIntent] = {}
        self._merger = Merger()
        self._level = Level.OK
        self._failed = self._said_closed = False
        self._beat_n: dict[TenantId, int] = {}
        self._mark_n: dict[TenantId, int] = {}
        self._beat_ns = self._mark_ns = clock.monotonic_ns()
        self._gaps: set[tuple[str, int, int]] = set()
        self._news = asyncio.Event()
        self._acknowledged = asyncio.Event()
        self._journal = Journal(
            directory=directory,
            source=self.source,
            boot=self.boot,
            next_pos=recovered.next_pos,
            segments=recovered.segments,
            files=files,
            clock=clock,
            counters=counters,
            on_synced=self._news.set,
            durability=tuning.durability,
            segment_bytes=tuning.segment_bytes,
        )
        self._reader = Reader(files, self._journal.segments, 0)
        budget.join(self._used)
        counters.watch("outbox.usage_bytes", lambda: budget.used_bytes)
        counters.watch("outbox.pending", lambda: self.pending)

    # --- recording ------------------------------------------------------------------------------

    async def put(
        self, record: Record, *, parts: Sequence[Part] = (), durable: bool = True
    ) -> EventId:
        """Records and answers the record's id: after its sync, or `durable=False` after its write.

        Once taken, a record is written even if the caller vanishes; an intent whose caller was
        cancelled still wants its outcome. Raises OutboxFull, OutboxFailed (both AUDIT_UNAVAILABLE)
        and ProfileError; a refusal among these is counted and recorded later. An outcome refused by
        OutboxFailed is kept in memory and written if the disk comes back.
        """
        merged = self._admit(record)
        if merged is not None:
            return merged
        event_id, waiter = self._take(record, parts, durable=durable)
        try:
            await waiter
        except OutboxFailed:
            if record.type == "call.intent":  # refused, yet perhaps written later: it needs an end
                self._orphans[event_id] = _open_intent(record, self._open.get(event_id, 0))
            raise
        return event_id

    @property
    def accepts_calls(self) -> bool:
        """False: a new call would be refused as audit_unavailable; the process is not ready."""
        return not self._journal.failed and self._budget.level() < Level.CLOSED

    @property
    def level(self) -> Level:
        return self._budget.level()

    @property
    def failed(self) -> bool:
        return self._journal.failed

    @property
    def open_intents(self) -> frozenset[EventId]:
        """Calls that were allowed to run and have no outcome yet."""
        return frozenset(self._open)

    @property
    def unrecorded_refusals(self) -> int:
        """Counted in memory, to be recorded when there is room."""
        return len(self._merger)

    def _admit(self, record: Record) -> EventId | None:
        """Raises for what cannot be taken; an id for a refusal that was merged."""
        role = role_of(record.type)
        failed, level = self._journal.failed, self._budget.level()
        if not failed and level < Level.CLOSED:
            return None
        if role is Role.REFUSAL and (failed or level >= Level.MERGING):
            self._merger.add(record, self._clock.monotonic_ns())
            if not failed and level < Level.FULL:
                return record.id or self._new_id()
        if failed and (role is not Role.OTHER or self._journal.waiting >= _HELD_IN_MEMORY):
            raise OutboxFailed
        if not failed and (role is Role.CALL or level is Level.FULL):
            raise OutboxFull
        return None

    def _take(
        self, record: Record, parts: Sequence[Part] = (), *, durable: bool
    ) -> tuple[EventId, asyncio.Future[None]]:
        """Numbers, encodes and queues; a record that cannot be encoded takes no number."""
        tenant = record.tenant
        n, pos = self._n.get(tenant, 0) + 1, self._pos + 1
        event_id = record.id or self._new_id()
        queued_us = micros(self._clock.now_ns())
        body = self._stamp.body(record, event_id, n, queued_us, self._digester)
        stored = self._stamp.stored(
            tenant=tenant,
            chain=record.chain,
            event_id=event_id,
            n=n,
            pos=pos,
            body=body,
            parts=parts,
        )
        if len(stored) > MAX_FRAME_BYTES - 64:
            raise ProfileError("parts beyond 32 MiB")
        kind = kind_of(record.type)
        self._n[tenant], self._pos = n, pos
        if kind is Kind.INTENT:
            self._open[event_id] = pos
        elif kind is Kind.OUTCOME:
            self._open.pop(record.fields.get("decision", ""), None)
        frame = encode_frame(pos, kind, stored)
        alone = len(self._open) <= 1  # no other call is running
        waiter = self._journal.append(pos, frame, durable=durable, alone=alone)
        if n % MARK_EVERY == 0:
            self._mark(tenant)
        return event_id, waiter

    def _new_id(self) -> EventId:
        return EventId(uuid7(self._clock.now_ns()))

    def _note(self, record_type: str, tenant: TenantId = NIL_TENANT, **fields: Any) -> None:
        """A record of the source itself: taken under any pressure, synced with the next ones."""
        record = Record(
            type=record_type,
            tenant=tenant,
            chain=SYSTEM_CHAIN,
            at_us=micros(self._clock.now_ns()),
            fields=fields,
        )
        self._take(record, durable=False)[1].add_done_callback(_looked_at)

    # --- what the source says of itself ---------------------------------------------------------

    async def announce(self, recovered: Recovered) -> None:
        """First records of a boot: that it began, what is damaged, which calls have no end."""
        for listed in _pages(recovered.last_n):
            self._note("source.opened", previous_boot=recovered.previous_boot, last=listed)
        for damage in recovered.damage:
            self._gap(damage.segment, damage.first_pos, damage.last_pos)
        self._open |= {event_id: intent.pos for event_id, intent in recovered.open_intents.items()}
        for event_id, intent in recovered.open_intents.items():
            self._end_unknown(event_id, intent, "source_restarted")
        await self.flush()
        mark_reported(self._directory, self.boot, self._files)

    def _gap(self, segment: str, first_pos: int, last_pos: int) -> None:
        self._log.error("outbox_corrupt", segment=segment, first=first_pos, last=last_pos)
        self._note(
            "source.gap",
            cause="outbox_corrupt",
            severity="critical",
            segment=segment,
            first_pos=first_pos,
            last_pos=last_pos,
        )

    def _end_unknown(self, event_id: EventId, intent: OpenIntent, cause: str) -> None:
        record = Record(
            type="call.outcome_unknown",
            tenant=intent.tenant,
            chain=intent.chain,
            at_us=micros(self._clock.now_ns()),
            fields={
                **{name: intent.fields.get(name) for name in _REPEATED},
                "decision": event_id,
                "status": "indeterminate",
                "error": cause,
            },
        )
        self._take(record, durable=False)[1].add_done_callback(_looked_at)

    def _mark(self, tenant: TenantId) -> None:
        self._mark_n[tenant] = self._n[tenant]
        self._note("source.mark", tenant, last_n=self._n[tenant])

    def _beat(self) -> None:
        moved = {tenant: n for tenant, n in self._n.items() if self._beat_n.get(tenant) != n}
        for listed in _pages(moved):
            self._note("heartbeat", last=listed)
        self._beat_n = dict(self._n)

    def tick(self) -> None:
        """What time brings, about once a second: pressure, retries, heartbeats, marks."""
        now_ns = self._clock.monotonic_ns()
        with contextlib.suppress(OSError):
            self._budget.low_disk = self._files.free_bytes(self._directory) < LOW_DISK_BYTES
        self._tell_pressure()
        if self._journal.failed:
            self._journal.retry()
            return
        if self._budget.level() < Level.FULL:
            everything = self._budget.level() < Level.CLOSED
            for record in self._merger.due(now_ns, everything=everything):
                self._take(record, durable=False)[1].add_done_callback(_looked_at)
        while self._orphans:
            event_id, intent = self._orphans.popitem()
            self._end_unknown(event_id, intent, "outbox_failed")
        if now_ns - self._beat_ns >= HEARTBEAT_NS:
            self._beat_ns = now_ns
            self._beat()
        if now_ns - self._mark_ns >= MARK_NS:
            self._mark_ns = now_ns
            for tenant in [t for t, n in self._n.items() if self._mark_n.get(t) != n]:
                if tenant != NIL_TENANT:
                    self._mark(tenant)

    def _tell_pressure(self) -> None:
        level, failed = self._budget.level(), self._journal.failed
        if (level, failed) != (self._level, self._failed):
            self._level, self._failed = level, failed
            tell = self._log.error if failed or level >= Level.HIGH else self._log.warning
            tell("outbox_pressure", level=level.name.lower(), failed=failed)

    # --- what the shipper asks ------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Positions synced and not yet committed by audit."""
        return max(0, self._journal.synced_pos - self.committed_pos)

    @property
    def last_pos(self) -> int:
        return self._journal.synced_pos

    async def news(self) -> None:
        """Ends when something was synced since the last read that reached the end."""
        await self._news.wait()

    async def seek(self, pos: int) -> None:
        """The next read begins behind `pos`, which audit says it has."""
        self.committed_pos = pos
        self._reader.close()
        self._reader = Reader(self._files, self._journal.segments, pos)
        self._news.set()

    async def read(self, *, max_records: int, max_bytes: int) -> Shipment:
        """The next synced records. Raises OSError."""
        self._news.clear()
        shipment = self._reader.read(max_records=max_records, max_bytes=max_bytes)
        if shipment.full:
            self._news.set()
        for lost in shipment.lost:
            if lost not in self._gaps:  # a resend meets the same damage again
                self._gaps.add(lost)
                self._gap(*lost)
        return shipment

    async def committed(self, pos: int) -> None:
        """Audit has everything up to `pos`."""
        self.committed_pos = max(self.committed_pos, pos)
        self._acknowledged.set()

    async def drained(self) -> None:
        """Ends when audit has everything that is synced."""
        while self.pending:
            self._acknowledged.clear()
            await self._acknowledged.wait()

    async def reclaim(self) -> None:
        """Removes segments from the oldest on: closed, committed, and old or in the way.

        An intent that is still open moves to the active segment first, so that a call which runs
        for days does not hold back everything recorded since.
        """
        while len(self._journal.segments) > 1:
            segment = self._journal.segments[0]
            old = self._clock.now_ns() - segment.written_ns > KEEP_NS
            if segment.last_pos > self.committed_pos or not (old or self._budget.over_quarter):
                return
            await self._carry(segment)
            self._journal.segments.remove(segment)
            await asyncio.to_thread(self._remove, segment)

    async def _carry(self, segment: Segment) -> None:
        still_open = {pos: e for e, pos in self._open.items() if pos <= segment.last_pos}
        if not still_open:
            return
        data = await asyncio.to_thread(read_all, segment.path, segment.end, self._files)
        for frame in scan(data, after_pos=segment.first_pos - 1).frames:
            event_id = still_open.get(frame.pos)
            if event_id is not None and event_id in self._open:
                self._pos += 1
                self._open[event_id] = self._pos
                carried = encode_frame(self._pos, Kind.CARRIED, frame.stored)
                await self._journal.append(self._pos, carried, durable=True)

    def _remove(self, segment: Segment) -> None:
        if segment.damaged:
            self._files.rename(segment.path, segment.path.with_suffix(f".{self.boot}{SET_ASIDE}"))
        else:
            self._files.remove(segment.path)
        self._files.sync_directory(self._directory)

    # --- the end --------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Everything taken so far is on the disk. Raises OutboxFailed."""
        await self._journal.flush()

    async def say_closed(self) -> None:
        """The last record of a boot; once."""
        if self._said_closed:
            return
        self._said_closed = True
        for listed in _pages(self._n):
            self._note("source.closed", last=listed)
        with contextlib.suppress(OutboxFailed):
            await self.flush()

    async def close(self) -> None:
        await self._journal.close()
        self._reader.close()
        self._budget.leave(self._used)

    def _used(self) -> int:
        return self._journal.used_bytes


@asynccontextmanager
async def open_outbox(
    directory: Path,
    *,
    origin: Origin,
    budget: Budget,
    clock: Clock,
    counters: Counters,
    log: Log,
    digester: Digester | None = None,
    files: Files | None = None,
    tuning: Tuning | None = None,
    lock: DirectoryLock | None = None,
    leave: Callable[[], None] | None = None,
) -> AsyncIterator[FileOutbox]:
    """Takes the directory (or is given its lock), recovers what it holds, begins a new boot; at the
    end closes that boot, and then does `leave` while it still owns the directory, unless something
    went wrong. Raises DirectoryTaken, OSError, OutboxFailed.
    """
    disk = files or DiskFiles()
    owned = lock or DirectoryLock(directory)
    try:
        recovered = await asyncio.to_thread(recover, directory, disk)
        outbox = FileOutbox(
            directory=directory,
            recovered=recovered,
            origin=origin,
            budget=budget,
            clock=clock,
            counters=counters,
            log=log,
            digester=digester,
            files=disk,
            tuning=tuning or Tuning(),
        )
        try:
            await outbox.announce(recovered)
            yield outbox
        finally:
            await outbox.say_closed()
            await outbox.close()
        if leave is not None:
            leave()
    finally:
        owned.release()


def _pages(last_n: dict[TenantId, int]) -> list[list[dict[str, Any]]]:
    """`[{tenant, n}]` in pieces that fit into a record; one empty piece when there is nothing."""
    listed = [{"tenant": tenant, "n": n} for tenant, n in last_n.items()]
    return [listed[at : at + _LISTED] for at in range(0, len(listed), _LISTED)] or [[]]


def _open_intent(record: Record, pos: int) -> OpenIntent:
    return OpenIntent(pos=pos, tenant=record.tenant, chain=record.chain, fields=dict(record.fields))


def _looked_at(waiter: asyncio.Future[None]) -> None:
    """A record nobody waits for: its failure shows in `failed`."""
    if not waiter.cancelled():
        waiter.exception()
