"""Secrets that come from files and go to files: never from an argument, never over another file."""

import sys
from pathlib import Path
from typing import Any

from services.cli.output import CommandFailed, Exit, emit_text, say


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


def keep_token(made: dict[str, Any], out: Path | None) -> None:
    """The token of an answer that is told once goes into the file instead, where it is there."""
    if out is not None and made.get("token"):
        write_new(out, made.pop("token"))
        made.pop("link", None)
        made["token_file"] = str(out)


def show_token(made: dict[str, Any]) -> None:
    """On stdout, where it is neither in a file nor in somebody's mail."""
    if made.get("token"):
        emit_text(made["token"])
    if made.get("link"):
        how = "or as a link" if made.get("token") else "they sign in by their provider"
        say(f"{how}: {made['link']}")
    if made.get("mailed"):
        say("they have the link by mail")


def write_new(file: Path, secret: str) -> None:
    """A 0600 file that did not exist before."""
    from services.common.postgres.embedded import write_secret  # noqa: PLC0415  # slow to import

    try:
        write_secret(file, secret + "\n")
    except OSError as failure:
        reason = "it exists" if isinstance(failure, FileExistsError) else failure.strerror
        raise CommandFailed(f"cannot write {file}: {reason}") from None
