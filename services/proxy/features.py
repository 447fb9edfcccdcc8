"""What a call is about, without its payload: `features` of the envelope (core.md 3). Pure.

Decides the counts and targets that policies may use. They are derived from the same tree that is
forwarded, and every list is bounded: what does not fit sets `overflow`, which policies may refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from services.proxy import targets

MAX_ITEMS: Final = 64
MAX_KEY: Final = 64
MAX_NAME: Final = 128
MAX_STRINGS: Final = 2_000
#: Characters of a call that are looked at closely, all its texts together: a body may be as big as
#: it may, and nobody else is served meanwhile. Beyond, `overflow` is set.
MAX_LOOKED: Final = 128 * 1024
#: What an address costs beside its length; and more where letters need more than one look.
_EACH: Final = 64
_ODD: Final = 16

ResourceKind = Literal["path", "url", "table", "recipient", "command", "other", "none"]

_PATHS: Final = frozenset({
    "path", "paths", "file", "files", "filename", "file_name", "filepath", "file_path", "dir",
    "directory", "folder", "source", "src", "destination", "dest", "dst", "target", "target_path",
    "source_path", "repo_path", "root", "cwd", "uri", "old_path", "new_path",
})  # fmt: skip
_RECIPIENTS: Final = frozenset({
    "to", "cc", "bcc", "recipient", "recipients", "email", "emails", "attendees", "invitees",
    "channel", "channels", "members",
})  # fmt: skip
_TABLES: Final = frozenset({"table", "tables", "table_name", "tablename", "dataset", "collection"})
_COMMANDS: Final = frozenset({"command", "commands", "cmd", "shell", "script", "commandline"})
_SQL: Final = frozenset({"sql", "query", "statement"})
_COUNTS: Final = frozenset(
    {"limit", "count", "top", "max", "max_results", "page_size", "size", "n"}
)
_CONTAINERS: Final = frozenset({dict, list})
_NOTHING: Final[Mapping[str, Any]] = {}
_MAX_COUNT: Final = 2**53 - 1
_encoder: Final = msgspec.json.Encoder()


class Derived(msgspec.Struct, frozen=True):
    """`encoded` is the features object as JSON."""

    encoded: bytes
    resource: str
    resource_kind: ResourceKind


class _Found(msgspec.Struct):
    paths: dict[str, targets.PathTarget] = {}
    urls: dict[targets.UrlTarget, None] = {}
    tables: dict[str, None] = {}
    commands: dict[str, None] = {}
    recipients: set[str] = set()
    domains: dict[str, None] = {}
    groups: bool = False
    resource: str = ""
    kind: ResourceKind = "none"
    overflow: bool = False
    left: int = MAX_LOOKED
    #: Spellings that were looked at.
    seen: set[str] = set()

    def affords(self, cost: int) -> bool:
        """Whether so much more may be looked at."""
        if cost > self.left:
            self.overflow = True
            return False
        self.left -= cost
        return True

    def part(self, text: str) -> str:
        """As much of a text as may be looked at."""
        size = min(len(text), targets.MAX_TEXT, self.left)
        self.left -= size
        self.overflow |= size < len(text)
        return text[:size]


def derive(
    arguments: dict[str, Any],
    arg_bytes: int,
    *,
    beside: Mapping[str, Any] = _NOTHING,
    case_fold: bool = False,
) -> Derived:
    """1. walk once: sizes, and texts with the name they stand under  2. targets  3. the object.
    `beside` goes with the arguments: it counts like them, and names the call's resource only where
    they do not.
    """
    leaves = depth = deepest = items = strings = 0
    found = _Found()
    waiting: list[dict[str, Any]] = [{**beside}] if beside else []
    level: list[tuple[str, Any]] = [("", arguments)]
    while level:  # 1
        depth += 1
        below: list[tuple[str, Any]] = []
        for name, node in level:
            if type(node) is dict:
                pairs: Iterable[tuple[str, Any]] = node.items()
            else:
                items = max(items, len(node))
                pairs = ((name, child) for child in node)
            if not node:
                leaves += 1
            for key, value in pairs:
                if type(value) in _CONTAINERS:
                    below.append((key, value))
                    continue
                leaves += 1
                if type(value) is str:
                    strings += 1
                    if strings <= MAX_STRINGS:
                        shown = key.lower() if len(key) <= MAX_KEY else ""
                        _look(found, shown, value, case_fold=case_fold)
                elif type(value) is int and key.lower() in _COUNTS:
                    items = max(items, min(value, _MAX_COUNT))
        level = below
        if not level:
            deepest = max(deepest, depth)
            if waiting:
                level, depth = [("", waiting.pop())], 0
    found.overflow |= strings > MAX_STRINGS
    whole = {**arguments, **beside} if beside else arguments
    return Derived(  # 3
        _encoder.encode(_object(found, whole, arg_bytes, leaves, deepest, items)),
        found.resource,
        found.kind,
    )


def _look(found: _Found, name: str, text: str, *, case_fold: bool) -> None:
    if not text:
        return
    if "://" in text[:40]:
        size = min(len(text), targets.MAX_URL)
        if not found.affords(_EACH + size * (1 if text[:size].isascii() else _ODD)):
            return
        link = targets.url(text)
        if link is not None:
            _keep(found, found.urls, link, None)
            _resource(found, "url", f"{link.scheme}://{link.host}:{link.port}")
            return
    if name in _PATHS or targets.looks_like_path(text):
        _path(found, text, case_fold=case_fold)
    elif name in _RECIPIENTS:
        _recipients(found, text)
    elif name in _TABLES:
        _keep(found, found.tables, text[:MAX_NAME], None)
        _resource(found, "table", text)
    elif name in _COMMANDS:
        _command(found, text, case_fold=case_fold)
    elif name in _SQL or targets.looks_like_sql(text):
        tables, odd = targets.tables(found.part(text))
        found.overflow |= odd
        for table in tables:
            _keep(found, found.tables, table[:MAX_NAME], None)
        if tables:
            _resource(found, "table", tables[0])


def _path(found: _Found, text: str, *, case_fold: bool) -> None:
    if text in found.seen:
        return
    size = min(len(text), targets.MAX_VALUE)
    if not found.affords(_EACH + 2 * size * (1 if text[:size].isascii() else 2)):
        return
    found.seen.add(text)
    target = targets.path(text, case_fold=case_fold)
    found.overflow |= len(text) > targets.MAX_VALUE
    _keep(found, found.paths, target.value, target)
    _resource(found, "path", target.value)


def _recipients(found: _Found, text: str) -> None:
    people, domains, group = targets.recipients(found.part(text))
    found.recipients |= people
    found.groups |= group
    for domain in sorted(domains):
        _keep(found, found.domains, domain, None)
    if people:
        _resource(found, "recipient", min(people))


def _command(found: _Found, text: str, *, case_fold: bool) -> None:
    programs, paths = targets.commands(found.part(text))
    for program in programs:
        _keep(found, found.commands, program[:MAX_NAME], None)
    if programs:
        _resource(found, "command", programs[0])
    for one in paths:
        _path(found, one, case_fold=case_fold)


def _keep(found: _Found, into: dict[Any, Any], key: Any, value: Any) -> None:
    if key in into:
        return
    if len(into) >= MAX_ITEMS:
        found.overflow = True
        return
    into[key] = value


def _resource(found: _Found, kind: ResourceKind, value: str) -> None:
    """The first target names the call's resource."""
    if found.kind == "none":
        found.kind = kind
        found.resource = value[: targets.MAX_VALUE]


def _object(  # noqa: PLR0917  # the sizes of one walk
    found: _Found, arguments: dict[str, Any], arg_bytes: int, leaves: int, depth: int, items: int
) -> dict[str, Any]:  # fmt: skip
    names = list(arguments)
    too_long = any(len(name) > MAX_KEY for name in names)
    return {
        "keys": [
            {"name": name[:MAX_KEY], "type": _type(arguments[name])} for name in names[:MAX_ITEMS]
        ],
        "arg_bytes": arg_bytes,
        "depth": depth,
        "leaf_count": leaves,
        "item_count": items,
        "recipient_count": len(found.recipients),
        "recipient_groups": found.groups,
        "recipient_domains": list(found.domains),
        "paths": list(found.paths.values()),
        "urls": list(found.urls),
        "tables": list(found.tables),
        "commands": list(found.commands),
        "overflow": found.overflow or len(names) > MAX_ITEMS or too_long,
    }


def _type(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case None:
            return "null"
        case str():
            return "string"
        case dict():
            return "object"
        case list():
            return "array"
        case _:
            return "number"
