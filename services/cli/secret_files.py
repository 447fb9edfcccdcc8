"""Secrets that come from files and go to files: never from an argument, never over another file."""

import sys
from pathlib import Path

from services.cli.output import CommandFailed, Exit


def read_secret(file: Path) -> str:
    """The one line of a file, or of stdin for `-`."""
    try:
        text = sys.stdin.readline() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError):
        raise CommandFailed(f"cannot read {file}", status=Exit.USAGE) from None
    return text.strip()


def check_new(file: Path | None) -> None:
    """Before a secret is made that could then not be kept."""
    if file is None:
        return
    if file.exists() or file.is_symlink():
        raise CommandFailed(f"{file} exists; name a new file", status=Exit.USAGE)
    if not file.absolute().parent.is_dir():
        raise CommandFailed(f"there is no directory {file.parent}", status=Exit.USAGE)


def write_new(file: Path, secret: str) -> None:
    """A 0600 file that did not exist before."""
    from services.common.postgres.embedded import write_secret  # noqa: PLC0415  # slow to import

    try:
        write_secret(file, secret + "\n")
    except OSError as failure:
        reason = "it exists" if isinstance(failure, FileExistsError) else failure.strerror
        raise CommandFailed(f"cannot write {file}: {reason}") from None
