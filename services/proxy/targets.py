"""What a text points at: a path, a URL, addresses, tables, commands; in one spelling each.

Decides the canonical form that policies compare (core.md 8), so that an odd spelling of a target is
that target. Which texts of a call are looked at is features.py's decision.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import unicodedata
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

MAX_VALUE: Final = 1024
#: What is looked at of one text. Nothing here takes more than a few steps for each character.
MAX_TEXT: Final = 64 * 1024
MAX_URL: Final = 2 * MAX_VALUE
MAX_HOST: Final = 253
MAX_DECODES: Final = 3
CONFIG_ROOTS: Final = (
    "/etc", "/root", "~/.ssh", "~/.aws", "~/.config",
    "/windows/system32", "/programdata", "~/appdata",
)  # fmt: skip
_PROTECTED: Final = re.compile(r"(?:MEMORY|SOUL|IDENTITY|\.env)", re.IGNORECASE)
_HOME: Final = re.compile(r"(?:~|\$HOME|\$\{HOME\}|%USERPROFILE%|%HOMEPATH%)(?=/|$)", re.IGNORECASE)
_HOMES: Final = re.compile(r"/(?:home|users)/[^/]+(?=/|$)", re.IGNORECASE)
_DRIVE: Final = re.compile(r"/?[A-Za-z]:(?=/|$)")
_DEVICE: Final = re.compile(r"//[?.]/(?:UNC/[^/]+/)?", re.IGNORECASE)
_UNC: Final = re.compile(r"//[^/]+(?=/)")
_VARIABLE: Final = re.compile(r"\$\{?\w|%\w+%|`|\$\(")
_GLOB: Final = re.compile(r"[*?\[{]")
_SLASHES: Final = re.compile(r"/{2,}")
_PATH_LIKE: Final = re.compile(
    r"/|~(?:[/\\]|$)|\.{1,2}(?:[/\\]|$)|\\|\$(?:H|\{)|[A-Za-z]:(?:[/\\]|$)|file://"
    r"|%(?:2[fFeE]|USERPROFILE|HOMEPATH)",
    re.IGNORECASE,
)
_SQL_LIKE: Final = re.compile(
    r"\s{0,8}(?:select|insert|update|delete|drop|alter|create|truncate|merge|with)\s", re.IGNORECASE
)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{0,31}://")
_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21, "ssh": 22, "sftp": 22}
_PRIVATE_HOSTS: Final = re.compile(
    r"(?:.*\.)?(?:localhost|local|internal|intranet|lan|home\.arpa)\.?|[^.]+"
)
#: What no part of an address before its `@` is; of that part 64 characters count.
_NO_LOCAL: Final = frozenset('<>,;:"@')
_MAX_LOCAL: Final = 64
_MAX_ADDRESS: Final = _MAX_LOCAL + 1 + MAX_HOST
_DOMAIN: Final = re.compile(r"[A-Za-z0-9.\-]{1,253}")
_GROUP: Final = re.compile(
    r"(?:^[#@](?:all|channel|everyone|here)|^#|^(?:all|all-.*|everyone|staff|team|everybody|company"
    r"|list|group|.*-(?:all|list|team|group)|dl-.*)@|^(?:all|everyone|everybody)$)",
    re.IGNORECASE,
)
#: Quoted names are as long as one may be; of one that does not end the quote is found, and no name.
_WHOLE_NAME: Final = r"(?:[\w$]+|\"[^\"]{1,128}\"|`[^`]{1,128}`|\[[^\]]{1,128}\])"
_NAME: Final = rf"(?:{_WHOLE_NAME}|[\"`\[])"
_NAMED: Final = re.compile(rf"{_WHOLE_NAME}(?:\.{_WHOLE_NAME})*")
_SQL: Final = re.compile(
    r"\b(?:from|join|into|update|table(?:\s+if\s+(?:not\s+)?exists)?|truncate|delete\s+from)\s+"
    rf"({_NAME}(?:\.{_NAME})*)",
    re.IGNORECASE,
)
_NOT_TABLES: Final = frozenset({"select", "set", "table", "if", "only", "values", "where"})
_SEPARATORS: Final = re.compile(r"&&|\|\||[;|&\n]")
_WORD: Final = re.compile(r"'([^']*)'|\"([^\"]*)\"|(\S+)")
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")
_PREFIXES: Final = frozenset({"sudo", "env", "nohup", "time", "exec", "command", "doas", "xargs"})


@dataclass(frozen=True, slots=True)
class PathTarget:
    value: str
    depth: int
    config: bool
    protected: bool
    ambiguous: bool


@dataclass(frozen=True, slots=True)
class UrlTarget:
    scheme: str
    host: str
    port: int
    private: bool


def path(text: str, *, case_fold: bool = False) -> PathTarget:
    """Percent-decoding to a fixpoint, NFKC, one slash, no dots, home and drives made equal."""
    ambiguous = "\0" in text or len(text) > MAX_VALUE
    plain, settled = _decoded(text[:MAX_VALUE].removeprefix("file://").replace("\0", ""))
    plain = unicodedata.normalize("NFKC", plain).replace("\\", "/")
    plain = _UNC.sub("", _DEVICE.sub("/", plain, count=1), count=1) if plain[:2] == "//" else plain
    if ":" in plain[1:3] and (drive := _DRIVE.match(plain)):
        plain = plain[drive.end() :] or "/"
    plain = _HOME.sub("~", plain, count=1) if plain[:1] in {"~", "$", "%"} else plain
    plain = _HOMES.sub("~", plain, count=1) if plain[:1] == "/" else plain
    if case_fold:
        plain = plain.casefold()
    kept, escaped = _resolved(plain)
    value = kept or ("/" if plain.startswith("/") else ".")
    parts = [part for part in value.split("/") if part not in {"", ".", "~"}]
    shallow = next((i for i, part in enumerate(parts) if _GLOB.search(part)), len(parts))
    lowered = value.casefold()
    return PathTarget(
        value=value[:MAX_VALUE],
        depth=shallow,
        config=any(lowered == root or lowered.startswith(f"{root}/") for root in CONFIG_ROOTS),
        protected=any(_PROTECTED.match(part) for part in parts),
        ambiguous=ambiguous or escaped or not settled or _VARIABLE.search(value) is not None,
    )


def looks_like_path(text: str) -> bool:
    """By its beginning alone, so that a long text costs nothing."""
    return _PATH_LIKE.match(text) is not None


def url(text: str) -> UrlTarget | None:
    """None where it is no absolute URL with a host."""
    if _SCHEME.match(text) is None:
        return None
    try:
        parts = urlsplit(text[:MAX_URL].replace("\\", "/"))
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return UrlTarget(text.split(":", 1)[0].lower()[:16], "", 0, private=True)
    if not host:
        return None
    scheme = parts.scheme[:16]
    name, private = _host(host)
    return UrlTarget(scheme, name[:253], port or _PORTS.get(scheme, 0), private)


def recipients(text: str) -> tuple[set[str], set[str], bool]:
    """Distinct addresses, their domains, and whether one of them is a group."""
    people: set[str] = set()
    domains: set[str] = set()
    group = False
    for piece in re.split(r"[,;\n]", text[:MAX_TEXT]):
        one = piece.strip()
        if not one:
            continue
        local, domain = _mail(one)
        address = (f"{local}@{domain}" if local else one).casefold()
        if address in people:
            continue
        people.add(address)
        if local:
            domains.add(domain.casefold().rstrip("."))
        group = group or _GROUP.search(address[:_MAX_ADDRESS]) is not None
    return people, domains, group


def tables(sql: str) -> tuple[list[str], bool]:
    """Names that a statement reads or changes, unquoted, in order; and whether there are more that
    could not be read.
    """
    names = list(dict.fromkeys(_SQL.findall(sql[:MAX_TEXT])))
    plain = [re.sub(r"[\"`\[\]]", "", name) for name in names]
    odd = not all(map(_NAMED.fullmatch, names))
    return [name for name in plain if name and name.casefold() not in _NOT_TABLES], odd


def looks_like_sql(text: str) -> bool:
    return _SQL_LIKE.match(text) is not None


def commands(line: str) -> tuple[list[str], list[str]]:
    """Programs that a shell line starts, and its words that look like paths."""
    programs: list[str] = []
    paths: list[str] = []
    for segment in dict.fromkeys(_SEPARATORS.split(line[:MAX_TEXT])):
        words = ["".join(match) for match in _WORD.findall(segment)]
        first = next((i for i, word in enumerate(words) if not _goes_before(word)), len(words))
        if first < len(words):
            programs.append(words[first].rsplit("/", 1)[-1])
            paths.extend(word for word in words[first:] if looks_like_path(word))
    return programs, paths


def _goes_before(word: str) -> bool:
    """A program's name is yet to come."""
    return word in _PREFIXES or _ASSIGNMENT.match(word) is not None


