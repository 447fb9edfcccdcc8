"""What a tool server may put before an agent's user, and what not (mcp.md 3.4). Pure.

Decides about one request that the server is granted: no form asks for a secret, no URL leads
elsewhere than to a host that an administrator named, and nothing of it is read as ours. What its
texts say is not judged here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from services.proxy import messages
from services.proxy.asking import grants
from services.proxy.snapshot import Grants

#: A stream that has more queued is closed; one request is never most of that.
MAX_REQUEST: Final = 256 * 1024
MAX_URL: Final = 8 * 1024
_MAX_FIELDS: Final = 1000
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PLAIN_URL: Final = re.compile(r"[!-\[\]-~]+")
_SECRET_WORDS: Final = frozenset({
    "credential", "credentials", "otp", "passcode", "passphrase", "passwd", "password", "passwords",
    "pwd", "secret", "secrets", "token", "tokens",
})  # fmt: skip
_SECRET_PHRASES: Final = (
    "accesskey", "apikey", "authkey", "clientsecret", "onetimecode", "password", "privatekey",
    "secretkey", "signingkey",
)  # fmt: skip
#: What no secret is entered as; several types at once, or an unknown one, may be text.
_NO_TEXT: Final = ("boolean", "integer", "null", "number", "object")
_CHOICES: Final = ("enum", "oneOf", "anyOf")
_OURS: Final = ("com.behavry/", "io.modelcontextprotocol/")


class Unwanted(Exception):
    """The request does not reach the agent. `reason` is an ErrorReason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def screened(method: str, params: Any, told: Mapping[str, Any], granted: Grants) -> dict[str, Any]:
    """1. well-formed  2. the server was told that it may ask this  3. a form or a URL that may be
    shown  4. its params as the agent gets them. Raises Unwanted.
    """
    if type(params) is not dict:  # 1
        raise Unwanted("upstream_protocol")
    if not grants.may(method, params, told):  # 2
        raise Unwanted("capability_not_granted")
    if method == grants.ELICIT:  # 3
        if params.get("mode") == "url":
            url(params.get("url"), granted)
        else:
            _form(params.get("requestedSchema"))
    made = {name: value for name, value in params.items() if name != "_meta"}  # 4
    meta = params.get("_meta")
    if type(meta) is dict:
        kept = {key: value for key, value in meta.items() if not _between_us(key)}
        if kept:
            made["_meta"] = kept
    if len(messages.encode(made)) > MAX_REQUEST:
        raise Unwanted("capacity")
    return made


def url(text: Any, granted: Grants) -> None:
    """Only to a host that is granted, encrypted, and written so that everybody reads the same host
    in it. Raises Unwanted.
    """
    if type(text) is not str or not 1 <= len(text) <= MAX_URL or not _PLAIN_URL.fullmatch(text):
        raise Unwanted("capability_not_granted")
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        plain = parts.username is None and parts.port != 0
    except ValueError:
        raise Unwanted("capability_not_granted") from None
    if parts.scheme != "https" or not plain or host not in granted.elicitation_hosts:
        raise Unwanted("capability_not_granted")


def _form(schema: Any) -> None:
    if type(schema) is not dict or type(schema.get("properties", {})) is not dict:
        raise Unwanted("upstream_protocol")
    for name, field in _fields(schema):
        if _secret(name, field):
            raise Unwanted("capability_not_granted")


def _fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every named place where something could be entered, however deep."""
    waiting: list[Any] = [schema]
    for seen, node in enumerate(waiting):  # grows while it is walked
        if seen > _MAX_FIELDS:
            raise Unwanted("upstream_protocol")
        if type(node) is list:
            waiting.extend(node)
        elif type(node) is dict:
            named = node.get("properties")
            if type(named) is dict:
                yield from ((k, v if type(v) is dict else {}) for k, v in named.items())
            waiting.extend(value for value in node.values() if type(value) in {dict, list})


def _secret(name: str, field: dict[str, Any]) -> bool:
    """A password by its format; or text without given choices under a name for secrets."""
    if field.get("format") == "password" or field.get("writeOnly") is True:
        return True
    if not _holds_text(field):
        return False
    title = field.get("title")
    return _names_secret(name) or (type(title) is str and _names_secret(title))


def _holds_text(field: dict[str, Any]) -> bool:
    """What the user types, and does not choose; in doubt it is."""
    kind, items = field.get("type", "string"), field.get("items")
    if kind == "array" and type(items) is dict:
        return _holds_text(items)
    return kind not in _NO_TEXT and not any(_chosen(name, field) for name in _CHOICES)


def _chosen(name: str, field: dict[str, Any]) -> bool:
    options = field.get(name)
    if type(options) is not list or not options:
        return False
    return name == "enum" or all(type(one) is dict and "const" in one for one in options)


def _names_secret(text: str) -> bool:
    words = [word.lower() for word in _WORD.findall(text[:256])]
    joined = "".join(words)
    return not _SECRET_WORDS.isdisjoint(words) or any(one in joined for one in _SECRET_PHRASES)


def _between_us(key: str) -> bool:
    return key == "progressToken" or key.startswith(_OURS)
