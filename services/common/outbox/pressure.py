"""How full an outbox is, and what it then takes.

The budget spans all outboxes of a process group's directory that this process writes or adopts.
Refusals that no longer fit are merged here into counted ones, so that none goes unrecorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from services.common.errors import BehavryError
from services.common.ids import TenantId
from services.common.outbox.record import Record
from services.common.outbox.segment import Kind

LOW_DISK_BYTES: Final = 256 * 1024 * 1024
MERGE_NS: Final = 60_000_000_000


class Level(IntEnum):
    OK = 0
    #: 60 %
    WARNING = 1
    #: 80 %
    HIGH = 2
    #: 95 %, or under 256 MiB of free disk: no new calls.
    CLOSED = 3
    #: 97.5 %: refusals merge.
    MERGING = 4
    FULL = 5


class OutboxFull(BehavryError):
    """No room for this record: deny the call that it stands for."""

    def __init__(self) -> None:
        super().__init__("AUDIT_UNAVAILABLE", "the outbox has no room for new calls")


class Budget:
    """BEHAVRY_OUTBOX_MAX_BYTES and who uses it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.low_disk = False
        self._users: list[Callable[[], int]] = []

    def join(self, used: Callable[[], int]) -> None:
        self._users.append(used)

    def leave(self, used: Callable[[], int]) -> None:
        self._users.remove(used)

    @property
    def used_bytes(self) -> int:
        return sum(used() for used in self._users)

    def level(self) -> Level:
        permille = self.used_bytes * 1000 // self.max_bytes
        if permille >= 1000:
            return Level.FULL
        if permille >= 975:
            return Level.MERGING
        if permille >= 950 or self.low_disk:
            return Level.CLOSED
        if permille >= 800:
            return Level.HIGH
        return Level.WARNING if permille >= 600 else Level.OK

    @property
    def over_quarter(self) -> bool:
        """Enough in use that committed segments need not be kept for a restored backup."""
        return self.used_bytes * 4 > self.max_bytes


class Role(IntEnum):
    """What a record is to the outbox, told by its type."""

    #: A new call: refused first.
    CALL = 1
    REFUSAL = 2
    #: Everything else is recorded as long as anything can be.
    OTHER = 3


_CALLS: Final = frozenset({"call.intent", "call.held"})
_REFUSALS: Final = frozenset({"call.denied", "call.rejected", "auth.failed", "rate.limited"})
_OUTCOMES: Final = frozenset({"call.outcome", "call.outcome_unknown"})


def role_of(record_type: str) -> Role:
    if record_type in _CALLS:
        return Role.CALL
    return Role.REFUSAL if record_type in _REFUSALS else Role.OTHER


def kind_of(record_type: str) -> Kind:
    if record_type == "call.intent":
        return Kind.INTENT
    return Kind.OUTCOME if record_type in _OUTCOMES else Kind.RECORD


#: What of a merged refusal is the same for all that it counts.
_KEPT: Final = ("actor", "verdict", "reason", "server", "severity")
_Key = tuple[TenantId, str, str, str]


@dataclass(slots=True)
class _Merged:
    at_us: int
    since_ns: int
    fields: dict[str, Any] = field(default_factory=dict)
    count: int = 0


class Merger:
    """Counts refusals per chain (that is: per agent), type and reason."""

    def __init__(self) -> None:
        self._merged: dict[_Key, _Merged] = {}

    def __len__(self) -> int:
        return sum(merged.count for merged in self._merged.values())

    def add(self, record: Record, now_ns: int) -> None:
        key = (record.tenant, record.chain, record.type, str(record.fields.get("reason", "")))
        merged = self._merged.get(key)
        if merged is None:
            merged = _Merged(record.at_us, now_ns, _kept(record.fields))
            self._merged[key] = merged
        merged.count += record.fields.get("count") or 1

    def due(self, now_ns: int, *, everything: bool = False) -> list[Record]:
        """Takes out what has been gathered for a minute."""
        records = []
        for key, merged in list(self._merged.items()):
            if everything or now_ns - merged.since_ns >= MERGE_NS:
                del self._merged[key]
                tenant, chain, record_type, _ = key
                records.append(
                    Record(
                        type=record_type,
                        tenant=tenant,
                        chain=chain,
                        at_us=merged.at_us,
                        fields={**merged.fields, "count": merged.count},
                    )
                )
        return records


def _kept(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in _KEPT if name in fields}