def _mail(text: str) -> tuple[str, str]:
    """Of the first address in it, what stands before and after the `@`; or nothing."""
    at = text.find("@")
    while at >= 0:
        start = at
        while start > max(0, at - _MAX_LOCAL) and not _ends_local(text[start - 1]):
            start -= 1
        domain = _DOMAIN.match(text, at + 1) if start < at else None
        if domain is not None:
            return text[start:at], domain[0]
        at = text.find("@", at + 1)
    return "", ""


def _ends_local(character: str) -> bool:
    return character in _NO_LOCAL or character.isspace()


def _decoded(text: str) -> tuple[str, bool]:
    """Percent-decoded until nothing changes; False if it still would after three times."""
    for _ in range(MAX_DECODES):
        if "%" not in text:
            return text, True
        once = unquote(text, errors="replace")
        if once == text:
            return text, True
        text = once
    return text, unquote(text, errors="replace") == text


def _resolved(plain: str) -> tuple[str, bool]:
    """Without `.`, `..` and trailing dots; True if it left its root."""
    root = "/" if plain.startswith("/") else ""
    kept: list[str] = []
    escaped = False
    for raw in _SLASHES.sub("/", plain).split("/"):
        part = raw if raw in {".", ".."} else raw.rstrip(". ")
        if raw and not part:  # only dots and spaces: some systems read it as a parent
            escaped = True
        if part in {"", "."}:
            continue
        if part != "..":
            kept.append(part)
        elif kept and kept[-1] not in {"~", ".."}:
            kept.pop()
        else:
            escaped = True
            if not root:
                kept.append("..")
    return root + "/".join(kept), escaped


