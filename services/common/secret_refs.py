"""`secret://name` -> the content of a file of this installation. The only place where one is read.

A reference may be stored, shown and logged; a value is held in memory, and is in no error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PREFIX: Final = "secret://"
#: What a reference looks like where people write one.
REFERENCE: Final = r"^secret://[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$"
MAX_BYTES: Final = 64 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class SecretUnresolved(Exception):
    """There is no such file, or none that can be a secret. Says neither which nor why."""

    def __init__(self) -> None:
        super().__init__("a secret reference does not resolve")


class SecretFiles:
    """Read again when the file changed; never logged, never in an error."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, tuple[int, int, str]] = {}

    def path(self, reference: str) -> Path:
        """Where it would be, for what reads files alone. Raises SecretUnresolved."""
        name = reference.removeprefix(PREFIX)
        if not reference.startswith(PREFIX) or not _NAME.fullmatch(name):
            raise SecretUnresolved
        return self._directory / name

    def resolve(self, reference: str) -> str:
        """Raises SecretUnresolved."""
        path = self.path(reference)
        name = path.name
        try:
            seen = path.stat()
            known = self._known.get(name)
            if known is not None and known[:2] == (seen.st_mtime_ns, seen.st_size):
                return known[2]
            if seen.st_size > MAX_BYTES:
                raise SecretUnresolved
            value = path.read_text("utf-8").rstrip("\r\n")
        except (OSError, ValueError):
            raise SecretUnresolved from None
        self._known[name] = (seen.st_mtime_ns, seen.st_size, value)
        return value
