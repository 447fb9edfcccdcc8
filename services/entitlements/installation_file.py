"""A small file in the state directory that says which installation this is, so that a licence can
be asked for where there is no network (`behavry license request`).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from services.common import durable_file


def write(path: Path, fingerprint: str) -> None:
    """Where it cannot be written there is none: nothing but that command reads it."""
    content = fingerprint.encode() + b"\n"
    with contextlib.suppress(OSError):
        if not path.exists() or path.read_bytes() != content:
            durable_file.replace(path, content)