def _host(host: str) -> tuple[str, bool]:
    number = _numeric(host)
    if number is not None:
        return str(number), not number.is_global
    name = host.casefold()
    if name.isascii():
        name = name.rstrip(".")
    elif len(host) <= MAX_HOST:  # a longer one is no host, and takes long to spell
        with contextlib.suppress(UnicodeError):
            name = host.encode("idna").decode().lower().rstrip(".")
    return name, _PRIVATE_HOSTS.fullmatch(name) is not None


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """All forms that resolvers take: dotted, decimal, hexadecimal, octal, short."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        pass
    parts = host.rstrip(".").split(".")
    if not 1 <= len(parts) <= 4:
        return None
    try:
        numbers = [_integer(part) for part in parts]
    except ValueError:
        return None
    *heads, tail = numbers
    if any(head > 255 for head in heads) or tail >= 256 ** (5 - len(parts)):
        return None
    value = tail
    for index, head in enumerate(heads):
        value += head << (8 * (3 - index))
    return ipaddress.IPv4Address(value)


def _integer(text: str) -> int:
    if not text or len(text) > 16 or not text.isascii() or not text.isalnum():
        raise ValueError(text)
    if text[:2].lower() == "0x":
        return int(text[2:] or "0", 16)
    return int(text, 8) if text[0] == "0" and len(text) > 1 else int(text, 10)
