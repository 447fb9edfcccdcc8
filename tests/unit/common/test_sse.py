"""Events come out the same however the bytes were split (mcp.md 7), and as a second, naive reader
of the whole stream finds them.
"""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.common.sse import EventParser, EventTooLong

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


@pytest.mark.parametrize("first", [b"\n", b":\n", b"\n\n"])
def test_a_mark_that_does_not_begin_the_stream_is_text(first: bytes) -> None:
    assert [] == parse(first, b"\xef\xbb\xbfdata: x\n\n")
    assert [b"x"] == parse(first, b"data: x\n\n")


def test_a_long_line_in_small_pieces_is_searched_once() -> None:
    """So many pieces: whoever looks at the whole line for each of them is not done today."""
    parser = EventParser(1_000_000)
    for _ in range(400_000):
        for _event in parser.feed(b"x"):
            raise AssertionError


def test_another_stream_goes_on_after_the_last_whole_event() -> None:
    parser = EventParser(1000)
    list(parser.feed(b"id: 1\nretry: 500\ndata: a\n\nid: 2\nevent: x\ndata: half\ndata: a li"))
    parser.again()
    assert ("1", 500) == (parser.event_id, parser.retry_ms)

    told = [
        (data, parser.event_id, parser.event_type)
        for data in parser.feed(b"\xef\xbb\xbfdata: b\n\nid: 3\ndata: c\n\n")
    ]

    assert [(b"b", "1", "message"), (b"c", "3", "message")] == told


class Model:
    """A reader of a whole stream, after the words of the standard, one character at a time."""

    def __init__(self, stream: bytes) -> None:
        self.events: list[bytes] = []
        self.ids: list[bytes] = []
        self.types: list[bytes] = []
        self._data: list[bytes] = []
        self._id = self._last_id = self._type = b""
        self.retry: int | None = None
        line = b""
        at = 3 if stream[:3] == b"\xef\xbb\xbf" else 0
        while at < len(stream):
            one = stream[at : at + 1]
            at += 1
            if one not in {b"\r", b"\n"}:
                line += one
                continue
            if one == b"\r" and stream[at : at + 1] == b"\n":
                at += 1
            self._take(line)
            line = b""

    def _take(self, line: bytes) -> None:
        if line == b"":
            self._last_id = self._id
            if self._data:
                self.events.append(b"\n".join(self._data))
                self.ids.append(self._last_id)
                self.types.append(self._type or b"message")
            self._data, self._type = [], b""
            return
        name, value = line, b""
        if b":" in line:
            at = line.index(b":")
            name, value = line[:at], line[at + 1 :]
            value = value[1:] if value[:1] == b" " else value
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._type = value
        elif name == b"id" and not any(one < 32 or one == 127 for one in value):
            self._id = value
        elif name == b"retry" and value and all(chr(one) in "0123456789" for one in value):
            self.retry = min(max(int(value), 100), 60_000)


PIECES = st.sampled_from([
    b"data: ", b"data", b"data:", b"id: ", b"id", b"event: message", b"event: x", b"event", b"7",
    b"retry: ", b"DATA: ",
    b": ", b":", b" ", b"\n", b"\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"\xc3",
    b"\xa9", b"\0", b"\x7f", b'{"jsonrpc":"2.0"}', b"\x1f", b"\xe2\x80\xa8", b"\x0b", b"\x85",
])  # fmt: skip


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=30).map(b"".join), st.lists(st.integers(0, 120), max_size=8))
@example(b"\r", [])
@example(b"data: a\r\n\r\ndata: b\r\r\n", [8, 9, 10, 11])
@example(b"\xef\xbb\xbfdata: a\n\n", [1, 2])
def test_the_parser_and_a_naive_reader_agree(stream: bytes, cuts: list[int]) -> None:
    model = Model(stream)
    parser = EventParser(10_000)
    ends = [*sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    found, ids, types = [], [], []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        for event in parser.feed(stream[start:end]):
            found.append(event)
            ids.append(parser.event_id)
            types.append(parser.event_type)

    assert model.events == found
    assert [one.decode(errors="replace") for one in model.ids] == ids
    assert [one.decode(errors="replace") for one in model.types] == types
    assert model.retry == parser.retry_ms
