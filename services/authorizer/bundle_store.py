"""The last good bundles on disk, so that a restart without control serves the same decisions.

Write, fsync, atomic rename, 0600; five are kept. What is read back is verified like a fetched one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.common import durable_file

KEPT: Final = 5


@dataclass(frozen=True, slots=True)
class Marks:
    """What must survive a restart beside the bundles. Times are Unix seconds."""

    max_serial: int = 0
    digest: str = ""
    confirmed_s: int = 0
    clock_mark_s: int = 0


class BundleStore:
    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory

    def keep(self, serial: int, archive: bytes, marks: Marks) -> None:
        durable_file.replace(self._directory / f"{serial:020d}.tar.gz", archive)
        self.mark(marks)
        for old in self._archives()[:-KEPT]:
            old.unlink(missing_ok=True)

    def mark(self, marks: Marks) -> None:
        document = {name: getattr(marks, name) for name in Marks.__slots__}
        durable_file.replace(self._directory / "marks.json", json.dumps(document).encode())

    def marks(self) -> Marks:
        """The stored marks; empty ones where none can be read."""
        try:
            return Marks(**json.loads((self._directory / "marks.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return Marks()

    def newest_first(self) -> Iterator[bytes]:
        for path in reversed(self._archives()):
            yield path.read_bytes()

    def oldest_serial(self) -> int:
        """The oldest bundle that a restart could fall back to; 0 where there is none."""
        archives = self._archives()
        return int(archives[0].name.partition(".")[0]) if archives else 0

    def _archives(self) -> list[Path]:
        return sorted(self._directory.glob("*.tar.gz"))
