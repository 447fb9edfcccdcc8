"""Event streams in any split, with ids and the wish when to come back."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mcp_stdio.events import Events, EventTooLong

STREAM = (
    b"\xef\xbb\xbf: hello\r\n\r\nid: 1\r\ndata: a\r\ndata:b\r\n\r\nretry: 250\rdata: c\r\r"
    b"event: message\ndata: \xc3\xbc\nid: 2\n\nid\ndata\n\ndata: never ended\n"
)
EXPECTED = [b"a\nb", b"c", b"\xc3\xbc", b""]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_where_a_stream_is_cut_makes_no_difference(cuts: list[int]) -> None:
    events = Events(1024)
    places = [0, *sorted(cuts), len(STREAM)]
    found = [
        data for start, end in itertools.pairwise(places) for data in events.feed(STREAM[start:end])
    ]

    assert EXPECTED == found
    assert ("", 0.25) == (events.last_id, events.retry_s)


@pytest.mark.parametrize(("told", "kept"), [(b"1", 0.1), (b"9999999", 60.0), (b"1500", 1.5)])
def test_the_wish_when_to_come_back_has_bounds(told: bytes, kept: float) -> None:
    events = Events(1024)
    list(events.feed(b"retry: " + told + b"\n\n"))

    assert kept == events.retry_s


@pytest.mark.parametrize("told", [b"retry: soon\n\n", b"retry:\n\n", b"id: a\0b\n\n"])
def test_what_a_field_cannot_be_is_left(told: bytes) -> None:
    events = Events(1024)
    list(events.feed(told))

    assert ("", None) == (events.last_id, events.retry_s)


@pytest.mark.parametrize("chunk", [b"data: " + b"x" * 2000, b"data: x\n" * 2000])
def test_an_event_without_an_end_is_too_long(chunk: bytes) -> None:
    with pytest.raises(EventTooLong):
        list(Events(1024).feed(chunk))
