"""Reads synced frames back, in order, for the shipper. Knows nothing of what is not yet synced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from services.common.outbox.files import Files
from services.common.outbox.journal import Segment
from services.common.outbox.segment import HEADER_BYTES, Kind, frame_at, frame_size, scan

_CHUNK_BYTES: Final = 256 * 1024


@dataclass(slots=True)
class Shipment:
    """Frames to send, as they were stored; `last_pos` also counts what needs no shipping."""

    last_pos: int
    stored: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    #: Stopped by a limit: more can be had at once.
    full: bool = False
    #: Segments that turned out damaged, and the positions from..to that cannot be read.
    lost: list[tuple[str, int, int]] = field(default_factory=list)


class Reader:
    """A place in the journal. `segments` is the journal's own list."""

    def __init__(self, files: Files, segments: Sequence[Segment], after_pos: int) -> None:
        self._files = files
        self._segments = segments
        self._segment: Segment | None = None
        self._fd = -1
        self._offset = 0
        self.pos = after_pos

    def close(self) -> None:
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1
        self._segment = None

    def read(self, *, max_records: int, max_bytes: int) -> Shipment:
        """What is synced behind the last read, up to the limits but at least one frame. Raises
        OSError.
        """
        shipment = Shipment(self.pos)
        while (segment := self._enter()) is not None:
            if not self._collect(segment, shipment, max_records, max_bytes):
                shipment.full = True
                break
        shipment.last_pos = self.pos
        return shipment

    def _enter(self) -> Segment | None:
        """Opens the segment that holds the next position; None when there is none yet."""
        for segment in self._segments:
            if segment.last_pos > self.pos:
                break
        else:
            return None
        if segment is not self._segment:
            self.close()
            self._fd = self._files.open(segment.path)
            self._segment, self._offset = segment, HEADER_BYTES
        return segment

    def _collect(
        self, segment: Segment, shipment: Shipment, max_records: int, max_bytes: int
    ) -> bool:
        """Takes frames of the segment that is open. False: a limit stopped it."""
        last_pos = segment.last_pos  # before `end`, see Segment
        end = segment.end
        while self._offset < end and self.pos < last_pos:
            data = self._files.read(self._fd, min(_CHUNK_BYTES, end - self._offset), self._offset)
            if len(data) >= 4 and (size := frame_size(data, 0)) > len(data):
                data = self._files.read(self._fd, min(size, end - self._offset), self._offset)
            at = 0
            while (frame := frame_at(data, at, 0)) is not None:
                shipped = frame.kind is not Kind.CARRIED and frame.pos > self.pos
                if shipped:
                    size = len(frame.stored)
                    over = shipment.size_bytes + size > max_bytes
                    if shipment.stored and (over or len(shipment.stored) >= max_records):
                        self._offset += at
                        return False
                    shipment.stored.append(frame.stored)
                    shipment.size_bytes += size
                self.pos = max(self.pos, frame.pos)
                at = frame.end
            self._offset += at
            if at == 0:
                shipment.lost.append(self._skip_damage(segment, end, last_pos))
        return True

    def _skip_damage(self, segment: Segment, end: int, last_pos: int) -> tuple[str, int, int]:
        """Goes on behind bytes that were a frame when they were synced."""
        segment.damaged = True
        first_lost = self.pos + 1
        data = self._files.read(self._fd, end - self._offset, self._offset)
        following = next(iter(scan(data, offset=0, after_pos=self.pos).frames), None)
        if following is None:
            self._offset, self.pos = end, last_pos
            return segment.path.name, first_lost, last_pos
        self._offset += following.start
        return segment.path.name, first_lost, following.pos - 1
