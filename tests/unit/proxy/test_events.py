"""Events come out the same however the bytes were split (mcp.md 7)."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.proxy.backends.events import EventParser, EventTooLong

STREAM = (
    b"\xef\xbb\xbf: comment\n\ndata: one\n\nevent: message\r\ndata: two\r\ndata:  more\r\n\r\n"
    b"id: 7\rdata:three\r\rretry: 1\n\ndata\n\ndata: \xc3\xa9\n\n"
)
EVENTS = [b"one", b"two\n more", b"three", b"\xc3\xa9"]


def parse(*chunks: bytes) -> list[bytes]:
    parser = EventParser(1000)
    return [event for chunk in chunks for event in parser.feed(chunk)]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12).map(sorted))
@example([51, 51])
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    ends = [*cuts, len(STREAM)]
    chunks = [STREAM[start:end] for start, end in zip([0, *cuts], ends, strict=True)]

    assert EVENTS == [one for one in parse(*chunks) if one]


def test_byte_by_byte() -> None:
    assert EVENTS == [one for one in parse(*(bytes([byte]) for byte in STREAM)) if one]


@pytest.mark.parametrize("chunk", [b"data: " + b"x" * 1001, b"data: x\n" * 1001])
def test_an_event_without_end_is_not_gathered_for_ever(chunk: bytes) -> None:
    with pytest.raises(EventTooLong):
        parse(chunk)


def test_ids_and_the_time_to_wait_are_told_with_their_events() -> None:
    parser = EventParser(1000)
    stream = b"id: 1\nretry: 500\ndata: a\n\ndata: b\n\nid: 2\n\nid: 3\ndata: c\n\nid: 4\ndata: d\n"

    told = [(data, parser.event_id, parser.retry_ms) for data in parser.feed(stream)]

    assert [(b"a", "1", 500), (b"b", "1", 500), (b"c", "3", 500)] == told
    assert "3" == parser.event_id  # the fourth event did not end


@pytest.mark.parametrize(
    ("said", "waits"),
    [(b"1", 100), (b"99999999", 60_000), (b"-5", None), (b"soon", None), (b"9" * 5000, None)],
)
def test_the_time_to_wait_has_bounds(said: bytes, waits: int | None) -> None:
    parser = EventParser(10_000)

    list(parser.feed(b"retry: " + said + b"\n\n"))

    assert waits == parser.retry_ms


@pytest.mark.parametrize("id", [b"a\x00b", b"\x1b[2J", b"x" * 1025])
def test_an_id_that_no_header_can_carry_is_none(id: bytes) -> None:
    parser = EventParser(10_000)

    list(parser.feed(b"id: " + id + b"\ndata: x\n\n"))

    assert "" == parser.event_id
