"""Questions to the person at the terminal: a password, a yes, the name of what is about to end.

Decides when nobody may be asked (`--no-input`, or no terminal) and what then has to be said
instead. A secret comes from a prompt, a file or stdin; it is never an argument.
"""

import sys
from contextvars import ContextVar
from pathlib import Path

from services.cli.output import CommandFailed, Exit, say

#: False after `--no-input`.
ALLOWED: ContextVar[bool] = ContextVar("asking_allowed", default=True)


def may_ask() -> bool:
    """Whether somebody sits there who can answer."""
    return ALLOWED.get() and sys.stdin is not None and sys.stdin.isatty()


def consent(question: str, *, given: bool, flag: str = "--yes") -> None:
    """Go on only with a yes, given beforehand or now."""
    if given:
        return
    if not may_ask():
        raise CommandFailed(f"{question} Nobody can be asked: say {flag}", status=Exit.USAGE)
    if _answer(f"{question} [y/N] ").lower() not in {"y", "yes"}:
        raise CommandFailed("nothing was done")


def confirmed(name: str, *, given: str | None, what: str) -> None:
    """Go on only when the name of what is meant was typed: `--confirm NAME`, or now."""
    if given is None and may_ask():
        given = _answer(f"{what} Type {name!r} to go on: ")
    if given is None:
        raise CommandFailed(f"{what} Say it with --confirm {name}", status=Exit.USAGE)
    if given != name:
        raise CommandFailed(f"{given!r} is not {name!r}: nothing was done", status=Exit.USAGE)


def secret(prompt: str, *, file: Path | None) -> str:
    """A password from `file` (`-`: stdin), or from the terminal without an echo."""
    if file is not None:
        return _from(file)
    if not may_ask():
        raise CommandFailed(
            "nobody can be asked for the password: name a file that holds it with"
            " --password-file (- is stdin)",
            status=Exit.USAGE,
        )
    import getpass  # noqa: PLC0415  # most commands never ask

    return getpass.getpass(prompt, stream=sys.stderr)


def code(prompt: str) -> str:
    """A one-time code: good for half a minute, so nobody keeps it in a file."""
    if not may_ask():
        raise CommandFailed("nobody can be asked for a one-time code", status=Exit.NOT_SIGNED_IN)
    return _answer(prompt)


def _from(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.readline().rstrip("\r\n")
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        raise CommandFailed(f"cannot read the password in {file}", status=Exit.USAGE) from None
    return lines[0] if lines else ""


def _answer(question: str) -> str:
    """The question goes to stderr: stdout is for data."""
    sys.stderr.write(question)
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer:
        say("")
    return answer.strip()
