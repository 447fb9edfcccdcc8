"""What a directory still holds after its process ended, however it ended.

Decides torn or damaged: an invalid frame with nothing valid behind it is the torn tail of an
unfinished write and is cut. Anything else is damage: the segment is set aside under another name,
never deleted, and what can still be read of it takes its place. Reporting the gap is the outbox's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
from google.protobuf.message import DecodeError

from behavry.audit.v1 import audit_pb2
from services.common.ids import BootId, EventId, SourceId, TenantId
from services.common.outbox.files import Files
from services.common.outbox.identity import new_source, read_source, write_source
from services.common.outbox.journal import SUFFIX, UNFINISHED, Segment
from services.common.outbox.segment import (
    HEADER_BYTES,
    BadHeader,
    Frame,
    Header,
    Kind,
    Scan,
    encode_frame,
    scan,
)

_NIL_BOOT: Final = BootId("00000000-0000-0000-0000-000000000000")
#: A damaged segment that is not reported yet, and one that is.
CORRUPT: Final = ".corrupt"
SET_ASIDE: Final = ".set-aside"
#: Frames lost from the end of a damaged segment may have been shipped: their positions stay unused.
UNCERTAIN_POSITIONS: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIntent:
    """A call that was allowed to run and whose end is not recorded."""

    pos: int
    tenant: TenantId
    chain: str
    #: Fields of the intent that its outcome repeats.
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Positions from..to of a segment set aside that nobody can read any more."""

    segment: str
    first_pos: int
    last_pos: int


@dataclass(slots=True, kw_only=True)
class Recovered:
    source: SourceId
    previous_boot: BootId | None = None
    next_pos: int = 1
    segments: list[Segment] = field(default_factory=list)
    open_intents: dict[EventId, OpenIntent] = field(default_factory=dict)
    #: The last numbers of the previous boot that are on disk.
    last_n: dict[TenantId, int] = field(default_factory=dict)
    damage: list[Damage] = field(default_factory=list)


def recover(directory: Path, files: Files) -> Recovered:
    """Reads and, where needed, repairs a directory whose lock the caller holds. Raises OSError.

    1. drop unfinished files 2. read each segment: cut or set aside, learn numbers and open calls
    3. the source's name.
    """
    for unfinished in directory.glob(f"*{UNFINISHED}"):  # 1
        files.remove(unfinished)
    paths = sorted(directory.glob(f"*{SUFFIX}"))
    recovered = Recovered(source=read_source(directory) or new_source())
    header: Header | None = None
    unnamed = read_source(directory) is None or not paths
    if not paths:
        # Perhaps the segments were taken away: a source that counts from 1 again is another one.
        recovered.source = new_source()
    spare: dict[int, Frame] = {}
    limits = [*(_first_pos(path) for path in paths[1:]), *([None] if paths else [])]
    for path, limit in zip(paths, limits, strict=True):  # 2
        found = _Found.read(path, files)
        header = found.header or header
        _keep(recovered, found, limit, spare, files)
    if unnamed:  # 3
        if header is not None:
            recovered.source = header.source
        write_source(directory, recovered.source, files)
    if any(directory.glob(f"*{CORRUPT}")):
        recovered.next_pos += UNCERTAIN_POSITIONS
    return recovered


@dataclass(slots=True)
class _Found:
    path: Path
    header: Header | None
    scan: Scan
    size: int

    @classmethod
    def read(cls, path: Path, files: Files) -> _Found:
        size = path.stat().st_size
        data = read_all(path, size, files)
        try:
            header = Header.decode(data)
        except BadHeader:
            header = None
        return cls(path, header, scan(data, after_pos=_first_pos(path) - 1), size)


