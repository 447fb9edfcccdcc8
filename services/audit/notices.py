"""Audit as a source of its own: makes the records in which it tells what it noticed.

They take the same way into a chain as everybody's, in the transaction of what caused them, so none
is lost and none is told twice. The source is the plane's; each start of the process is a new boot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid5

from services.audit.plan import Item, MarkKey, Notice
from services.audit.record import columns
from services.common.clock import Clock, micros
from services.common.ids import EventId, PlaneId, uuid7
from services.common.outbox.record import VERSION, canonical_bytes

PEER: Final = "audit"
_NAMESPACE: Final = UUID("1c1f6e0e-7a3b-5d0a-9a52-0b9a5c0f7a11")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSource:
    """Makes notices of one start of this process."""

    source: str
    boot: str
    plane: PlaneId
    clock: Clock

    @property
    def key(self) -> MarkKey:
        return (self.source, self.boot)

    def make(self, tenant: str, notice: Notice, chain: str, n: int) -> Item:
        now_ns = self.clock.now_ns()
        event_id = EventId(uuid7(now_ns))
        body = {
            **notice.fields,
            "v": VERSION,
            "type": notice.type,
            "id": event_id,
            "tenant": tenant,
            "chain": chain,
            "at": micros(now_ns),
            "queued_at": micros(now_ns),
            "plane": self.plane,
            "src": {"kind": PEER, "id": self.source, "boot": self.boot, "n": n},
            "actor": {"kind": "service", "id": PEER},
        }
        return Item(
            peer=PEER,
            source=self.source,
            boot=self.boot,
            n=n,
            chain=chain,
            event_id=event_id,
            body=canonical_bytes(body),
            columns=columns(body),
        )


def own_source(plane: PlaneId, clock: Clock) -> OwnSource:
    return OwnSource(
        source=str(uuid5(_NAMESPACE, plane)), boot=uuid7(clock.now_ns()), plane=plane, clock=clock
    )
