"""Headers of agents, and headers for tool servers.

Decides whether the `Mcp-*` headers say what the body says (mcp.md 3.2), and builds what goes
upstream anew from the final body (3.3): nothing of the agent's own headers travels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.common.mcp_headers import NAMED, TOKEN, at, decode, encode, render
from services.proxy.answers import HEADER_MISMATCH, Rejection
from services.proxy.messages import INVALID_REQUEST, Message

PARAM_PREFIX: Final = b"mcp-param-"
MAX_PARAMS: Final = 16
MAX_PARAM_BYTES: Final = 1024
_SINGLE: Final = (b"mcp-protocol-version", b"mcp-method", b"mcp-name", b"mcp-session-id")
_DECIMAL: Final = re.compile(r"(-?[0-9]{1,400})(?:\.0+)?")
_TYPES: Final = ("string", "integer", "boolean")
_ONE_SCHEMA: Final = frozenset({
    "items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames",
    "unevaluatedProperties", "not", "if", "then", "else", "contentSchema",
})  # fmt: skip
_SCHEMA_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SCHEMA_MAPS: Final = frozenset({"patternProperties", "dependentSchemas", "$defs", "definitions"})

Raw = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class ParamHeader:
    """One `x-mcp-header` of a tool's schema: the argument at `path` is repeated in `name`."""

    path: tuple[str, ...]
    name: bytes
    type: str


class InvalidAnnotation(Exception):
    """A schema whose `x-mcp-header` cannot be followed; its tool leaves the lists."""


def doubled(raw: Raw) -> bool:
    """Whether a routing header came twice: two readers would see two requests."""
    seen: set[bytes] = set()
    for name, _ in raw:
        if name in _SINGLE or name.startswith(PARAM_PREFIX):
            if name in seen:
                return True
            seen.add(name)
    return False


def agree(headers: Mapping[bytes, bytes], message: Message) -> Rejection | None:
    """Modern requests: `Mcp-Method` and `Mcp-Name` must be those of the body."""
    if headers.get(b"mcp-method", b"").decode("latin-1") != message.method:
        return mismatch("Mcp-Method is not the method of the body")
    member = NAMED.get(message.method)
    if member is None:
        return None
    wanted = message.params.get(member)
    if type(wanted) is not str:
        return None  # the method's own check says what is wrong
    given = headers.get(b"mcp-name")
    if given is None or decode(given.decode("latin-1")) != wanted:
        return mismatch(f"Mcp-Name is not the {member} of the body")
    return None


def agree_params(
    expected: Sequence[ParamHeader], headers: Mapping[bytes, bytes], arguments: Mapping[str, Any]
) -> tuple[tuple[str, str], ...] | Rejection:
    """Each annotated argument and its header: both absent, or both there and equal. Answers the
    headers that no annotation knows, which travel on: few and short ones.
    """
    for one in expected:
        raw = headers.get(one.name)
        value = at(arguments, one.path)
        rendered = render(value)
        if raw is None and rendered is None:
            continue
        if raw is None or rendered is None:
            return mismatch("an Mcp-Param header and its argument do not come together")
        given = decode(raw.decode("latin-1"))
        if given is None or not _equal(one.type, value, rendered, given):
            return mismatch("an Mcp-Param header is not its argument")
    return _unknown({one.name for one in expected}, headers)


def _unknown(
    known: set[bytes], headers: Mapping[bytes, bytes]
) -> tuple[tuple[str, str], ...] | Rejection:
    found: list[tuple[str, str]] = []
    for name, raw in headers.items():
        if not name.startswith(PARAM_PREFIX) or name in known:
            continue
        if len(found) == MAX_PARAMS or len(raw) > MAX_PARAM_BYTES:
            return Rejection(
                status=431,
                code=INVALID_REQUEST,
                message="too many or too long Mcp-Param headers",
                reason="headers_too_large",
            )
        value = decode(raw.decode("latin-1"))
        if value is None:
            return mismatch("an Mcp-Param header is badly encoded")
        found.append((name.decode("latin-1"), encode(value)))
    return tuple(found)


def mismatch(rule: str) -> Rejection:
    return Rejection(status=400, code=HEADER_MISMATCH, message=rule, reason="header_mismatch")


def annotated(schema: Any) -> tuple[ParamHeader, ...]:
    """The `x-mcp-header`s of a tool's input schema. Raises InvalidAnnotation."""
    found: dict[bytes, ParamHeader] = {}
    for path, node in _positions(schema):
        if "x-mcp-header" not in node:
            continue
        token, kind = node["x-mcp-header"], node.get("type")
        if not path or type(token) is not str or not TOKEN.fullmatch(token) or kind not in _TYPES:
            raise InvalidAnnotation
        name = PARAM_PREFIX + token.lower().encode()
        if name in found:
            raise InvalidAnnotation
        found[name] = ParamHeader(path, name, kind)
    return tuple(found.values())


def param_headers(
    expected: Sequence[ParamHeader], arguments: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """What goes upstream, made from the final arguments."""
    for one in expected:
        rendered = render(at(arguments, one.path))
        if rendered is not None:
            yield one.name.decode(), encode(rendered)


def _equal(kind: str, value: Any, rendered: str, given: str) -> bool:
    if kind == "integer" and type(value) in {int, float} and value == value // 1:
        number = _DECIMAL.fullmatch(given)
        return number is not None and int(number[1]) == int(value)
    return given == rendered


def _positions(root: Any) -> Iterator[tuple[tuple[str, ...] | None, dict[str, Any]]]:
    """Every place of a schema; None as path where it is not reached by `properties` alone."""
    stack: list[tuple[tuple[str, ...] | None, Any]] = [((), root)]
    while stack:
        path, node = stack.pop()
        if type(node) is not dict:
            continue
        yield path, node
        for key, value in node.items():
            if key == "properties" and type(value) is dict:
                stack.extend(
                    (None if path is None else (*path, name), sub) for name, sub in value.items()
                )
            elif key in _ONE_SCHEMA:
                stack.append((None, value))
            elif key in _SCHEMA_LISTS and type(value) is list:
                stack.extend((None, sub) for sub in value)
            elif key in _SCHEMA_MAPS and type(value) is dict:
                stack.extend((None, sub) for sub in value.values())