def _keep(
    recovered: Recovered, found: _Found, limit: int | None, spare: dict[int, Frame], files: Files
) -> None:
    """Frames from `limit` on were written again into the next segment: they are spares of it."""
    frames = [frame for frame in found.scan.frames if limit is None or frame.pos < limit]
    for frame in found.scan.frames[len(frames) :]:
        spare[frame.pos] = frame
    first_pos = _first_pos(found.path)
    end = frames[-1].end if frames else HEADER_BYTES
    if found.scan.corrupt or found.header is None:
        merged = {pos: frame for pos, frame in spare.items() if pos >= first_pos}
        merged |= {frame.pos: frame for frame in frames}
        frames = [merged[pos] for pos in sorted(merged) if limit is None or pos < limit]
        end = _set_aside(recovered, found, frames, files)
    elif found.scan.torn or found.size > end:
        _cut(found.path, end, files)
    if any(found.path.parent.glob(f"{found.path.stem}*{CORRUPT}")):
        # Set aside now, or by a start that ended before it could say so.
        recovered.damage += _holes(found.path.name, first_pos, limit, frames)
    last_pos = frames[-1].pos if frames else first_pos - 1
    written_ns = found.path.stat().st_mtime_ns
    recovered.segments.append(Segment(found.path, first_pos, last_pos, end, written_ns))
    recovered.next_pos = max(recovered.next_pos, first_pos, last_pos + 1)
    boot = found.header.boot if found.header is not None else _NIL_BOOT
    if boot not in {_NIL_BOOT, recovered.previous_boot}:
        recovered.previous_boot = boot
        recovered.last_n = {}
    _learn(recovered, frames)


def _holes(name: str, first_pos: int, limit: int | None, frames: list[Frame]) -> Iterator[Damage]:
    expected = first_pos
    for pos in [*(frame.pos for frame in frames), *([limit] if limit is not None else [])]:
        if pos > expected:
            yield Damage(segment=name, first_pos=expected, last_pos=pos - 1)
        expected = pos + 1
    if not frames and limit is None:  # how much it held cannot be told
        yield Damage(segment=name, first_pos=first_pos, last_pos=first_pos)


def _cut(path: Path, end: int, files: Files) -> None:
    fd = files.open(path)
    try:
        files.truncate(fd, end)
        files.sync(fd)
    finally:
        files.close(fd)


def _set_aside(recovered: Recovered, found: _Found, frames: list[Frame], files: Files) -> int:
    """The damaged file keeps its bytes under another name before its own gets what is readable."""
    path = found.path
    aside = path.with_suffix(CORRUPT)
    number = 1
    while aside.exists() and not aside.samefile(path):
        aside = path.with_suffix(f".{number}{CORRUPT}")
        number += 1
    if not aside.exists():
        files.link(path, aside)
    boot = found.header.boot if found.header is not None else _NIL_BOOT
    header = Header(source=recovered.source, boot=boot, first_pos=_first_pos(path))
    data = header.encode() + b"".join(
        encode_frame(frame.pos, frame.kind, frame.stored) for frame in frames
    )
    unfinished = path.with_suffix(UNFINISHED)
    fd = files.create(unfinished, len(data))
    try:
        files.write(fd, data, 0)
        files.sync(fd)
    finally:
        files.close(fd)
    files.rename(unfinished, path)
    files.sync_directory(path.parent)
    return len(data)


def _learn(recovered: Recovered, frames: list[Frame]) -> None:
    """The last numbers of the boot, and which calls have no outcome."""
    for frame in frames:
        try:
            entry = audit_pb2.StoredRecord.FromString(frame.stored).entry
        except DecodeError:
            continue  # its checksum holds, so it was written like that; audit will reject it
        if entry.boot == recovered.previous_boot and frame.kind is not Kind.CARRIED:
            recovered.last_n[TenantId(entry.tenant_id)] = entry.n
        match frame.kind:
            case Kind.INTENT | Kind.CARRIED:
                recovered.open_intents[EventId(entry.event_id)] = OpenIntent(
                    pos=frame.pos,
                    tenant=TenantId(entry.tenant_id),
                    chain=entry.chain,
                    fields=orjson.loads(entry.body),
                )
            case Kind.OUTCOME:
                decision = orjson.loads(entry.body).get("decision")
                recovered.open_intents.pop(decision, None)
            case Kind.RECORD:
                pass


def mark_reported(directory: Path, boot: BootId, files: Files) -> None:
    """The damage that this start found is in the records now."""
    reported = list(directory.glob(f"*{CORRUPT}"))
    for path in reported:
        files.rename(path, path.with_suffix(f".{boot}{SET_ASIDE}"))
    if reported:
        files.sync_directory(directory)


def read_all(path: Path, size: int, files: Files) -> bytes:
    fd = files.open(path)
    try:
        return files.read(fd, size, 0)
    finally:
        files.close(fd)


def _first_pos(path: Path) -> int:
    return int(path.name.split(".")[0])
