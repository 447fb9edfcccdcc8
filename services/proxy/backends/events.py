"""Server-sent events from chunks of bytes (WHATWG HTML 9.2.6): CR, LF, CRLF, any split. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_END: Final = re.compile(rb"\r\n|\n|\r")
#: What could not be sent back as the value of a header.
_NO_ID: Final = re.compile(rb"[\x00-\x1f\x7f]")
MAX_ID: Final = 1024
RETRY_MS: Final = (100, 60_000)


class EventTooLong(Exception):
    """More bytes without an end than one event may have."""


class EventParser:
    """Feed it chunks; it yields the data of each complete event. While an event is looked at,
    `event_id` is that of the last one that had an id.
    """

    def __init__(self, max_event: int) -> None:
        self.event_id = ""
        #: How long to wait before the stream is taken up again, where the server says so.
        self.retry_ms: int | None = None
        self._id: bytes | None = None
        self._max_event = max_event
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._first = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Raises EventTooLong."""
        if not chunk:
            return
        data = self._rest + chunk
        if self._first and len(data) >= 3:
            data = data.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        start = 0
        if self._after_cr and data:
            start = 1 if data.startswith(b"\n") else 0
            self._after_cr = False
        for match in _END.finditer(data, start):
            line = data[start : match.start()]
            start = match.end()
            if line:
                self._field(line)
                continue
            if self._id is not None:
                self.event_id, self._id = self._id.decode(errors="replace"), None
            if self._data:
                yield b"\n".join(self._data)
                self._data, self._size = [], 0
        # A CR at the very end ends its line; an LF that follows belongs to it.
        self._after_cr = start == len(data) and data.endswith(b"\r")
        self._rest = data[start:]
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
        elif name == b"id":
            value = value.removeprefix(b" ")
            if len(value) <= MAX_ID and _NO_ID.search(value) is None:
                self._id = value
        elif name == b"retry":
            digits = value.removeprefix(b" ")
            if digits.isdigit() and len(digits) <= 9:
                self.retry_ms = min(max(int(digits), RETRY_MS[0]), RETRY_MS[1])
