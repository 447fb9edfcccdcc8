"""Headers that repeat a modern message (2026-07-28, Streamable HTTP; mcp.md 3.2). Pure.

Decides what they say. That they agree with the body is the gateway's to check; a tool whose
annotations are wrong never reaches a client.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.mcp_stdio.messages import Message

#: Method -> the member of params that `Mcp-Name` repeats.
_NAMED: Final = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
_PLAIN: Final = re.compile(r"[\x20-\x7e]*")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
_DISGUISED: Final = re.compile(r"=\?base64\?.*\?=", re.DOTALL)
_MAX_DEPTH: Final = 16


@dataclass(frozen=True, slots=True)
class Param:
    """The argument at `path` is repeated in the header `name`."""

    path: tuple[str, ...]
    name: str


def modern(message: Message, version: str, params: tuple[Param, ...]) -> dict[str, str]:
    """`params`: what the called tool's schema wants repeated."""
    plain = {"MCP-Protocol-Version": version, "Mcp-Method": message.method}
    # What no header can carry is left out: the gateway says what is wrong.
    made = {name: value for name, value in plain.items() if value and _PLAIN.fullmatch(value)}
    named = message.params.get(_NAMED.get(message.method, ""))
    if type(named) is str:
        made["Mcp-Name"] = encoded(named)
    if message.method == "tools/call":
        arguments = message.params.get("arguments")
        for one in params:
            rendered = _rendered(_at(arguments, one.path))
            if rendered is not None:
                made[one.name] = encoded(rendered)
    return made


def encoded(value: str) -> str:
    """As it is where a header can carry it, else disguised as base64."""
    if _PLAIN.fullmatch(value) and value == value.strip() and not _DISGUISED.fullmatch(value):
        return value
    content = value.encode("utf-8", "surrogatepass")
    return f"=?base64?{base64.b64encode(content).decode()}?="


def annotated(schema: Any) -> tuple[Param, ...]:
    """The `x-mcp-header`s of a tool's input schema."""
    return tuple(_annotations(schema, ()))


def _annotations(schema: Any, path: tuple[str, ...]) -> Iterator[Param]:
    if type(schema) is not dict or len(path) > _MAX_DEPTH:
        return
    token = schema.get("x-mcp-header")
    if path and type(token) is str and _TOKEN.fullmatch(token):
        yield Param(path, f"Mcp-Param-{token}")
    properties = schema.get("properties")
    if type(properties) is dict:
        for name, part in properties.items():
            yield from _annotations(part, (*path, name))


def _at(arguments: Any, path: tuple[str, ...]) -> Any:
    found: Any = arguments
    for step in path:
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _rendered(value: Any) -> str | None:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case int() | float():
            return str(value)
        case _:
            return None
