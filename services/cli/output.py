"""What the command says: data on stdout, words for people on stderr, and a status that scripts can
read.
"""

import enum
import json
import sys
from collections.abc import Iterable
from typing import Any, NoReturn


class Exit(enum.IntEnum):
    """Status of the command (the same for every verb; `behavry --help` lists them)."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    DIFFERENCE = 3  # a check ran and found one
    INCOMPLETE = 4  # a check could not see all that it should
    DENIED = 5  # a policy or a rule says no, and no other role would change that
    NOT_ENTITLED = 6
    UNREACHABLE = 7
    NOT_SIGNED_IN = 8  # or the role is too low, or a machine asked what only people may
    INTERRUPTED = 130


class CommandFailed(Exception):
    """Ends the command with a status and one sentence for people."""

    def __init__(self, message: str, *, status: Exit = Exit.FAILURE) -> None:
        super().__init__(message)
        self.status = status


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def emit(data: Any) -> None:
    """One JSON value for programs."""
    print(as_json(data, indent=2), flush=True)


def emit_lines(items: Iterable[Any]) -> None:
    """One JSON value per line (NDJSON), each as soon as it is there."""
    for item in items:
        print(as_json(item), flush=True)


def as_json(data: Any, *, indent: int | None = None) -> str:
    """Readable JSON in which what cannot be seen is escaped: people look at it on a terminal, too,
    and JSON itself leaves the second block of control characters and what turns text around.
    """
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    return "".join(
        one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text
    )


def emit_text(text: str) -> None:
    """What a person asked to see."""
    print(text, flush=True)


def table(rows: list[dict[str, Any]], *columns: str) -> str:
    """Rows as aligned text, absent values as `-`."""
    cells = [[column.replace("_", " ").upper() for column in columns]]
    cells += [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, list):
        return ",".join(plain(item) for item in value)
    return plain(value)


def plain(value: object) -> str:
    """A value as one line of text: what agents and servers wrote must not drive the terminal."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(value)
    )


def leave(failure: CommandFailed) -> NoReturn:
    """End the process the way `failure` says."""
    say(str(failure))
    sys.exit(int(failure.status))
