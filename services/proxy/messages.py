"""Bytes to one JSON-RPC message, strictly (mcp.md 3.1), and trees back to bytes.

Decides what is well-formed. Two readers of one text must never see two messages, so duplicate keys,
odd numbers and excessive shapes are refused here; what a method means is for others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

import msgspec
import orjson

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603

MAX_DEPTH: Final = 64
#: Of what tool servers say; deeper trees could be read and not be written again.
MAX_UPSTREAM_DEPTH: Final = 200
#: How deep the codec writes.
_WRITES: Final = 254
#: Messages of a tool server in one.
MAX_BATCH: Final = 1_000
MAX_LEAVES: Final = 100_000
MAX_METHOD: Final = 128
MAX_ID_TEXT: Final = 256
MAX_ID_NUMBER: Final = 2**53 - 1

# orjson makes floats of integers that do not fit 64 bits: a float of this size may be one, and then
# the standard codec reads the text again, which keeps integers exact.
_HUGE: Final = float(2**63)
# Integers that do not fit 64 bits have as many digits. They are looked for with every digit made a
# zero: two passes in C, which take a sixth of what a pattern takes.
_LONG: Final = b"0" * 19
_AS_ZERO: Final = bytes.maketrans(b"123456789", b"000000000")
# Matches at every key and, rarely, inside a string: never fewer than there are keys.
_KEY_ENDS: Final = re.compile(rb'"[ \t\r\n]*:')
_CONTAINERS: Final = frozenset({dict, list})

Json = Any


class Kind(Enum):
    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"


class Malformed(Exception):
    """Not a message that may be looked at. The text names the rule, never the content."""

    def __init__(self, code: int, rule: str, id: Json = None) -> None:
        super().__init__(rule)
        self.code = code
        self.rule = rule
        self.id = id


class Message(msgspec.Struct, frozen=True):
    kind: Kind
    id: int | str | None
    method: str
    params: dict[str, Json]
    has_params: bool
    #: Of a response, one of the two; anything else than an object is None.
    result: dict[str, Json] | None = None
    error: dict[str, Json] | None = None


class Shape(msgspec.Struct, frozen=True):
    keys: int
    leaves: int
    depth: int
    #: A float that may have been an integer too long for 64 bits.
    huge: bool


class _Duplicate(Exception):
    pass


def parse(body: bytes) -> Message:
    """1. bytes to a tree  2. its size  3. duplicate keys  4. long integers  5. the envelope.
    Raises Malformed.
    """
    tree = _loads(body)  # 1
    try:
        shape = measure(tree)  # 2
        # As many colons as keys: no room for another key. Else the text is looked at closely.
        if body.count(b":") != shape.keys and len(_KEY_ENDS.findall(body)) != shape.keys:  # 3
            _refuse_duplicates(body)
    except Malformed as malformed:
        malformed.id = _echo(tree)
        raise
    return _envelope(_exactly(body) if shape.huge else tree)  # 4, 5


def decode(body: bytes) -> Json:
    """Any JSON value that can be written again; integers of any size stay exact. Of a key that
    occurs twice, the last counts. Raises Malformed.
    """
    tree = _loads(body)
    if body.count(b"{") + body.count(b"[") > MAX_UPSTREAM_DEPTH and not _shallow(tree):
        raise Malformed(INVALID_REQUEST, "nested too deeply")
    return _exactly(body) if _LONG in body.translate(_AS_ZERO) and _has_huge(tree) else tree


def split(tree: Json) -> Sequence[Json]:
    """A message, or those of a batch of 2025-03-26; of one with too many there is none to read."""
    if type(tree) is not list:
        return (tree,)
    return tree if len(tree) <= MAX_BATCH else (None,)


def encode(tree: Json, *, sort: bool = False) -> bytes:
    """Compact UTF-8. With `sort`, the canonical form: keys in code point order, every value written
    alike wherever it stands.
    """
    option = orjson.OPT_SORT_KEYS if sort else None
    try:
        return orjson.dumps(tree, option=option)
    except orjson.JSONEncodeError:
        return orjson.dumps(_writable(tree), option=option)


def measure(tree: Json, *, max_depth: int = MAX_DEPTH, max_leaves: int = MAX_LEAVES) -> Shape:
    """How big a tree is. Raises Malformed (-32600) over the limits."""
    keys = leaves = depth = 0
    huge = type(tree) is float and abs(tree) >= _HUGE
    level = [tree] if type(tree) in _CONTAINERS else []
    while level:
        depth += 1
        if depth > max_depth:
            raise Malformed(INVALID_REQUEST, "nested too deeply")
        below: list[Json] = []
        for node in level:
            if type(node) is dict:
                keys += len(node)
                children = node.values()
            else:
                children = node
            if not children:
                leaves += 1
            if leaves + len(below) + len(children) > 2 * max_leaves:
                raise Malformed(INVALID_REQUEST, "too many values")  # however they are spread
            for child in children:
                kind = type(child)
                if kind in _CONTAINERS:
                    below.append(child)
                    continue
                leaves += 1
                if kind is float and abs(child) >= _HUGE:
                    huge = True
        if leaves > max_leaves or len(below) > max_leaves:
            raise Malformed(INVALID_REQUEST, "too many values")
        level = below
    return Shape(keys, leaves, depth, huge)


def valid_id(value: Json) -> bool:
    if type(value) is int:
        return -MAX_ID_NUMBER <= value <= MAX_ID_NUMBER
    return type(value) is str and len(value) <= MAX_ID_TEXT


def _envelope(tree: Json) -> Message:
    if type(tree) is not dict:
        # A batch would be several decisions in one body.
        raise Malformed(INVALID_REQUEST, "the body must be one JSON-RPC object")
    echo = _echo(tree)
    if tree.get("jsonrpc") != "2.0":
        raise Malformed(INVALID_REQUEST, 'jsonrpc must be "2.0"', echo)
    if "id" in tree and not valid_id(tree["id"]):
        raise Malformed(INVALID_REQUEST, "id must be an integer within 2^53-1 or a short string")
    if "method" not in tree and "id" in tree and ("result" in tree or "error" in tree):
        if "result" in tree and "error" in tree:
            raise Malformed(INVALID_REQUEST, "a response is a result or an error", echo)
        result, error = (
            tree[one] if type(tree.get(one)) is dict else None for one in ("result", "error")
        )
        return Message(Kind.RESPONSE, echo, "", {}, has_params=False, result=result, error=error)
    method = tree.get("method")
    if type(method) is not str or not 1 <= len(method) <= MAX_METHOD:
        raise Malformed(INVALID_REQUEST, "method must be a string of 1 to 128", echo)
    params = tree.get("params", {})
    if type(params) is not dict:
        raise Malformed(INVALID_REQUEST, "params must be an object", echo)
    kind = Kind.REQUEST if "id" in tree else Kind.NOTIFICATION
    return Message(kind, echo, method, params, has_params="params" in tree)


def _echo(tree: Json) -> int | str | None:
    """The id that an error answer may repeat."""
    if type(tree) is dict and valid_id(tree.get("id")):
        found: int | str = tree["id"]
        return found
    return None


def _refuse_duplicates(body: bytes) -> None:
    try:
        json.loads(body, object_pairs_hook=_unique)
    except _Duplicate:
        raise Malformed(INVALID_REQUEST, "a key occurs twice in one object") from None


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Duplicate
    return made


def _loads(body: bytes) -> Json:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as bad:
        if str(bad).startswith("depth limit"):
            raise Malformed(INVALID_REQUEST, "nested too deeply") from None
        raise Malformed(PARSE_ERROR, "invalid JSON") from None


def _shallow(tree: Json) -> bool:
    """Whether it can be written with something around it. The codec tells, which is much faster
    than to walk there: a server may say millions of values at once.
    """
    for _ in range(_WRITES - MAX_UPSTREAM_DEPTH):
        tree = [tree]
    try:
        orjson.dumps(tree)
    except orjson.JSONEncodeError:
        return False
    return True


def _writable(tree: Json) -> Json:
    """The same tree with its integers beyond 64 bits as text, which the codec copies."""
    match tree:
        case dict():
            return {key: _writable(value) for key, value in tree.items()}
        case list():
            return [_writable(value) for value in tree]
        case int() if not -_HUGE <= tree < 2 * _HUGE:
            return orjson.Fragment(str(int(tree)))
        case _:
            return tree


def _has_huge(tree: Json) -> bool:
    waiting = [tree]
    for node in waiting:  # grows while it is walked
        kind = type(node)
        if kind is dict:
            waiting.extend(node.values())
        elif kind is list:
            waiting.extend(node)
        elif kind is float and abs(node) >= _HUGE:
            return True
    return False


def _exactly(body: bytes) -> Json:
    """The same tree with its integers whole. Only for what the strict codec took already: this one
    takes more than JSON.
    """
    return json.loads(body.decode())
