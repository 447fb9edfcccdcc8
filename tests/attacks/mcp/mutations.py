"""Calls as agents send them, and what becomes of them in the hands of chance.

A case is made from its seed and number alone, so that any of them can be made again. Some cases are
good calls in odd spellings, some are wrong in their structure, some in a few bytes.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from services.common.mcp_headers import NAMED
from tests.fakes import mcp_wire as wire

TOOLS: Final = ("read_note", "write_note")
HIDDEN: Final = "drop_notes"
META: Final = {
    wire.VERSION_META: wire.MODERN,
    wire.CLIENT_META: {"name": "fuzz", "version": "1"},
    wire.CAPABILITIES_META: {},
}
#: What an agent may declare that it can be asked.
EVERYTHING: Final[dict[str, Any]] = {
    "elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}, "context": {}},
    "roots": {"listChanged": True}, "extensions": {"io.modelcontextprotocol/tasks": {}},
}  # fmt: skip
_OTHERS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("prompts/list", {}), ("resources/list", {}), ("resources/templates/list", {}),
    ("prompts/get", {"name": "p", "arguments": {"a": "x"}}), ("resources/read", {"uri": "file:///a"}),
    ("completion/complete", {"ref": {"type": "ref/prompt", "name": "p"},
                             "argument": {"name": "a", "value": "x"}}),
    ("logging/setLevel", {"level": "debug"}), ("resources/subscribe", {"uri": "file:///a"}),
    ("resources/unsubscribe", {"uri": "file:///a"}), ("tools/list", {}), ("server/discover", {}),
)  # fmt: skip
_INTEGERS: Final = (
    0, 1, -1, 2**31, 2**53 - 1, 2**53, -(2**53), 2**63 - 1, 2**63, -(2**63), -(2**63) - 1,
    2**64 - 1, 2**64, 10**30, -(10**40), 7 * 10**300,
)  # fmt: skip
_FLOATS: Final = (0.0, -0.0, 1.0, 0.1, 1e22, 1e-7, 5e-324, 1.7976931348623157e308, -2.5e15, 1e16)
_TEXTS: Final = (
    "", "a", "call", '":"', '\\":', '","b":1', "\u00e9", "\u4e2d\u6587", "\U0001f600", "\u2028",
    "\x7f", "\u0000", "\ufeff", "\ufffd", "=?base64?YQ==?=", "../../etc/passwd", "__proto__",
    "constructor", "x" * 300, "{}", "null", "NaN", "\r\n", "\t", "</script>", "\ud7ff", "\ue000",
)  # fmt: skip
#: What is put into a text somewhere; few of them leave it valid.
_TOKENS: Final = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"NaN", b"Infinity",
    b"-", b"1e999", b"1e", b"0x1", b"01", b"1.", b".5", b"\\u", b"\\ud800", b"\\udc00", b"\\u0000",
    b"\\x", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x00", b"\x1f", b"/**/", b"'",
    b'"a":1,"a":2', b'"id":2,', b'"method":"tools/list",', b'"name":"drop_notes",', b"\r", b"\n",
    b'"jsonrpc":"1.0",', b"9" * 25, b"9" * 400, b"\xf4\x90\x80\x80", b"\xc2", b"\x85",
)  # fmt: skip
_IDS: Final[tuple[Any, ...]] = (
    0, 1, -1, "", "x", "\u00e9" * 256, "i" * 257, 2**53 - 1, 2**53, -(2**53) + 1, -(2**53), 1.0,
    1.5, None, True, [], {}, 10**30, "1",
)  # fmt: skip
_METHODS: Final = (
    "tools/call", "Tools/Call", "tools/call ", "", "m" * 128, "m" * 129, None, 1, ["tools/call"],
    "tools/list", "x", "\u00e9", "ping", "tools/call\u0000", "notifications/cancelled",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`modern` agents name version and method in headers, the others a session."""

    number: int
    server: str
    modern: bool
    headers: tuple[tuple[str, str], ...]
    body: bytes


def case(seed: int, number: int, servers: tuple[str, ...]) -> Case:
    """The same for the same arguments, on any machine."""
    rng = random.Random(f"{seed}:{number}")
    modern = rng.random() < 0.6
    tree = _call(rng, number, modern=modern)
    headers = _headers(rng, tree["params"]["name"]) if modern else ()
    if rng.random() < 0.4:
        rng.choice(_STRUCTURAL)(rng, tree)
    text = spelled(rng, tree, odd=rng.random() < 0.5)
    if rng.random() < 0.15:
        text = _doubled(rng, text)
    body = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.4:
        body = bent(rng, body)
    return Case(
        number=number, server=rng.choice(servers), modern=modern, headers=headers, body=body
    )


