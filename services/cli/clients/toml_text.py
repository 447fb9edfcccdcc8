"""TOML, edited in place: one table is set or taken away, everything else keeps its bytes.

Works on whole `[table]` sections. Whatever is written in another form (dotted keys, inline tables)
is left alone: the result is read back, and CannotEdit is raised where it is not exactly what was
wanted.
"""

import copy
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.cli.clients.jsonc import CannotEdit, Malformed

_HEADER = re.compile(r"\s*\[")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """A header and the lines below it; the first section has neither."""

    path: tuple[str, ...]
    lines: list[str]


def parse(text: str) -> dict[str, Any]:
    """The document. Raises Malformed."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as bad:
        raise Malformed(str(bad)) from None


def edit(text: str, path: Sequence[str], table: Mapping[str, str]) -> str:
    """The text with the table at `path` set. Raises Malformed, CannotEdit."""
    expected = copy.deepcopy(parse(text))
    parent: Any = expected
    for step in path[:-1]:
        parent = parent.setdefault(step, {})
        if not isinstance(parent, dict):
            raise CannotEdit(f"{step} is not a table")
    parent[path[-1]] = dict(table)
    sections, newline = _sections(text), _newline(text)
    ours = [one for one in sections if one.path[: len(path)] == tuple(path)]
    body = [f"[{'.'.join(map(_key, path))}]"]
    body += [f"{_key(name)} = {json.dumps(value)}" for name, value in table.items()]
    if ours:
        kept = [line for one in ours for line in _inside(one)]
        new = newline.join([body[0], *kept, *body[1:]]) + newline + "".join(_tail(ours[-1]))
        after = "".join(
            new if one is ours[0] else "" if one in ours else "".join(one.lines) for one in sections
        )
    else:
        gap = "" if not text else newline if text.endswith("\n") else newline * 2
        after = text + gap + newline.join(body) + newline
    return _checked(text, after, expected)


def remove(text: str, path: Sequence[str]) -> str:
    """The text without the table at `path`; unchanged where there is none."""
    expected = copy.deepcopy(parse(text))
    parent: Any = expected
    for step in path[:-1]:
        parent = parent.get(step, {})
    if path[-1] not in parent:
        return text
    del parent[path[-1]]
    ours = [one for one in _sections(text) if one.path[: len(path)] == tuple(path)]
    newline = _newline(text)
    after = "".join(
        "".join([*(line + newline for line in _inside(one)), *_tail(one)])
        if one in ours
        else "".join(one.lines)
        for one in _sections(text)
    )
    return _checked(text, after, expected, without=path[0])


def _checked(
    before: str, after: str, expected: dict[str, Any], *, without: str | None = None
) -> str:
    """`without`: a table that may be gone, now that nothing is in it."""
    try:
        found = tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        found = None
    if found is not None and without is not None and expected.get(without) == {}:
        found.setdefault(without, {})
    lost = set(_comments(before.splitlines(keepends=True))) - set(
        _comments(after.splitlines(keepends=True))
    )
    if found != expected or lost:
        raise CannotEdit("it cannot be changed without touching the rest")
    return after


def _sections(text: str) -> list[_Section]:
    sections = [_Section(path=(), lines=[])]
    for line in text.splitlines(keepends=True):
        path = _path_of(line)
        if path is not None:
            sections.append(_Section(path=path, lines=[]))
        sections[-1].lines.append(line)
    return sections


def _path_of(line: str) -> tuple[str, ...] | None:
    """What a header line names; None for any other line."""
    if not _HEADER.match(line):
        return None
    try:
        found: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    path: list[str] = []
    while isinstance(found, dict) and found:
        ((step, found),) = found.items()
        path.append(step)
        if isinstance(found, list):
            return (*path, "[]")
    return tuple(path)


def _inside(section: _Section) -> list[str]:
    """Comments of a section that are its own."""
    return _comments(section.lines[: len(section.lines) - len(_tail(section))])


def _tail(section: _Section) -> list[str]:
    """Blank lines and comments at a section's end: they speak of what follows."""
    kept: list[str] = []
    for line in reversed(section.lines):
        if line.strip() and not line.lstrip().startswith("#"):
            break
        kept.insert(0, line)
    return kept


def _comments(lines: Sequence[str]) -> list[str]:
    return [line.rstrip("\r\n") for line in lines if line.lstrip().startswith("#")]


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
