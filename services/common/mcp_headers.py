"""Values of headers that repeat an MCP message (2026-07-28, Streamable HTTP). Pure.

Decides how text is written in a header and read from it again. Which headers a message has, and
what follows where they do not agree with it, is for who sends or receives it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

#: Method -> the member of params that `Mcp-Name` repeats.
NAMED: Final[Mapping[str, str]] = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
#: What a header can carry as it is.
PLAIN: Final = re.compile(r"[\x20-\x7e]*")
TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DISGUISED: Final = re.compile(r"=\?base64\?(.*)\?=", re.DOTALL)


def encode(value: str) -> str:
    """As it is where a header can carry it, else disguised as base64."""
    if PLAIN.fullmatch(value) and value == value.strip() and not _DISGUISED.fullmatch(value):
        return value
    content = value.encode("utf-8", "surrogatepass")
    return f"=?base64?{base64.b64encode(content).decode()}?="


def decode(value: str) -> str | None:
    """`=?base64?..?=` opened; None where that is not canonical base64 of UTF-8, and for plain text
    that two readers could take for two texts.
    """
    match = _DISGUISED.fullmatch(value)
    if match is None:
        return value if PLAIN.fullmatch(value) else None
    try:
        content = base64.b64decode(match[1], validate=True)
        if base64.b64encode(content).decode() != match[1]:
            return None
        return content.decode()
    except (binascii.Error, ValueError):
        return None


def render(value: Any) -> str | None:
    """An argument as a header carries it; None where it has no such form."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case int() | float():
            return str(value)
        case _:
            return None


def at(arguments: Any, path: Sequence[str]) -> Any:
    """The argument in a tree of objects; None where there is none."""
    for key in path:
        if type(arguments) is not dict:
            return None
        arguments = arguments.get(key)
    return arguments
