"""The bytes of the local ticket journal and the file that holds them.

    frame   4s marker | u32 length of the rest | u32 CRC32C of the rest | u64 number | JSON Entry

Big-endian; the marker is no UTF-8, so it occurs in no JSON. A file begins with a snapshot, frame 1;
each later frame is written and synced before the next one begins. So at most the last frame can be
unfinished after a crash: it was never answered for, and is cut. Anything invalid that has a valid
frame behind it, or stands in place of a snapshot, is damage, and damage is refused: a lost
consumption would run a call twice. Not safe for use by two at once; blocking.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import google_crc32c
import msgspec
from msgspec import Struct

from services.authorizer.tickets.protocol import StoreUnavailable
from services.authorizer.tickets.ticket import State, Ticket, TicketId
from services.common.ids import TenantId
from services.common.outbox.files import Files

SUFFIX: Final = ".journal"
_UNFINISHED: Final = ".unfinished"
_MARKER: Final = b"\xffBT\x01"
_HEAD: Final = struct.Struct(">4sII")
_NUMBER: Final = struct.Struct(">Q")
#: A file so much larger than its snapshot is rewritten.
_GROWTH: Final = 4
_SMALL_BYTES: Final = 1 << 20

Key = tuple[TenantId, TicketId]


class Change(Struct, frozen=True, kw_only=True, array_like=True):
    """What can change of a ticket that is in the journal already."""

    tenant: TenantId
    id: TicketId
    state: State
    version: int
    changed_at_ms: int
    execute_by_ms: int
    uses_left: int
    kept_version: int
    recorded_version: int


class Entry(Struct, frozen=True, kw_only=True):
    v: Literal["behavry.tickets/1"] = "behavry.tickets/1"
    mark_ms: int
    tickets: list[Ticket]
    changes: list[Change]


_encode: Final = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(Entry)
_CHANGING: Final = tuple(name for name in Change.__struct_fields__ if name not in {"tenant", "id"})


class JournalFile:
    """An open journal. After any OSError it must not be appended to, only rewritten: what the disk
    holds of the failed write is unknown, and a second sync would not tell (it forgets failures).
    """

    def __init__(self, directory: Path, files: Files) -> None:
        self._directory = directory
        self._files = files
        self._known: set[Key] = set()
        self._fd = -1
        self._generation = 0
        self._number = 0
        self._size = 0
        self._snapshot_size = 0

    def load(self) -> tuple[dict[Key, Ticket], int]:
        """What it holds, in the order of opening, and its newest time; ready to append. Raises
        OSError, and StoreUnavailable for a damaged file, which stays as it is.
        """
        for path in self._directory.glob(f"*{_UNFINISHED}"):
            self._files.remove(path)
        paths = sorted(self._directory.glob(f"*{SUFFIX}"))
        tickets: dict[Key, Ticket] = {}
        mark_ms = 0
        if paths:
            self._generation = _generation(paths[-1])
            tickets, mark_ms = _replay(paths[-1].read_bytes(), paths[-1].name)
        # A file of our own: the cut is no edit of the old one, and appending needs no thought.
        self.rewrite(tickets.values(), mark_ms)
        return tickets, mark_ms

    def append(self, written: Iterable[Ticket], mark_ms: int) -> None:
        """On the disk when this returns. `written` are whole tickets; those known need less."""
        tickets, changes = [], []
        for ticket in written:
            if (ticket.tenant, ticket.id) in self._known:
                fields = {name: getattr(ticket, name) for name in _CHANGING}
                changes.append(Change(tenant=ticket.tenant, id=ticket.id, **fields))
            else:
                tickets.append(ticket)
        entry = Entry(mark_ms=mark_ms, tickets=tickets, changes=changes)
        frame = _frame(self._number + 1, _encode(entry))
        self._files.write(self._fd, frame, self._size)
        self._files.sync(self._fd)
        self._number += 1
        self._size += len(frame)
        self._known.update((ticket.tenant, ticket.id) for ticket in tickets)

    @property
    def large(self) -> bool:
        return self._size > max(_SMALL_BYTES, _GROWTH * self._snapshot_size)

    def rewrite(self, tickets: Iterable[Ticket], mark_ms: int) -> None:
        """A new file with nothing but these takes over once it is whole and synced.

        1. write aside 2. give it its name 3. let the old ones go.
        """
        held = list(tickets)
        frame = _frame(1, _encode(Entry(mark_ms=mark_ms, tickets=held, changes=[])))
        generation = self._generation + 1
        path = self._directory / f"{generation:012d}{SUFFIX}"
        aside = path.with_suffix(_UNFINISHED)
        if aside.exists():
            self._files.remove(aside)
        fd = self._files.create(aside, 0)
        try:
            self._files.write(fd, frame, 0)  # 1
            self._files.sync(fd)
            self._files.rename(aside, path)  # 2
            self._generation = generation  # the name is taken, whatever comes of it
            self._files.sync_directory(self._directory)
        except OSError:
            self._files.close(fd)
            raise
        self.close()
        self._fd, self._number = fd, 1
        self._size = self._snapshot_size = len(frame)
        self._known = {(ticket.tenant, ticket.id) for ticket in held}
        for old in self._directory.glob(f"*{SUFFIX}"):  # 3
            if _generation(old) < generation:
                self._files.remove(old)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._files.close(fd)


def _frame(number: int, payload: bytes) -> bytes:
    rest = _NUMBER.pack(number) + payload
    return _HEAD.pack(_MARKER, len(rest), google_crc32c.value(rest)) + rest


def _generation(path: Path) -> int:
    try:
        return int(path.stem)
    except ValueError:
        raise StoreUnavailable(f"{path.name} is no name of a ticket journal") from None


def _replay(data: bytes, name: str) -> tuple[dict[Key, Ticket], int]:
    """1. every whole frame in order 2. what follows is an unfinished frame or nothing."""
    tickets: dict[Key, Ticket] = {}
    mark_ms = offset = number = 0
    while (found := _frame_at(data, offset)) is not None:  # 1
        payload, offset, at = found
        number += 1
        if at != number:
            raise StoreUnavailable(f"{name}: frame {number} is missing")
        entry = _entry(payload, name, number)
        _apply(entry, tickets, name)
        mark_ms = max(mark_ms, entry.mark_ms)
    if number == 0:  # 2
        raise StoreUnavailable(f"{name}: its snapshot is damaged")
    later = data.find(_MARKER, offset + 1)
    while later >= 0:
        if _frame_at(data, later) is not None:
            raise StoreUnavailable(f"{name}: damaged after frame {number}")
        later = data.find(_MARKER, later + 1)
    return tickets, mark_ms


def _frame_at(data: bytes, offset: int) -> tuple[bytes, int, int] | None:
    """Payload, end and number of the valid frame at `offset`."""
    start = offset + _HEAD.size
    if start + _NUMBER.size > len(data):
        return None
    marker, length, checksum = _HEAD.unpack_from(data, offset)
    rest = data[start : start + length]
    if marker != _MARKER or len(rest) != length or google_crc32c.value(rest) != checksum:
        return None
    if length < _NUMBER.size:
        return None
    return rest[_NUMBER.size :], start + length, _NUMBER.unpack_from(rest)[0]


def _entry(payload: bytes, name: str, number: int) -> Entry:
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):  # its checksum holds: another version's
        raise StoreUnavailable(f"{name}: frame {number} is of another format") from None


def _apply(entry: Entry, tickets: dict[Key, Ticket], name: str) -> None:
    for ticket in entry.tickets:
        tickets[ticket.tenant, ticket.id] = ticket
    for change in entry.changes:
        held = tickets.get((change.tenant, change.id))
        if held is None or held.version > change.version:
            raise StoreUnavailable(f"{name}: a change of a ticket that it does not hold")
        fields = {name: getattr(change, name) for name in _CHANGING}
        tickets[change.tenant, change.id] = msgspec.structs.replace(held, **fields)
