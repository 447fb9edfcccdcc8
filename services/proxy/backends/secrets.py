"""`secret://name` -> the content of a file of the data plane. The only place where one is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from services.proxy.backends.upstream import UpstreamFailed

PREFIX: Final = "secret://"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_VALUE: Final = re.compile(r"[\x20-\x7e]{1,8192}")
MAX_BYTES: Final = 64 * 1024


class Secrets:
    """Read again when the file changed; never logged, never in an error."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, tuple[int, int, str]] = {}

    def resolve(self, reference: str) -> str:
        """Raises UpstreamFailed (secret_unresolved)."""
        name = reference.removeprefix(PREFIX)
        if not reference.startswith(PREFIX) or not _NAME.fullmatch(name):
            raise UpstreamFailed("secret_unresolved", ran=False)
        path = self._directory / name
        try:
            seen = path.stat()
            known = self._known.get(name)
            if known is not None and known[:2] == (seen.st_mtime_ns, seen.st_size):
                return known[2]
            if seen.st_size > MAX_BYTES:
                raise UpstreamFailed("secret_unresolved", ran=False)
            value = path.read_text("utf-8").rstrip("\r\n")
        except (OSError, ValueError):
            raise UpstreamFailed("secret_unresolved", ran=False) from None
        self._known[name] = (seen.st_mtime_ns, seen.st_size, value)
        return value

    def header(self, reference: str) -> str:
        """A value that a header can carry. Raises UpstreamFailed."""
        value = self.resolve(reference)
        if not _VALUE.fullmatch(value):
            raise UpstreamFailed("secret_unresolved", ran=False)
        return value
