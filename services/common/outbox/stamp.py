"""What a source adds to each of its records: who it is, its boot, and the record's number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from behavry.audit.v1 import audit_pb2
from services.common.ids import BootId, EventId, PlaneId, SourceId, TenantId
from services.common.outbox.digests import Digester
from services.common.outbox.parts import Part
from services.common.outbox.record import MAX_BODY_BYTES, VERSION, Record, canonical_bytes

#: What `src` adds to a draft, with room to spare.
_SRC_BYTES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Whose records these are: the service's name, the plane, the product's version."""

    kind: str
    plane: PlaneId
    version: str


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
        fields = self._fields(record, event_id, queued_us)
        fields["src"] = self._src(n)
        return canonical_bytes(fields, _digest_text(record.tenant, digester))

    def draft(
        self, record: Record, event_id: EventId, queued_us: int, digester: Digester | None
    ) -> bytes:
        """The body before it has a number, with room left for one. Raises ProfileError."""
        fields = self._fields(record, event_id, queued_us)
        limit = MAX_BODY_BYTES - _SRC_BYTES
        return canonical_bytes(fields, _digest_text(record.tenant, digester), limit=limit)

    def finish(self, draft: bytes, n: int) -> bytes:
        """The body of a draft that was numbered."""
        return canonical_bytes({**orjson.loads(draft), "src": self._src(n)})

    def _fields(self, record: Record, event_id: EventId, queued_us: int) -> dict[str, Any]:
        return {
            **record.fields,
            "v": VERSION,
            "type": record.type,
            "id": event_id,
            "tenant": record.tenant,
            "chain": record.chain,
            "at": record.at_us,
            "queued_at": queued_us,
            "plane": self.plane,
        }

    def _src(self, n: int) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "id": self.source,
            "boot": self.boot,
            "n": n,
            "version": self.version,
        }

    def stored(
        self,
        *,
        tenant: TenantId,
        chain: str,
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
                tenant_id=tenant,
                chain=chain,
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


def _digest_text(tenant: TenantId, digester: Digester | None) -> Callable[[bytes], str] | None:
    if digester is None:
        return None
    return lambda text: digester.make(tenant, "changes", text)
