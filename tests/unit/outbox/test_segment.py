"""Frames: what was written is read back, whatever is damaged is seen, the rest is still found."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.ids import BootId, SourceId
from services.common.outbox.segment import (
    HEADER_BYTES,
    BadHeader,
    Header,
    Kind,
    encode_frame,
    scan,
)

HEADER = Header(
    source=SourceId("0190aaaa-0000-4000-8000-000000000001"),
    boot=BootId("0190aaaa-0000-7000-8000-000000000002"),
    first_pos=7,
)
RECORDS = st.lists(st.binary(max_size=60), min_size=1, max_size=8)


def segment(records: list[bytes], first_pos: int = 7) -> tuple[bytes, list[int]]:
    """Its bytes with a reserved tail, and the offset at which each frame begins."""
    data, starts = bytearray(HEADER.encode()), []
    for pos, stored in enumerate(records, start=first_pos):
        starts.append(len(data))
        data += encode_frame(pos, Kind.RECORD, stored)
    return bytes(data + bytes(100)), starts


def test_a_header_is_64_bytes_and_reads_back() -> None:
    assert HEADER_BYTES == len(HEADER.encode())
    assert HEADER == Header.decode(HEADER.encode())


@pytest.mark.parametrize("at", range(HEADER_BYTES))
def test_each_flipped_byte_of_a_header_is_seen(at: int) -> None:
    data = bytearray(HEADER.encode())
    data[at] ^= 1

    with pytest.raises(BadHeader):
        Header.decode(bytes(data))


@given(RECORDS)
def test_frames_read_back_in_order(records: list[bytes]) -> None:
    data, _ = segment(records)

    found = scan(data, after_pos=6)

    assert records == [frame.stored for frame in found.frames]
    assert list(range(7, 7 + len(records))) == [frame.pos for frame in found.frames]
    assert (False, False) == (found.torn, found.corrupt)
    assert len(data) - 100 == found.end


@settings(deadline=None)
@given(RECORDS, st.data())
def test_a_write_cut_anywhere_is_a_torn_tail(records: list[bytes], data: st.DataObject) -> None:
    whole, starts = segment(records)
    cut = data.draw(st.integers(starts[-1], len(whole) - 101))
    torn = whole[:cut] + bytes(len(whole) - cut)

    found = scan(torn, after_pos=6)

    assert records[:-1] == [frame.stored for frame in found.frames]
    assert not found.corrupt
    assert starts[-1] == found.end


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=60), min_size=3, max_size=8), st.data())
def test_damage_in_the_middle_costs_the_frame_it_hits(
    records: list[bytes], data: st.DataObject
) -> None:
    whole, starts = segment(records)
    hit = data.draw(st.integers(0, len(records) - 2))
    at = data.draw(st.integers(starts[hit], starts[hit + 1] - 1))
    bit = data.draw(st.integers(0, 7))
    damaged = bytearray(whole)
    damaged[at] ^= 1 << bit

    found = scan(bytes(damaged), after_pos=6)

    assert [r for i, r in enumerate(records) if i != hit] == [f.stored for f in found.frames]
    assert found.corrupt
    assert starts[hit] == found.end


def test_a_zeroed_page_in_the_middle_hides_nothing_behind_it() -> None:
    records = [bytes([number]) * 3000 for number in range(1, 9)]
    whole, _ = segment(records)
    damaged = whole[:4096] + bytes(4096) + whole[8192:]

    found = scan(damaged, after_pos=6)

    assert found.corrupt
    assert [7, 10, 11, 12, 13, 14] == [frame.pos for frame in found.frames]


def test_records_full_of_zeros_do_not_end_the_segment() -> None:
    records = [bytes(50), b"\x01", bytes(3)]
    data, _ = segment(records)

    assert records == [frame.stored for frame in scan(data, after_pos=6).frames]


def test_a_frame_inside_a_record_is_not_taken_for_one() -> None:
    inner = encode_frame(9, Kind.RECORD, b"planted")
    whole, starts = segment([b"first", inner * 3, b"last"])

    assert [b"first", inner * 3, b"last"] == [f.stored for f in scan(whole, after_pos=6).frames]

    # Only where the outer frame is destroyed can what it held be mistaken: it is damage anyway.
    damaged = bytearray(whole)
    damaged[starts[1] + 4] ^= 1
    assert scan(bytes(damaged), after_pos=6).corrupt


def test_positions_never_go_back() -> None:
    data = HEADER.encode() + encode_frame(7, Kind.RECORD, b"a") + encode_frame(7, Kind.RECORD, b"b")

    assert [b"a"] == [frame.stored for frame in scan(data, after_pos=6).frames]


@given(st.binary(max_size=400))
def test_noise_is_no_frame_and_no_crash(noise: bytes) -> None:
    found = scan(HEADER.encode() + noise, after_pos=6)

    assert [] == found.frames


def test_damage_in_a_full_segment_is_passed_quickly() -> None:
    chosen = random.Random(1)
    records = [chosen.randbytes(1500) for _ in range(8000)]
    whole, starts = segment(records)
    damaged = bytearray(whole)
    for hit in range(0, 8000, 100):
        damaged[starts[hit]] ^= 0x80

    found = scan(bytes(damaged), after_pos=6)

    assert 8000 - 80 == len(found.frames)
