"""Reads the parser's syntax tree: references, calls, places. Knows its node names, so that no
other file must; judges nothing.

The tree is what `regorus` prints as JSON: an expression is an object with one key, its kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from services.common.rego.names import Path

Node = dict[str, Any]

EXPRESSIONS: Final = frozenset(
    {
        "String", "RawString", "Number", "Bool", "Null", "Var", "Array", "Set", "Object",
        "ArrayCompr", "SetCompr", "ObjectCompr", "Call", "UnaryExpr", "RefDot", "RefBrack",
        "BinExpr", "BoolExpr", "ArithExpr", "AssignExpr", "Membership", "OrExpr",
    }
)  # fmt: skip
_SCALARS: Final = frozenset({"String", "RawString", "Number", "Bool", "Null"})


@dataclass(frozen=True, slots=True)
class Ref:
    """`root.a["b"][c].d`: static steps are strings, a dynamic one is None. `inner` are the
    expressions inside brackets; `at` is the byte offset of the root.
    """

    root: str
    steps: tuple[str | None, ...]
    inner: tuple[Node, ...]
    at: int

    @property
    def prefix(self) -> Path:
        """The static steps up to the first dynamic one."""
        return tuple(_until_none(self.steps))


@dataclass(frozen=True, slots=True)
class Call:
    name: Ref
    arguments: tuple[Node, ...]
    at: int


@dataclass(frozen=True, slots=True)
class With:
    target: Ref | None
    at: int


@dataclass(frozen=True, slots=True)
class Module:
    """One parsed file. `imports` maps the name in use to the imported path."""

    path: str
    source: bytes
    package: Path
    imports: dict[str, Path]
    rules: tuple[Node, ...]
    rego_v1: bool

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1, of a byte offset."""
        before = self.source[:offset]
        return before.count(b"\n") + 1, offset - (before.rfind(b"\n") + 1) + 1


def modules(documents: list[Node]) -> list[Module]:
    return [_module(document) for document in documents]


def kind_of(node: Any) -> str | None:
    """The expression kind of a node, or None where it is none."""
    if isinstance(node, dict) and len(node) == 1:
        (kind,) = node
        return kind if kind in EXPRESSIONS else None
    return None


def ref_of(node: Any) -> Ref | None:
    """The reference that this expression is; None where it starts at something else."""
    steps: list[str | None] = []
    inner: list[Node] = []
    while True:
        match kind_of(node):
            case "Var":
                body = node["Var"]
                ordered = tuple(reversed(steps))
                return Ref(body["value"], ordered, tuple(inner), body["span"]["start"])
            case "RefDot":
                body = node["RefDot"]
                steps.append(body["field"][1])
            case "RefBrack":
                body = node["RefBrack"]
                text = text_of(body["index"])
                steps.append(text)
                if text is None:
                    inner.append(body["index"])
            case _:
                return None
        node = body["refr"]


def text_of(node: Any) -> str | None:
    """The value of a string literal."""
    kind = kind_of(node)
    if kind in {"String", "RawString"}:
        value: str = node[kind]["value"]
        return value
    return None


def literal_of(node: Any) -> str | bool | None:
    """The value of a string or boolean literal."""
    if kind_of(node) == "Bool":
        value: bool = node["Bool"]["value"]
        return value
    return text_of(node)


def start_of(node: Any) -> int:
    """Where an expression starts, by its leftmost part."""
    found = ref_of(node)
    if found is not None:
        return found.at
    kind = kind_of(node)
    if kind is None:
        return 0
    start: int = node[kind]["span"]["start"]
    return start


def walk(node: Any) -> Iterator[Ref | Call | With]:
    """Every reference, call and `with` in this part of the tree. The name of a called function
    comes as the call's, not as a reference; the target of a `with` is not read.
    """
    if isinstance(node, list):
        for item in node:
            yield from walk(item)
        return
    if not isinstance(node, dict):
        return
    if "as" in node and "refr" in node:
        yield With(ref_of(node["refr"]), start_of(node["refr"]))
        target = ref_of(node["refr"])
        for item in target.inner if target else ():
            yield from walk(item)
        yield from walk(node["as"])
        return
    kind = kind_of(node)
    if kind in _SCALARS:
        return
    if kind in {"Var", "RefDot", "RefBrack"}:
        yield from _walk_ref(node)
        return
    if kind == "Call":
        body = node["Call"]
        name = ref_of(body["fcn"])
        if name is not None:
            yield Call(name, tuple(body["params"]), name.at)
        else:
            yield from walk(body["fcn"])
        yield from walk(body["params"])
        return
    for key, value in node.items():
        if key != "span":
            yield from walk(value)


def nodes(node: Any, wanted: frozenset[str]) -> Iterator[tuple[str, Node]]:
    """Every object below `node` that sits under one of the wanted keys, with that key."""
    if isinstance(node, list):
        for item in node:
            yield from nodes(item, wanted)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in wanted and isinstance(value, dict):
                yield key, value
            if key != "span":
                yield from nodes(value, wanted)


def head_of(rule: Node) -> tuple[str, Node]:
    """(`Set`, `Compr`, `Func` or `Default`, its body)."""
    if "Default" in rule:
        return "Default", rule["Default"]
    ((kind, body),) = rule["Spec"]["head"].items()
    return kind, body


def name_of(rule: Node) -> str:
    found = ref_of(head_of(rule)[1]["refr"])
    return found.root if found else ""


def _walk_ref(node: Node) -> Iterator[Ref | Call | With]:
    found = ref_of(node)
    if found is not None:
        yield found
        for item in found.inner:
            yield from walk(item)
        return
    kind = kind_of(node) or ""
    yield from walk(node[kind]["refr"])
    yield from walk(node[kind].get("index"))


def _until_none(steps: tuple[str | None, ...]) -> Iterator[str]:
    for step in steps:
        if step is None:
            return
        yield step


def _module(document: Node) -> Module:
    source = document["source"]["contents"].encode()
    ast = document["ast"]
    package = ref_of(ast["package"]["refr"])
    imports: dict[str, Path] = {}
    for item in ast["imports"]:
        target = ref_of(item["refr"])
        if target is None:
            continue
        path = (target.root, *target.prefix)
        alias = item.get("as")
        name = source[alias["start"] : alias["end"]].decode() if alias else path[-1]
        imports[name] = path
    return Module(
        path=document["source"]["file"],
        source=source,
        package=(package.root, *package.prefix) if package else (),
        imports=imports,
        rules=tuple(ast["rules"]),
        rego_v1=bool(ast["rego_v1"]),
    )
