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
