"""What a source adds to each of its records: who it is, its boot, and the record's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from behavry.audit.v1 import audit_pb2
from services.common.ids import BootId, EventId, PlaneId, SourceId
from services.common.outbox.digests import Digester
from services.common.outbox.parts import Part
from services.common.outbox.record import VERSION, Record, canonical_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """`kind` is the service's name, `version` the product's."""

    kind: str
    source: SourceId
    boot: BootId
    plane: PlaneId
    version: str

    def body(
        self, record: Record, event_id: EventId, n: int, queued_us: int, digester: Digester | None
    ) -> bytes:
        """The canonical bytes. Raises ProfileError."""
        return canonical_bytes(
            {
                **record.fields,
                "v": VERSION,
                "type": record.type,
                "id": event_id,
                "tenant": record.tenant,
                "chain": record.chain,
                "at": record.at_us,
                "queued_at": queued_us,
                "plane": self.plane,
                "src": {
                    "kind": self.kind,
                    "id": self.source,
                    "boot": self.boot,
                    "n": n,
                    "version": self.version,
                },
            },
            None
            if digester is None
            else lambda text: digester.make(record.tenant, "changes", text),
        )

    def stored(
        self,
        record: Record,
        *,
        event_id: EventId,
        n: int,
        pos: int,
        body: bytes,
        parts: Sequence[Part] = (),
    ) -> bytes:
        """StoredRecord bytes. Joined together they are a Batch: both hold entries as field 1."""
        return audit_pb2.StoredRecord(
            entry=audit_pb2.Entry(
                pos=pos,
                boot=self.boot,
                tenant_id=record.tenant,
                chain=record.chain,
                n=n,
                event_id=event_id,
                body=body,
                parts=[
                    audit_pb2.Part(
                        kind=part.kind, salt=part.salt, stored=part.stored, mode=part.mode
                    )
                    for part in parts
                ],
            )
        ).SerializeToString()
