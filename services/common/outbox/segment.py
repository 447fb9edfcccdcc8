"""The bytes of an outbox segment: a header, then frames until a length of 0.

    header  8s magic | u32 version | 16s source | 16s boot | u64 first pos | 8s zero | u32 CRC32C
    frame   u32 length of the rest | u32 CRC32C of the rest | u64 pos | u8 kind | StoredRecord

Big-endian. Decides which bytes are a frame and what an invalid one means; where segments lie and
what is done about a damaged one is the journal's and recovery's business.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self
from uuid import UUID

import google_crc32c

from services.common.ids import BootId, SourceId

MAGIC: Final = b"BHVOUTBX"
VERSION: Final = 1
HEADER_BYTES: Final = 64
FRAME_HEAD_BYTES: Final = 8
SEGMENT_BYTES: Final = 64 * 1024 * 1024
#: A frame must fit into a segment and, as a batch of its own, into a message.
MAX_FRAME_BYTES: Final = 32 * 1024 * 1024
#: How far behind an invalid frame positions may lie that still count as this segment's.
_RESYNC_SPAN: Final = 1 << 24

_HEADER: Final = struct.Struct(">8sI16s16sQ8x")
_HEAD: Final = struct.Struct(">II")
_REST: Final = struct.Struct(">QB")
_U32: Final = struct.Struct(">I")


class Kind(IntEnum):
    """What recovery must know about a frame without reading its record."""

    RECORD = 1
    INTENT = 2
    OUTCOME = 3
    #: An intent copied out of a segment that went; local, never shipped.
    CARRIED = 4


_KINDS: Final = frozenset(int(kind) for kind in Kind)


class BadHeader(ValueError):
    """Not a segment, or one of another version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    source: SourceId
    boot: BootId
    first_pos: int

    def encode(self) -> bytes:
        head = _HEADER.pack(
            MAGIC, VERSION, UUID(self.source).bytes, UUID(self.boot).bytes, self.first_pos
        )
        return head + _U32.pack(google_crc32c.value(head))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises BadHeader."""
        if len(data) < HEADER_BYTES:
            raise BadHeader("too short")
        head = data[: _HEADER.size]
        if _U32.unpack_from(data, _HEADER.size)[0] != google_crc32c.value(head):
            raise BadHeader("checksum")
        magic, version, source, boot, first_pos = _HEADER.unpack(head)
        if magic != MAGIC or version != VERSION:
            raise BadHeader("magic or version")
        return cls(
            source=SourceId(str(UUID(bytes=source))),
            boot=BootId(str(UUID(bytes=boot))),
            first_pos=first_pos,
        )


@dataclass(frozen=True, slots=True)
class Frame:
    pos: int
    kind: Kind
    stored: bytes
    #: Offset after the frame.
    end: int

    @property
    def start(self) -> int:
        return self.end - len(self.stored) - _REST.size - FRAME_HEAD_BYTES


@dataclass(frozen=True, slots=True)
class Scan:
    """What a stretch of segment bytes holds."""

    frames: list[Frame]
    #: Offset after the last frame before anything invalid.
    end: int
    #: Bytes of an unfinished write after the last frame, nothing valid behind them.
    torn: bool
    #: Something invalid with valid frames behind it: no torn tail, a damaged segment.
    corrupt: bool


def encode_frame(pos: int, kind: Kind, stored: bytes) -> bytes:
    rest = _REST.pack(pos, kind) + stored
    return _HEAD.pack(len(rest), google_crc32c.value(rest)) + rest


def frame_at(data: bytes, offset: int, after_pos: int) -> Frame | None:
    """The frame at `offset`, None where there is no valid one with a position past `after_pos`."""
    start = offset + FRAME_HEAD_BYTES
    if start + _REST.size > len(data):
        return None
    length, checksum = _HEAD.unpack_from(data, offset)
    end = start + length
    if not _REST.size <= length <= MAX_FRAME_BYTES or end > len(data):
        return None
    pos, kind = _REST.unpack_from(data, start)
    if pos <= after_pos or kind not in _KINDS:
        return None
    if google_crc32c.value(data[start:end]) != checksum:
        return None
    return Frame(pos, Kind(kind), data[start + _REST.size : end], end)


def frame_size(data: bytes, offset: int) -> int:
    """How many bytes the frame at `offset` claims; 0 at the end. Needs its first four bytes."""
    length: int = _U32.unpack_from(data, offset)[0]
    return length + FRAME_HEAD_BYTES if length else 0


def scan(data: bytes, *, offset: int = HEADER_BYTES, after_pos: int = 0) -> Scan:
    """All valid frames from `offset` on; behind something invalid, whatever can still be read."""
    frames: list[Frame] = []
    last = after_pos
    while (frame := frame_at(data, offset, last)) is not None:
        frames.append(frame)
        last, offset = frame.pos, frame.end
    end = offset
    used = len(data.rstrip(b"\0"))
    torn = used > end
    corrupt = False
    while offset < used and (found := _resync(data, offset, last)) is not None:
        corrupt = True
        while (frame := frame_at(data, found, last)) is not None:
            frames.append(frame)
            last, found = frame.pos, frame.end
        offset = found
    return Scan(frames, end, torn and not corrupt, corrupt)


def _resync(data: bytes, offset: int, last: int) -> int | None:
    """The offset of the next valid frame. Candidates are found by the upper bytes of a position
    that may follow `last`, so that damage in a full segment costs milliseconds.
    """
    prefixes = {struct.pack(">Q", last + 1)[:5], struct.pack(">Q", last + _RESYNC_SPAN)[:5]}
    upper = b"|".join(re.escape(prefix) for prefix in sorted(prefixes))
    candidate = re.compile(b"(?=(?:" + upper + b")...[\x01-\x04])", re.DOTALL)
    start = offset + FRAME_HEAD_BYTES
    for match in candidate.finditer(data, start):
        at = match.start() - FRAME_HEAD_BYTES
        if frame_at(data, at, last) is not None:
            return at
    return None
