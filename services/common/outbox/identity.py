"""Who an outbox directory is: the stable UUID of its source, kept beside its segments."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Final

from services.common.ids import SourceId, is_uuid
from services.common.outbox.files import Files

NAME: Final = "source.json"


def read_source(directory: Path) -> SourceId | None:
    """None when there is none, or none that can be read."""
    try:
        stored = json.loads((directory / NAME).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    source = stored.get("source") if isinstance(stored, dict) else None
    return SourceId(source) if isinstance(source, str) and is_uuid(source) else None


def write_source(directory: Path, source: SourceId, files: Files) -> None:
    """Whole or not at all. Raises OSError."""
    unfinished = directory / f"{NAME}.new"
    if unfinished.exists():
        files.remove(unfinished)
    content = json.dumps({"v": 1, "source": source}).encode()
    fd = files.create(unfinished, 0)
    try:
        files.write(fd, content, 0)
        files.sync(fd)
    finally:
        files.close(fd)
    files.rename(unfinished, directory / NAME)
    files.sync_directory(directory)


def new_source() -> SourceId:
    return SourceId(str(uuid.uuid4()))
