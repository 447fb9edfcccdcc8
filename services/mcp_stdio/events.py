"""Server-sent events from chunks of bytes (WHATWG HTML 9.2.6). Pure.

Decides where an event ends; remembers the last id and the server's wish when to come back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

SHORTEST_RETRY_S: Final = 0.1
LONGEST_RETRY_S: Final = 60.0


class EventTooLong(Exception):
    """More bytes without an end than one event may have."""


class Events:
    """Feed it chunks; it yields the data of each complete event that has some."""

    def __init__(self, max_event: int) -> None:
        self._max_event = max_event
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._begun = False
        self.last_id = ""
        self.retry_s: float | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Raises EventTooLong."""
        self._rest += chunk
        if not self._begun:
            if len(self._rest) < 3 and b"\xef\xbb\xbf".startswith(self._rest):
                return
            self._begun = True
            if self._rest.startswith(b"\xef\xbb\xbf"):
                del self._rest[:3]
        # A CR at the very end may be half of a CRLF: it waits for what follows.
        waits = self._rest.endswith(b"\r")
        whole = bytes(self._rest[:-1] if waits else self._rest)
        *lines, rest = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = bytearray(rest + (b"\r" if waits else b""))
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                data, self._data, self._size = b"\n".join(self._data), [], 0
                yield data
        if self._size + len(self._rest) > self._max_event:
            raise EventTooLong

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data.append(value)
                self._size += len(value)
                if self._size > self._max_event:
                    raise EventTooLong
            case b"id" if b"\0" not in value:
                self.last_id = value.decode("utf-8", "replace")
            case b"retry" if value.isdigit() and len(value) < 10:
                self.retry_s = min(max(int(value) / 1000, SHORTEST_RETRY_S), LONGEST_RETRY_S)
            case _:
                return
