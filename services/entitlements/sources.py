"""The installation's licence and the list of revoked ones as they are configured: by the
environment, by file (entitlements.md 3.1). Files are looked at again when they change.

A file that cannot be read is as if it were absent: no licence keeps a process from starting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from services.entitlements.license import MAX_BYTES


@dataclass(frozen=True, slots=True)
class Configured:
    """A token that nobody activated: it counts since it was issued."""

    text: str = field(repr=False)
    activated_at_s: int = 0


@dataclass(slots=True, kw_only=True)
class Sources:
    license: str = field(default="", repr=False)
    license_file: Path | None = None
    revocations_file: Path | None = None

    def licenses(self) -> tuple[Configured, ...]:
        """In the order in which they are to be tried."""
        texts = (self.license.strip(), _read(self.license_file))
        return tuple(Configured(text) for text in texts if text)

    def revocations(self) -> str:
        return _read(self.revocations_file)

    def stamp(self) -> tuple[object, ...]:
        """Another one when a file may say something else."""
        return _stamp(self.license_file), _stamp(self.revocations_file)


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            return file.read(64 * MAX_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
