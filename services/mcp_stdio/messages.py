"""JSON-RPC as it passes: what a line of the client is, and answers of our own. Pure.

Decides only what is needed to carry a message; whether it may be said is the gateway's decision.
The client's bytes travel as they came, so that nothing is lost in reading them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NoReturn

import orjson

MAX_LINE: Final = 16 * 1024 * 1024
PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
HEADER_MISMATCH: Final = -32020
VERSION_META: Final = "io.modelcontextprotocol/protocolVersion"

#: Our own codes (mcp.md 11) and whether asking again can help.
_FAILURES: Final = {
    "unauthenticated": (4010, False),
    "unknown_server": (4040, False),
    "rate_limited": (4290, True),
    "upstream_unreachable": (5020, True),
    "upstream_protocol": (5021, False),
}
#: An id as a key: 1 is neither "1" nor 1.0.
Key = tuple[type, Any]


class Kind(Enum):
    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    kind: Kind
    id: Any
    method: str
    params: dict[str, Any] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def version(self) -> str | None:
        """The protocol version of a modern message."""
        meta = self.params.get("_meta")
        found = meta.get(VERSION_META) if type(meta) is dict else None
        return found if type(found) is str else None


class Malformed(Exception):
    """No message that could be carried."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def parse(line: bytes) -> Message:
    """One line of the client. Raises Malformed."""
    try:
        tree = json.loads(line.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Malformed(PARSE_ERROR, "not JSON") from None
    if type(tree) is not dict:
        raise Malformed(INVALID_REQUEST, "one message at a time")
    method, given, params = tree.get("method"), tree.get("id"), tree.get("params")
    shown = params if type(params) is dict else {}
    if type(method) is str:
        if "id" not in tree:
            return Message(kind=Kind.NOTIFICATION, id=None, method=method, params=shown, body=line)
        if type(given) in {str, int}:
            return Message(kind=Kind.REQUEST, id=given, method=method, params=shown, body=line)
    elif "method" not in tree and type(given) in {str, int}:
        return Message(kind=Kind.RESPONSE, id=given, method="", params={}, body=line)
    raise Malformed(INVALID_REQUEST, "neither a request nor a notification nor an answer")


def received(raw: bytes) -> dict[str, Any] | None:
    """What the gateway sent, if it is a JSON-RPC message."""
    try:
        tree = orjson.loads(raw)
    except ValueError:
        return None
    if type(tree) is not dict:
        return None
    said = type(tree.get("method")) is str or "result" in tree or "error" in tree
    return tree if said else None


def one_line(raw: bytes) -> bytes:
    """The same JSON without line ends, which stand between its tokens only."""
    return raw.replace(b"\n", b" ").replace(b"\r", b" ").strip()


def key(id: Any) -> Key:
    return type(id), id


def error(id: Any, code: int, message: str, data: Any = None) -> bytes:
    body: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        body["data"] = data
    return answer(id, "error", body)


def failure(id: Any, reason: str) -> bytes:
    """A failure under its name, as the gateway would say it."""
    code, retryable = _FAILURES[reason]
    return error(id, code, reason, {"reason": reason, "retryable": retryable})


def answer(id: Any, member: str, value: Any) -> bytes:
    """By the standard library: an id may be an integer beyond 64 bits."""
    made = {"jsonrpc": "2.0", "id": id, member: value}
    return json.dumps(made, separators=(",", ":")).encode()


def encode(message: dict[str, Any]) -> bytes:
    return orjson.dumps(message)


def _no_number(_: str) -> NoReturn:
    raise ValueError
