"""A second reader of JSON-RPC bodies, written for the tests from RFC 8259 and mcp.md 3.1 alone.

It shares nothing with the proxy's codecs and remembers where each value stood in the text. It is
slow and says the same as the proxy, or one of the two is wrong.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
MAX_DEPTH: Final = 64
MAX_LEAVES: Final = 100_000
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_PLAIN: Final = re.compile(r'[^"\\\x00-\x1f]*')
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HEX: Final = re.compile(r"[0-9a-fA-F]{4}")
_WORDS: Final = {"true": True, "false": False, "null": None}


class Refused(Exception):
    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass(slots=True)
class Node:
    """A value; of a container, its children are nodes too. The text from `start` to `end`."""

    value: Any
    start: int = 0
    end: int = 0

    def plain(self) -> Any:
        match self.value:
            case dict() as members:
                return {key: child.plain() for key, child in members.items()}
            case list() as items:
                return [child.plain() for child in items]
            case scalar:
                return scalar


@dataclass(frozen=True, slots=True)
class Request:
    """A message that a server may look at: `kind` is request, notification or response."""

    kind: str
    id: Any
    method: str
    params: dict[str, Any]


class Reader:
    """Raises Refused."""

    def __init__(self, body: bytes) -> None:
        try:
            self.text = body.decode("utf-8", "strict")
        except UnicodeDecodeError:
            raise Refused(PARSE_ERROR, "no UTF-8") from None
        self.leaves = self.depth = 0
        self.doubled = False
        self._at = 0
        self.root = self._document()

    def _document(self) -> Node:
        """Open containers on a list of our own: their number is what an attacker chooses."""
        open_: list[Node] = []
        keys: list[str] = []
        root: Node | None = None
        while True:
            self._space()
            node, closed = self._value()
            if not open_:
                root = root or node
            elif isinstance(open_[-1].value, dict):
                members = open_[-1].value
                self.doubled |= keys[-1] in members
                members[keys.pop()] = node
            else:
                open_[-1].value.append(node)
            if not closed:
                open_.append(node)
                self.depth = max(self.depth, len(open_))
                if len(open_) > 1000:
                    raise Refused(INVALID_REQUEST, "too deep for anybody")
            if not self._next(open_, keys, first=not closed):
                self._space()
                if self._at != len(self.text) or root is None:
                    raise Refused(PARSE_ERROR, "more than one value")
                return root

    def _next(self, open_: list[Node], keys: list[str], *, first: bool) -> bool:
        """Goes to where the next value begins, closing what closes; False at the end."""
        while open_:
            node = open_[-1]
            close = "}" if isinstance(node.value, dict) else "]"
            self._space()
            if self._here() == close:
                self._at += 1
                if first:
                    self.leaves += 1
                node.end = self._at
                open_.pop()
                first = False
                continue
            if not first:
                self._expect(",")
                self._space()
            if close == "}":
                keys.append(self._string())
                self._space()
                self._expect(":")
            return True
        return False

    def _value(self) -> tuple[Node, bool]:
        start, one = self._at, self._here()
        if one in {"{", "["}:
            self._at += 1
            return Node({} if one == "{" else [], start), False
        self.leaves += 1
        if one == '"':
            return Node(self._string(), start, self._at), True
        for word, value in _WORDS.items():
            if self.text.startswith(word, start):
                self._at += len(word)
                return Node(value, start, self._at), True
        number = _NUMBER.match(self.text, start)
        if number is None:
            raise Refused(PARSE_ERROR, "no value")
        self._at = number.end()
        as_float = float(number[0])
        if math.isinf(as_float):
            raise Refused(PARSE_ERROR, "overflow")
        whole = number[1] is None and number[2] is None
        return Node(int(number[0]) if whole else as_float, start, self._at), True

    def _string(self) -> str:
        self._expect('"')
        made: list[str] = []
        while True:
            plain = _PLAIN.match(self.text, self._at)
            assert plain is not None
            made.append(plain[0])
            self._at = plain.end()
            one = self._here()
            if one == '"':
                self._at += 1
                return "".join(made)
            if one != "\\":
                raise Refused(PARSE_ERROR, "a string that does not end")
            self._at += 1
            made.append(self._escaped())

    def _escaped(self) -> str:
        one = self._here()
        self._at += 1
        if one in {'"', "\\", "/"}:
            return one
        if one in _ESCAPES:
            return _ESCAPES[one]
        if one != "u":
            raise Refused(PARSE_ERROR, "an escape of nothing")
        unit = self._unit()
        if 0xDC00 <= unit < 0xE000:
            raise Refused(PARSE_ERROR, "a lone surrogate")
        if 0xD800 <= unit < 0xDC00:
            if not self.text.startswith("\\u", self._at):
                raise Refused(PARSE_ERROR, "a lone surrogate")
            self._at += 2
            low = self._unit()
            if not 0xDC00 <= low < 0xE000:
                raise Refused(PARSE_ERROR, "a lone surrogate")
            unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)
        return chr(unit)

    def _unit(self) -> int:
        digits = _HEX.match(self.text, self._at)
        if digits is None:
            raise Refused(PARSE_ERROR, "four digits are missing")
        self._at += 4
        return int(digits[0], 16)

    def _here(self) -> str:
        return self.text[self._at : self._at + 1]

    def _space(self) -> None:
        space = _SPACE.match(self.text, self._at)
        assert space is not None
        self._at = space.end()

    def _expect(self, one: str) -> None:
        if self._here() != one:
            raise Refused(PARSE_ERROR, f"{one} is missing")
        self._at += 1


def read(body: bytes) -> Request:
    """The message that these bytes are. Raises Refused."""
    reader = Reader(body)
    if reader.doubled or reader.depth > MAX_DEPTH or reader.leaves > MAX_LEAVES:
        raise Refused(INVALID_REQUEST, "shape")
    tree = reader.root.plain()
    if not isinstance(tree, dict) or tree.get("jsonrpc") != "2.0":
        raise Refused(INVALID_REQUEST, "no JSON-RPC 2.0")
    if "id" in tree and not _good_id(tree["id"]):
        raise Refused(INVALID_REQUEST, "id")
    if "method" not in tree and "id" in tree and ("result" in tree or "error" in tree):
        return Request("response", tree["id"], "", {})
    method, params = tree.get("method"), tree.get("params", {})
    if not isinstance(method, str) or not 1 <= len(method) <= 128 or not isinstance(params, dict):
        raise Refused(INVALID_REQUEST, "method or params")
    return Request("request" if "id" in tree else "notification", tree.get("id"), method, params)


def _good_id(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= 256
    return type(value) is int and abs(value) < 2**53


def same(one: Any, other: Any) -> bool:
    """Equal in kind too: 1, 1.0 and true are three values, and so are 0.0 and -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other) if isinstance(one, float) else bool(one == other)
