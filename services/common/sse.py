"""Server-sent events from chunks of bytes (WHATWG HTML 9.2.6): CR, LF, CRLF, any split. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_BOM: Final = b"\xef\xbb\xbf"
_END: Final = re.compile(rb"\r\n|\n|\r")
#: What could not be sent back as the value of a header.
_NO_ID: Final = re.compile(rb"[\x00-\x1f\x7f]")
MAX_ID: Final = 1024
MESSAGE: Final = "message"
RETRY_MS: Final = (100, 60_000)


class EventTooLong(Exception):
    """More bytes without an end than one event may have."""


class EventParser:
    """Feed it chunks; it yields the data of each complete event. While an event is looked at,
    `event_id` is that of the last one that had an id, and `event_type` its own, `message` unless it
    says another one.
    """

    def __init__(self, max_event: int) -> None:
        self.event_id = ""
        self.event_type = MESSAGE
        self._type = MESSAGE
        #: How long to wait before the stream is taken up again, where the server says so.
        self.retry_ms: int | None = None
        self._id: bytes | None = None
        self._max_event = max_event
        #: The line that has not ended yet. Only new bytes are searched for its end: a server may
        #: send a long one byte by byte.
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        #: What may become a byte order mark; None when the stream has begun.
        self._mark: bytes | None = b""
        self._after_cr = False

    def again(self) -> None:
        """Another stream follows, which goes on where this one broke off: after the last event
        that was whole.
        """
        self._rest.clear()
        self._data, self._size = [], 0
        self._id, self._type = None, MESSAGE
        self._mark, self._after_cr = b"", False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Raises EventTooLong."""
        if self._mark is not None:
            chunk = self._mark + chunk
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._mark = chunk
                return
            self._mark, chunk = None, chunk.removeprefix(_BOM)
        if not chunk:
            return
        # A CR at the very end ended its line; an LF that follows belongs to it.
        start = 1 if self._after_cr and chunk.startswith(b"\n") else 0
        self._after_cr = chunk.endswith(b"\r")
        for match in _END.finditer(chunk, start):
            line = chunk[start : match.start()]
            start = match.end()
            if self._rest:
                line = bytes(self._rest) + line
                self._rest.clear()
            if line:
                self._field(line)
                continue
            if self._id is not None:
                self.event_id, self._id = self._id.decode(errors="replace"), None
            self.event_type, self._type = self._type, MESSAGE
            if self._data:
                yield b"\n".join(self._data)
                self._data, self._size = [], 0
        self._rest += chunk[start:]
        if self._size + len(self._rest) > self._max_event:
            raise EventTooLong

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._size += len(value)
            if self._size > self._max_event:
                raise EventTooLong
        elif name == b"event":
            self._type = value.removeprefix(b" ").decode(errors="replace") or MESSAGE
        elif name == b"id":
            value = value.removeprefix(b" ")
            if len(value) <= MAX_ID and _NO_ID.search(value) is None:
                self._id = value
        elif name == b"retry":
            digits = value.removeprefix(b" ")
            if digits.isdigit() and len(digits) <= MAX_ID:
                self.retry_ms = min(max(int(digits), RETRY_MS[0]), RETRY_MS[1])
