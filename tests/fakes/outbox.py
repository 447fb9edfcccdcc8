"""An outbox as tests open it, records as they put them, and what a directory holds, read back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from behavry.audit.v1 import audit_pb2
from services.common.clock import Clock, SystemClock
from services.common.ids import EventId, PlaneId, TenantId
from services.common.outbox.files import DirectoryLock, Files
from services.common.outbox.outbox import FileOutbox, Tuning, open_outbox
from services.common.outbox.pressure import Budget
from services.common.outbox.record import Record
from services.common.outbox.segment import Kind, scan
from services.common.outbox.stamp import Origin
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import get_log

TENANT: Final = TenantId("0190aaaa-0000-7000-8000-000000000001")
OTHER: Final = TenantId("0190aaaa-0000-7000-8000-000000000002")
CHAIN: Final = "agent:0190aaaa-0000-7000-8000-00000000000a"
ORIGIN: Final = Origin(kind="proxy", plane=PlaneId("dp-test"), version="0.0.0")


def record(record_type: str, *, tenant: TenantId = TENANT, **fields: Any) -> Record:
    return Record(type=record_type, tenant=tenant, chain=CHAIN, at_us=1, fields=fields)


def intent(**fields: Any) -> Record:
    return record("call.intent", server="time", tool="now", **fields)


def denied(**fields: Any) -> Record:
    return record("call.denied", **{"reason": "grants", **fields})


def outcome(decision: EventId, **fields: Any) -> Record:
    return record("call.outcome", decision=decision, status="ok", **fields)


@asynccontextmanager
async def opened(
    directory: Path,
    *,
    files: Files | None = None,
    clock: Clock | None = None,
    budget: Budget | None = None,
    counters: Counters | None = None,
    tuning: Tuning | None = None,
    lock: DirectoryLock | None = None,
    leave: Callable[[], None] | None = None,
) -> AsyncIterator[FileOutbox]:
    async with open_outbox(
        directory,
        origin=ORIGIN,
        budget=budget or Budget(1 << 30),
        clock=clock or SystemClock(),
        counters=counters or Counters(),
        log=get_log("test"),
        files=files,
        tuning=tuning or Tuning(segment_bytes=1 << 20),
        lock=lock,
        leave=leave,
    ) as outbox:
        yield outbox


@dataclass(frozen=True, slots=True)
class Stored:
    pos: int
    kind: Kind
    entry: audit_pb2.Entry

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.entry.body)
        return found

    @property
    def type(self) -> str:
        return str(self.body["type"])


def stored_in(directory: Path) -> list[Stored]:
    """All frames of all segments, merged by position."""
    found: dict[int, Stored] = {}
    for path in sorted(directory.glob("*.seg")):
        for frame in scan(path.read_bytes()).frames:
            entry = audit_pb2.StoredRecord.FromString(frame.stored).entry
            found[frame.pos] = Stored(frame.pos, frame.kind, entry)
    return [found[pos] for pos in sorted(found)]


def types_in(directory: Path) -> list[str]:
    return [stored.type for stored in stored_in(directory)]


def numbers_are_gap_free(stored: list[Stored]) -> bool:
    """Per boot and tenant from 1, in the order of positions."""
    seen: dict[tuple[str, str], int] = {}
    for one in stored:
        if one.kind is Kind.CARRIED:
            continue
        key = (one.entry.boot, one.entry.tenant_id)
        if one.entry.n != seen.get(key, 0) + 1:
            return False
        seen[key] = one.entry.n
    return True