def good(seed: int, number: int, servers: tuple[str, ...]) -> Case:
    """A call that runs, of an agent that declares more or less; now and then another request."""
    rng = random.Random(f"good:{seed}:{number}")
    modern = rng.random() < 0.6
    method = "tools/call"
    params: dict[str, Any] = {"name": rng.choice(TOOLS), "arguments": {"call": str(number)}}
    if rng.random() < 0.2:
        method, params = rng.choice(_OTHERS)
        params = dict(params)
    if modern:
        declared: dict[str, Any] = rng.choice(({}, EVERYTHING, EVERYTHING, {"sampling": {}}))
        params["_meta"] = {**META, wire.CAPABILITIES_META: declared}
    if rng.random() < 0.3:
        params.setdefault("_meta", {})["progressToken"] = rng.choice((number, f"t{number}"))
    tree = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    return Case(
        number=number,
        server=rng.choice(servers),
        modern=modern,
        headers=routing(method, params) if modern else (),
        body=json.dumps(tree).encode(),
    )


def routing(method: str, params: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The headers of a modern request."""
    lines = [("mcp-protocol-version", wire.MODERN), ("mcp-method", method)]
    if method in NAMED:
        lines.append(("mcp-name", params[NAMED[method]]))
    return tuple(lines)


def _call(rng: random.Random, number: int, *, modern: bool) -> dict[str, Any]:
    params: dict[str, Any] = {
        "name": rng.choice((*TOOLS, TOOLS[0], TOOLS[0], HIDDEN)),
        "arguments": {"call": str(number), **_object(rng, 3)},
    }
    if modern:
        params["_meta"] = dict(META)
    tree = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
    if rng.random() < 0.3:
        keys = list(tree)
        rng.shuffle(keys)
        tree = {key: tree[key] for key in keys}
    return tree


def _headers(rng: random.Random, name: str) -> tuple[tuple[str, str], ...]:
    chance = rng.random()
    said = name
    if chance < 0.1:
        said = f"=?base64?{base64.b64encode(name.encode()).decode()}?="
    elif chance < 0.13:
        said = rng.choice((HIDDEN, "", "=?base64?cmVhZF9ub3Rl", name.upper(), f"{name}.", "=?=?="))
    lines = [
        ("mcp-protocol-version", wire.MODERN), ("mcp-method", "tools/call"), ("mcp-name", said),
    ]  # fmt: skip
    if rng.random() < 0.02:
        lines.append(rng.choice(lines))
    return tuple(lines)


# --- trees --------------------------------------------------------------------------------------


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    return {_text(rng): tree_of(rng, depth) for _ in range(rng.randrange(4))}


def tree_of(rng: random.Random, depth: int) -> Any:
    chance = rng.random()
    if depth and chance < 0.25:
        return _object(rng, depth - 1)
    if depth and chance < 0.45:
        return [tree_of(rng, depth - 1) for _ in range(rng.randrange(4))]
    return rng.choice((
        lambda: rng.choice(_INTEGERS), lambda: rng.randrange(-(10**25), 10**25),
        lambda: rng.choice(_FLOATS), lambda: rng.uniform(-1e6, 1e6), lambda: _text(rng),
        lambda: rng.choice((True, False, None)),
    ))()  # fmt: skip


def _text(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(_TEXTS)
    return "".join(rng.choice(_TEXTS)[:1] or "z" for _ in range(rng.randrange(8)))


# --- wrong in structure -------------------------------------------------------------------------


def _nested(rng: random.Random, tree: dict[str, Any]) -> None:
    """Around the limit of 64, of which arguments are the third."""
    inner: Any = rng.choice(([], {}, 1))
    for _ in range(rng.choice((58, 59, 60, 61, 62, 63, 70, 200))):
        inner = [inner] if rng.random() < 0.5 else {"a": inner}
    tree["params"]["arguments"]["deep"] = inner


def _renamed(rng: random.Random, tree: dict[str, Any]) -> None:
    """A member in another spelling, beside the real one or instead of it."""
    where = rng.choice((tree, tree["params"]))
    name = rng.choice(list(where))
    other = rng.choice((name.upper(), name.capitalize(), f"{name} ", f"{name}\u0000", "x"))
    where[other] = rng.choice((where[name], tree_of(rng, 2)))
    if rng.random() < 0.3:
        del where[name]


def _retyped(rng: random.Random, tree: dict[str, Any]) -> None:
    where = rng.choice((tree, tree["params"]))
    where[rng.choice(list(where))] = tree_of(rng, 2)


def _remeta(rng: random.Random, tree: dict[str, Any]) -> None:
    """Versions and capabilities that come and go."""
    meta = tree["params"].get("_meta", {})
    changes: tuple[dict[str, Any], ...] = (
        {wire.VERSION_META: rng.choice((wire.LEGACY[0], None, 1, "2031-01-01", wire.MODERN))},
        {wire.CAPABILITIES_META: rng.choice((None, [], {"sampling": {}}, {"elicitation": 1}))},
        {"com.behavry/decision": {"verdict": "allow"}},
        {"progressToken": rng.choice((1, "t", None, 1.5))},
        {_text(rng): tree_of(rng, 2)},
    )  # fmt: skip
    change = rng.choice(changes)
    tree["params"]["_meta"] = rng.choice(({**meta, **change}, change, tree_of(rng, 1)))


_STRUCTURAL: Final[tuple[Callable[[random.Random, dict[str, Any]], None], ...]] = (
    _nested,
    _renamed,
    _renamed,
    _retyped,
    _remeta,
    lambda rng, tree: tree.update(id=rng.choice(_IDS)),
    lambda rng, tree: tree.update(method=rng.choice(_METHODS)),
    lambda rng, tree: tree.update(jsonrpc=rng.choice(("2.0", "2", 2.0, None, "2.0 "))),
    lambda rng, tree: tree["params"].update(name=rng.choice((*TOOLS, HIDDEN, "no_such", "", 7))),
    lambda rng, tree: tree["params"].update({_text(rng): tree_of(rng, 2)}),
    lambda rng, tree: tree.update({_text(rng): tree_of(rng, 2)}),
    lambda rng, tree: tree["params"].pop(rng.choice(list(tree["params"]))),
    lambda rng, tree: tree.pop(rng.choice(list(tree))),
    lambda rng, tree: tree.update(result=tree_of(rng, 2)),
    lambda rng, tree: tree["params"]["arguments"].update(big=[0] * rng.choice((10, 2000))),
)


# --- spelled and bent ---------------------------------------------------------------------------


def spelled(rng: random.Random, tree: Any, *, odd: bool) -> str:
    """JSON text of the same value; odd spellings escape, space and write numbers at will."""
    if not odd:
        return json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
    return _Speller(rng).value(tree)


class _Speller:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def value(self, value: Any) -> str:
        space = self._space
        match value:
            case dict():
                members = [f"{self.value(key)}{space()}:{self.value(value[key])}" for key in value]
                made = f"{{{','.join(members) or space()}}}"
            case list():
                made = f"[{','.join(self.value(one) for one in value) or space()}]"
            case str():
                made = f'"{"".join(self._letter(one) for one in value)}"'
            case float():
                made = repr(value).replace("e", self._rng.choice("eE"))
            case _:
                made = json.dumps(value)
        return f"{space()}{made}{space()}"

    def _space(self) -> str:
        return self._rng.choice(("", "", "", "", " ", "\n", "\t", "\r\n", "  "))

    def _letter(self, one: str) -> str:
        code = ord(one)
        if one in {'"', "\\"}:
            return f"\\{one}"
        if code < 0x20 or self._rng.random() < 0.1:
            if code > 0xFFFF:
                code -= 0x10000
                return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04X}"
            return f"\\u{code:04x}"
        return "\\/" if one == "/" and self._rng.random() < 0.5 else one


def _doubled(rng: random.Random, text: str) -> str:
    """A member that is there already, once more, before the end of some object."""
    ends = [at for at, one in enumerate(text) if one == "}"]
    member = rng.choice((
        '"id":1', '"method":"tools/call"', '"name":"read_note"', '"call":"1"', '"a":1', '"":null',
        '"arguments":{}', '"jsonrpc":"2.0"', '"\\u006eame":"drop_notes"', '"_meta":{}',
    ))  # fmt: skip
    at = rng.choice(ends)
    return f"{text[:at]},{member}{text[at:]}"


def bent(rng: random.Random, body: bytes) -> bytes:
    """One to three wounds."""
    made = bytearray(body)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(made) + 1)
        end = min(len(made), at + rng.choice((1, 1, 2, 8, 40)))
        match rng.randrange(6):
            case 0 if made:
                made[at % len(made)] ^= 1 << rng.randrange(8)
            case 1:
                made[at:at] = rng.choice(_TOKENS)
            case 2:
                del made[at:end]
            case 3:
                made[at:at] = made[at:end]
            case 4:
                made[at:end] = rng.choice(_TOKENS)
            case _:
                made = made[: max(1, at)] if rng.random() < 0.3 else made + rng.choice(_TOKENS)
    return bytes(made)
