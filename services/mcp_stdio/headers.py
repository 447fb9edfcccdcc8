"""Headers that repeat a modern message (2026-07-28, Streamable HTTP; mcp.md 3.2). Pure.

Decides what they say. That they agree with the body is the gateway's to check; a tool whose
annotations are wrong never reaches a client.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from services.common.mcp_headers import NAMED, PLAIN, TOKEN, at, encode, render
from services.mcp_stdio.messages import Message

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
    made = {name: value for name, value in plain.items() if value and PLAIN.fullmatch(value)}
    named = message.params.get(NAMED.get(message.method, ""))
    if type(named) is str:
        made["Mcp-Name"] = encode(named)
    if message.method == "tools/call":
        arguments = message.params.get("arguments")
        for one in params:
            rendered = render(at(arguments, one.path))
            if rendered is not None:
                made[one.name] = encode(rendered)
    return made


def annotated(schema: Any) -> tuple[Param, ...]:
    """The `x-mcp-header`s of a tool's input schema."""
    return tuple(_annotations(schema, ()))


def _annotations(schema: Any, path: tuple[str, ...]) -> Iterator[Param]:
    if type(schema) is not dict or len(path) > _MAX_DEPTH:
        return
    token = schema.get("x-mcp-header")
    if path and type(token) is str and TOKEN.fullmatch(token):
        yield Param(path, f"Mcp-Param-{token}")
    properties = schema.get("properties")
    if type(properties) is dict:
        for name, part in properties.items():
            yield from _annotations(part, (*path, name))
