"""JSON with comments, edited in place: one member is set or taken away, everything else keeps its
bytes.

Clients' files are written by people: comments, their own indentation, sometimes a comma too many.
An edit is done on the text, then read back: unless the values are exactly the wanted ones and every
comment outside the changed member is still there, CannotEdit is raised and nothing has happened.
"""

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_DEPTH = 64
_SPACE = re.compile(r"[ \t\r\n]*")
_COMMENT = re.compile(r"//[^\r\n]*|/\*.*?\*/", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_SCALAR = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null")


class Malformed(Exception):
    """The text is not JSON with comments; the message says where."""


class CannotEdit(Exception):
    """The edit would have changed something else."""


@dataclass(slots=True)
class Node:
    """A value and the characters it stands on. `parts`: members by key, or items by number."""

    value: Any
    start: int
    end: int
    parts: dict[str | int, "Part"] = field(default_factory=dict)


@dataclass(slots=True)
class Part:
    """A member or item: where it begins (its key), its value, where the comma behind it ends."""

    start: int
    node: Node
    comma: int | None = None


def parse(text: str) -> Any:
    """The value. Raises Malformed."""
    return _Reader(text).document().value


def edit(text: str, path: Sequence[str], value: Any) -> str:
    """The text with the member at `path` set; missing objects on the way are made. Raises
    Malformed, CannotEdit.
    """
    root = _Reader(text).document()
    expected = copy.deepcopy(root.value)
    _put(expected, path, value)
    node, depth = root, 0
    while depth < len(path) - 1 and path[depth] in node.parts:
        node, depth = node.parts[path[depth]].node, depth + 1
    for missing in reversed(path[depth + 1 :]):
        value = {missing: value}
    old = node.parts.get(path[depth])
    return _checked(text, _with_member(text, node, path[depth], value), expected, gone=old)


def append(text: str, path: Sequence[str], item: Any) -> str:
    """The text with `item` at the end of the list at `path`, which is made where it is missing."""
    node = _find(_Reader(text).document(), path)
    if node is None:
        return edit(text, path, [item])
    if not isinstance(node.value, list):
        raise CannotEdit(f"{'.'.join(path)} is not a list")
    expected = parse(text)
    _get(expected, path).append(item)
    return _checked(text, _with_part(text, node, None, item), expected)


def remove(text: str, path: Sequence[str | int]) -> str:
    """The text without the member or item at `path`; unchanged where there is none."""
    parent = _find(_Reader(text).document(), path[:-1])
    if parent is None or path[-1] not in parent.parts:
        return text
    expected = parse(text)
    del _get(expected, path[:-1])[path[-1]]
    gone = parent.parts[path[-1]]
    return _checked(text, _without(text, parent, path[-1]), expected, gone=gone)


def _find(node: Node, path: Sequence[str | int]) -> Node | None:
    for step in path:
        if step not in node.parts:
            return None
        node = node.parts[step].node
    return node


def _get(value: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        value = value[step]
    return value


def _put(document: Any, path: Sequence[str], value: Any) -> None:
    for place, step in enumerate(path[:-1]):
        if not isinstance(document, dict):
            raise CannotEdit(f"{'.'.join(path[:place]) or 'the document'} is not an object")
        document = document.setdefault(step, {})
    if not isinstance(document, dict):
        raise CannotEdit(f"{'.'.join(path[:-1])} is not an object")
    document[path[-1]] = value


def _checked(before: str, after: str, expected: Any, *, gone: Part | None = None) -> str:
    """Nothing but the wanted value has changed, or there is no edit. `gone`: the member whose own
    comments may go with it.
    """
    try:
        same = parse(after) == expected
    except Malformed:
        same = False
    if not same:
        raise CannotEdit("it cannot be changed without touching the rest")
    kept = {comment for _, comment in _Reader(after).comments()}
    for place, comment in _Reader(before).comments():
        inside = gone is not None and gone.start <= place < (gone.comma or gone.node.end)
        if comment not in kept and not inside:
            raise CannotEdit("it cannot be changed without losing a comment")
    return after


def _with_member(text: str, node: Node, key: str, value: Any) -> str:
    if key not in node.parts:
        return _with_part(text, node, key, value)
    old = node.parts[key].node
    lead = _indent_at(text, old.start)
    return text[: old.start] + _written(text, value, lead) + text[old.end :]


def _with_part(text: str, node: Node, key: str | None, value: Any) -> str:
    """A new last part. A comment behind the last one stays beside it."""
    lead, newline = _indent_at(text, node.start), _newline(text)
    inner = lead + _unit(text)
    several_lines = "\n" in text[node.start : node.end] or not node.parts
    before = newline + inner if several_lines else " "
    name = "" if key is None else json.dumps(key, ensure_ascii=False) + ": "
    if not node.parts:
        inside = text[node.start + 1 : node.end - 1].rstrip()
        head = text[: node.start + 1] + inside
        new = before + name + _written(text, value, inner)
        return head + new + newline + lead + text[node.end - 1 :]
    last = next(reversed(node.parts.values()))
    written = before + name + _written(text, value, inner if several_lines else lead)
    place = _line_end(text, last.comma or last.node.end, node.end - 1)
    comma = "" if last.comma else ","
    return text[: last.node.end] + comma + text[last.node.end : place] + written + text[place:]


def _without(text: str, parent: Node, key: str | int) -> str:
    """1. the part and its comma, with its line where nothing else stands there  2. the comma before
    it, if it was the last.
    """
    part = parent.parts[key]
    start, end = part.start, part.comma or part.node.end
    before = text.rfind("\n", 0, start) + 1
    after = _SPACE.match(text, end)
    newline = text.find("\n", end)
    alone = not text[before:start].strip() and newline >= 0 and not text[end:newline].strip()
    if alone and before > parent.start:
        start, end = before, newline + 1
    elif part.comma and after is not None:
        end = after.end()
    order = list(parent.parts.values())
    place = order.index(part)
    cut = text[:start] + text[end:]
    if place and place == len(order) - 1 and part.comma is None:
        comma = order[place - 1].comma
        assert comma is not None  # noqa: S101  # there is a part behind it
        cut = cut[: comma - 1] + cut[comma:]
    return cut


def _written(text: str, value: Any, lead: str) -> str:
    unit = _unit(text)
    lines = json.dumps(value, indent=unit, ensure_ascii=False).split("\n")
    return (_newline(text) + lead).join(lines)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _unit(text: str) -> str:
    """One step of indentation: what the first indented line has."""
    found = re.search(r"\n([ \t]+)\S", text)
    return found.group(1) if found and len(found.group(1)) <= 8 else "  "


def _indent_at(text: str, place: int) -> str:
    line = text[text.rfind("\n", 0, place) + 1 : place]
    found = re.match(r"[ \t]*", line)
    return found.group() if found else ""


def _line_end(text: str, place: int, limit: int) -> int:
    """Where the line ends, if only spaces and a comment stand between; else `place`."""
    here = place
    while True:
        space = re.compile(r"[ \t]*").match(text, here)
        here = space.end() if space else here
        comment = _COMMENT.match(text, here)
        if comment is None:
            break
        here = comment.end()
    return here if here < limit and text[here] in "\r\n" else place


class _Reader:
    """One walk over the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 1 if text.startswith("\ufeff") else 0
        self._comments: list[tuple[int, str]] = []

    def document(self) -> Node:
        self._skip()
        if self._at == len(self._text):
            raise Malformed("it is empty")
        node = self._value(0)
        self._skip()
        if self._at != len(self._text):
            raise self._wrong("nothing more may follow")
        return node

    def comments(self) -> Iterator[tuple[int, str]]:
        """Each comment and where it stands."""
        self.document()
        yield from self._comments

    def _value(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._wrong("it is nested too deeply")
        opening = self._text[self._at : self._at + 1]
        if opening in {"{", "["}:
            return self._container(opening, depth)
        for form in (_STRING, _SCALAR):
            found = form.match(self._text, self._at)
            if found:
                start, self._at = self._at, found.end()
                return Node(self._scalar(found.group()), start, self._at)
        raise self._wrong("a value is missing")

    def _scalar(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise self._wrong("a string is broken") from None

    def _container(self, opening: str, depth: int) -> Node:
        node = Node({} if opening == "{" else [], self._at, self._at)
        closing = "}" if opening == "{" else "]"
        self._at += 1
        self._skip()
        comma = True
        while not self._is(closing):
            if not comma:
                raise self._wrong("a comma is missing")
            part, key = self._part(node, depth)
            self._skip()
            comma = self._is(",")
            if comma:
                self._at += 1
                part.comma = self._at
                self._skip()
            node.parts[key] = part
        self._at += 1
        node.end = self._at
        return node

    def _part(self, node: Node, depth: int) -> tuple[Part, str | int]:
        start = self._at
        if isinstance(node.value, list):
            item = self._value(depth + 1)
            node.value.append(item.value)
            return Part(start, item), len(node.value) - 1
        name = self._value(depth + 1)
        if not isinstance(name.value, str):
            raise self._wrong("a name is missing")
        if name.value in node.value:
            raise self._wrong("a name stands there twice")
        self._skip()
        if not self._is(":"):
            raise self._wrong("a colon is missing")
        self._at += 1
        self._skip()
        member = self._value(depth + 1)
        node.value[name.value] = member.value
        return Part(start, member), name.value

    def _is(self, character: str) -> bool:
        if self._at >= len(self._text):
            raise self._wrong("it ends too early")
        return self._text[self._at] == character

    def _skip(self) -> None:
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            comment = _COMMENT.match(self._text, self._at)
            if comment is None:
                return
            self._comments.append((self._at, comment.group()))
            self._at = comment.end()

    def _wrong(self, why: str) -> Malformed:
        line = self._text.count("\n", 0, self._at) + 1
        return Malformed(f"line {line}: {why}")
