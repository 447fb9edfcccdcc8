"""What a broken or a hostile tool server answers to a call: other values, other shapes, other
requests in between, streams with wounds, HTTP that is none.

Made from the seed and the call's number alone. Each is what goes over the wire, in pieces, and
whether the connection ends with it; every answer ends by itself, so that nothing has to be waited
for.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Final

from tests.attacks.mcp.mutations import bent, spelled, tree_of
from tests.fakes.witness import HEAD, cut, event, events

Pieces = tuple[list[bytes], bool]
_REQUESTS: Final = (
    "elicitation/create", "sampling/createMessage", "roots/list", "ping", "tools/call", "x", "",
)  # fmt: skip
_NOTES: Final = (
    "notifications/progress", "notifications/message", "notifications/cancelled",
    "notifications/tools/list_changed", "notifications/resources/updated",
    "notifications/elicitation/complete", "notifications/tasks/status", "notifications/x", "",
)  # fmt: skip
#: What may be asked, and what of it may not.
_QUESTIONS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("elicitation/create", {"message": "m", "requestedSchema": {
        "type": "object", "properties": {"a": {"type": "string"}}}}),
    ("elicitation/create", {"mode": "url", "message": "m", "url": "https://good.example/x",
                            "elicitationId": "e1"}),
    ("elicitation/create", {"mode": "url", "message": "m", "url": "https://evil.example/x"}),
    ("elicitation/create", {"message": "m", "requestedSchema": {
        "properties": {"password": {"type": "string"}}}}),
    ("sampling/createMessage", {"maxTokens": 5, "messages": [
        {"role": "user", "content": {"type": "text", "text": "t"}}]}),
    ("roots/list", {}),
    ("ping", {}),
)  # fmt: skip
_GRANTED: Final = tuple(_QUESTIONS[at] for at in (0, 1, 4, 5))
_STATUSES: Final = (
    201, 202, 203, 204, 206, 301, 302, 307, 304, 400, 401, 402, 403, 404, 405, 406, 409, 413, 415,
    422, 429, 500, 501, 502, 503, 504, 599,
)  # fmt: skip
_HEADERS: Final = (
    b"content-encoding: gzip\r\n", b"content-encoding: br\r\n", b"content-encoding: identity\r\n",
    b"content-type: text/html\r\n", b"content-type: text/event-stream; charset=utf-16\r\n",
    b"set-cookie: a=b\r\n", b"location: http://169.254.169.254/\r\n", b"mcp-session-id: \xff\r\n",
    b'www-authenticate: Bearer resource_metadata="http://evil.example/"\r\n', b"x: \x01\r\n",
    b"connection: upgrade\r\nupgrade: h2c\r\n", b"x-many: 1\r\n" * 300, b"x: " + b"y" * 70_000,
    b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"no colon\r\n", b": empty\r\n",
)  # fmt: skip


def answer(seed: int, number: int, honest: bytes) -> Pieces | None:
    """None for an honest answer: some calls have to go well."""
    rng = random.Random(f"hostile:{seed}:{number}")
    chance = rng.random()
    if chance < 0.3:
        return None
    if chance < 0.5:
        tree = json.loads(honest)
        rng.choice((_asks, _becomes_a_task))(rng, tree)
        return _as_json(rng, json.dumps(tree).encode()), False
    if chance < 0.65:
        return _as_json(rng, wrong(rng, honest)), False
    if chance < 0.9:
        return _as_events(rng, honest)
    return _no_http(rng, honest)


def stream(seed: int, number: int) -> Pieces:
    """For who listens beside any call: much, and some of it wounded."""
    rng = random.Random(f"stream:{seed}:{number}")
    said = []
    for _ in range(300):
        content = spelled(rng, heard(rng), odd=False).encode("utf-8", "surrogatepass")
        said.append(event(rng, bent(rng, content) if rng.random() < 0.3 else content))
    if rng.random() < 0.3:
        said.insert(rng.randrange(300), bent(rng, said[0]))
    head = HEAD % (b"text/event-stream", b"transfer-encoding: chunked\r\n")
    chunks = [b"%x\r\n%s\r\n" % (len(one), one) for one in cut(rng, b"".join(said)) if one]
    return [head, *chunks, b"0\r\n\r\n"], False


# --- values -------------------------------------------------------------------------------------


def wrong(rng: random.Random, honest: bytes) -> bytes:
    """The answer with something in it that nobody would expect there."""
    tree = json.loads(honest)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(_CHANGES)(rng, tree)
    batch = rng.random()
    made = spelled(rng, [tree] if batch < 0.1 else tree, odd=rng.random() < 0.5)
    body = made.encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        levels = rng.choice((900, 1_100, 100_000))
        return honest.replace(b"[", b"[" * levels).replace(b"]", b"]" * levels)
    return bent(rng, body) if rng.random() < 0.3 else body


def _deep(rng: random.Random, tree: dict[str, Any]) -> None:
    inner: Any = []
    for _ in range(rng.choice((60, 190, 199, 210, 260))):
        inner = [inner] if rng.random() < 0.5 else {"a": inner}
    tree["result"] = {**_result(tree), "structuredContent": inner}


def _result(tree: dict[str, Any]) -> dict[str, Any]:
    found = tree.get("result")
    return found if isinstance(found, dict) else {}


def _error(rng: random.Random, tree: dict[str, Any]) -> None:
    tree.pop("result", None)
    code = rng.choice((-32602, -32601, -32002, -32042, -32020, 0, 4030, 2**70, "x", None, 1.5))
    tree["error"] = rng.choice((
        {"code": code, "message": rng.choice(("no", "", None, {"a": 1}, "x" * 5000))},
        {"code": code, "message": "no", "data": tree_of(rng, 3)},
        {"code": code}, {}, None, "no", [code],
    ))  # fmt: skip


def _inside(rng: random.Random, tree: dict[str, Any]) -> None:
    """A member of the result, of any kind."""
    name = rng.choice((
        "content", "isError", "structuredContent", "_meta", "resultType", "inputRequests",
        "requestState", "ttlMs", "cacheScope", "task", "nextCursor", "x",
    ))  # fmt: skip
    tree["result"] = {**_result(tree), name: tree_of(rng, 3)}


def _asks(rng: random.Random, tree: dict[str, Any]) -> None:
    """It wants to be told something first; in the era that has this, or not."""
    asked: dict[str, Any] = {}
    for at in range(rng.choice((0, 1, 1, 2, 2, 8, 9))):
        method, params = rng.choice(_QUESTIONS[:-1] if rng.random() < 0.2 else _GRANTED)
        asked[f"q{at}"] = {"method": method, "params": params}
        if rng.random() < 0.1:
            asked[f"q{at}"] = rng.choice(({"method": method}, {"params": params}, tree_of(rng, 2)))
    tree["result"] = {
        "resultType": rng.choice((*["input_required"] * 6, "task", "complete", "x", 1)),
        "inputRequests": rng.choice((asked, asked, asked, asked, tree_of(rng, 1))),
        "requestState": rng.choice(("s", "s", "s", "", None, 1, "x" * 10_000)),
    }


def _becomes_a_task(rng: random.Random, tree: dict[str, Any]) -> None:
    """Or one goes on."""
    status: Any = rng.choice((
        "working", "working", "input_required", "completed", "failed", "cancelled", "x", None, {},
        [], 1,
    ))  # fmt: skip
    made = {
        "resultType": "task", "taskId": rng.choice((*["t"] * 9, "", 1, None, "x" * 3000)),
        "status": status, "ttlMs": rng.choice((60_000, 60_000, 0, -1, None, "1", 2**70, 1.5, {})),
        "pollIntervalMs": rng.choice((5000, None, "x")), "createdAt": tree_of(rng, 1),
    }  # fmt: skip
    if rng.random() < 0.3:
        made[rng.choice(("inputRequests", "result", "error", "statusMessage"))] = tree_of(rng, 2)
    tree["result"] = made


_CHANGES: Final[tuple[Callable[[random.Random, dict[str, Any]], None], ...]] = (
    _deep,
    _error,
    _inside,
    _inside,
    _asks,
    lambda rng, tree: tree.update(
        id=rng.choice((None, 0, "1", 2**60, 1.0, True, {}, tree.get("id")))
    ),
    lambda rng, tree: tree.update(result=tree_of(rng, 3)),
    lambda rng, tree: tree.update(jsonrpc=rng.choice(("1.0", None, 2))),
    lambda rng, tree: tree.update(method=rng.choice((*_REQUESTS, *_NOTES, None))),
    lambda rng, tree: tree.pop(rng.choice(list(tree))),
    lambda _, tree: tree["result"].update(big=["x" * 1000] * 300) if _result(tree) else None,
)


# --- streams ------------------------------------------------------------------------------------


def _as_json(rng: random.Random, body: bytes) -> list[bytes]:
    head = HEAD % (b"application/json", b"content-length: %d\r\n" % len(body))
    return cut(rng, head + body)


def _as_events(rng: random.Random, honest: bytes) -> Pieces:
    """Requests and notes before the answer, and then the answer, or a wrong one, or none."""
    said = [heard(rng) for _ in range(rng.randrange(6))]
    parts = [event(rng, spelled(rng, one, odd=False).encode()) for one in said]
    chance = rng.random()
    if chance < 0.5:
        parts.append(events(rng, honest))
    elif chance < 0.8:
        parts.append(event(rng, wrong(rng, honest)))
    stream = b"".join(parts)
    if rng.random() < 0.3:
        stream = bent(rng, stream)
    chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in cut(rng, stream) if piece]
    head = HEAD % (b"text/event-stream", b"transfer-encoding: chunked\r\n")
    if rng.random() < 0.2:
        return [head, *chunks], True
    return [head, *chunks, b"0\r\n\r\n"], False


def heard(rng: random.Random) -> dict[str, Any]:
    """A request or a note; half of the requests are as they should be."""
    if rng.random() < 0.4:
        made = {"jsonrpc": "2.0", "method": rng.choice(_NOTES), "params": tree_of(rng, 2)}
        if rng.random() < 0.5:
            made["params"] = {"progressToken": rng.choice((1, "x", None, 10**9)), "progress": 1}
        return made
    method, params = rng.choice(_QUESTIONS)
    if rng.random() < 0.5:
        method = rng.choice(_REQUESTS)
        params = rng.choice((tree_of(rng, 2), {"message": "m", "requestedSchema": tree_of(rng, 2)}))
    given = rng.choice((1, 7, "q", "", None, 2**60, 1.5, "i" * 300, True))
    return {"jsonrpc": "2.0", "id": given, "method": method, "params": params}


# --- HTTP ---------------------------------------------------------------------------------------


def _no_http(rng: random.Random, honest: bytes) -> Pieces:
    """Always with the connection's end: a length that lies would have to be waited for."""
    body = rng.choice((honest, b"", b"<html>", b"{}", honest[:-1]))
    match rng.randrange(5):
        case 0:
            return [
                rng.choice((b"", b"\0" * 100, b"HTTP/1.1 abc\r\n\r\n", b"{]", b"SSH-2.0\r\n"))
            ], True
        case 1:
            length = b"content-length: %d\r\n" % rng.choice(
                (0, 1, len(body), len(body) + 10, 10**12)
            )
            return cut(rng, HEAD % (b"application/json", length) + body), True
        case 2:
            kind = rng.choice((b"application/json", b"text/event-stream"))
            chunked = HEAD % (kind, b"transfer-encoding: chunked\r\n")
            return [
                chunked,
                rng.choice((b"zz\r\n", b"-1\r\n", b"5\r\nab", b"ffffffffffffffff\r\n")),
            ], True
        case 3:
            return cut(rng, HEAD % (b"application/json", rng.choice(_HEADERS)) + body), True
        case _:
            status = b"HTTP/1.1 %d Told\r\ncontent-type: application/json\r\n" % rng.choice(
                _STATUSES
            )
            return [status + b"content-length: %d\r\n\r\n" % len(body) + body], True
