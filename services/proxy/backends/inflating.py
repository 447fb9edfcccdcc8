"""Compressed answers, though none was asked for: inflated a little at a time (mcp.md 10.2). Pure.

Decides how much a byte may become. How large an answer may be is for whoever gathers it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

MAX_RATIO: Final = 100
PIECE: Final = 64 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS
_WINDOWS: Final = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS}


class NotInflated(Exception):
    """A bomb, or nothing that was ever compressed."""


class Inflater:
    """Of one body. Raises NotInflated for an encoding that is not taken."""

    def __init__(self, encoding: str) -> None:
        window = _WINDOWS.get(encoding.strip().lower())
        if window is None:
            raise NotInflated
        self._window = window
        self._inflate: zlib._Decompress | None = None
        self._taken = self._given = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Pieces of at most 64 KiB. Raises NotInflated, after what was in order."""
        if not chunk:
            return
        if self._inflate is None:
            self._inflate = zlib.decompressobj(self._of(chunk[0]))
        self._taken += len(chunk)
        piece, rest = b"", chunk
        while rest or len(piece) == PIECE:  # a full piece may have left more inside
            try:
                piece = self._inflate.decompress(rest, PIECE)
            except zlib.error:
                raise NotInflated from None
            if self._inflate.unused_data:
                raise NotInflated  # more after the end
            self._given += len(piece)
            if self._given > self._taken * MAX_RATIO:
                raise NotInflated
            if piece:
                yield piece
            rest = self._inflate.unconsumed_tail

    def _of(self, first: int) -> int:
        """`deflate` comes with zlib's header, as it should, or without."""
        bare = self._window == zlib.MAX_WBITS and first & 0x0F != zlib.DEFLATED
        return -zlib.MAX_WBITS if bare else self._window
