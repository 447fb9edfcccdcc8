"""What a tool server and the class of a tool may look like (core.md 1 and 7, mcp.md 1.1).

Rules over values alone; rows are store/servers.py's. No secret is ever a value here, only the name
of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from services.control.bundles import looks_secret

Trust = Literal["trusted", "untrusted", "blocked"]
Transport = Literal["http", "sse", "stdio"]
Era = Literal["auto", "modern", "legacy"]
Share = Literal["agent", "server"]
#: What an admin may say a tool does; `unclassified` is what nobody has said yet.
Action = Literal["read", "write", "delete", "execute", "network", "admin"]

SLUG: Final = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
DOMAIN: Final = r"^[a-z0-9][a-z0-9_-]{0,39}$"
STDIO_NAME: Final = r"^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$"
HEADER_NAME: Final = r"^[A-Za-z0-9!#$%&'*+.^_|~-]{1,64}$"
REFERENCE: Final = r"^secret://[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$"
#: Where a user may be sent: a name or an IPv4 address, no port, no wildcard.
HOST: Final = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?){0,9}$"
EXTENSION: Final = (
    r"^[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$"
)
HEADER_VALUE: Final = r"^[\x21-\x7e]([\x20-\x7e]{0,254}[\x21-\x7e])?$"
SCHEMA_HASH: Final = r"^sha256:[0-9a-f]{64}$"
RESERVED_SLUGS: Final = frozenset({"key", "all"})
MAX_URLS: Final = 8
MAX_HEADERS: Final = 16
MAX_GRANTED: Final = 32
MAX_TOOLS: Final = 1000
MAX_DEFINITION_BYTES: Final = 256 * 1024
_TOOL_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
#: Headers that are the transport's own; one of an admin's would break or bypass it.
_TRANSPORTS: Final = frozenset(
    {"accept", "connection", "expect", "forwarded", "host", "keep-alive", "last-event-id", "te",
     "trailer", "transfer-encoding", "upgrade", "user-agent", "via", "traceparent", "tracestate",
     "baggage", "x-requester-id", "x-delegation-token", "x-workflow-session", "x-parent-event"}
)  # fmt: skip
_TRANSPORTS_PREFIXES: Final = ("accept-", "content-", "mcp-", "proxy-", "sec-", "x-forwarded-")
#: Names whose values are secrets nearly always.
_SECRET_WORDS: Final = frozenset(
    {"apikey", "auth", "authorization", "cookie", "cookie2", "credential", "credentials", "key",
     "password", "secret", "signature", "token"}
)  # fmt: skip


class BadServer(ValueError):
    """`field` names what is wrong, `code` how."""

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.code = code
        self.message = message


def check_slug(slug: str) -> None:
    if slug in RESERVED_SLUGS:
        raise BadServer("slug", "reserved", "`key` and `all` are reserved.")


def check_reach(transport: Transport, urls: Sequence[str], stdio: str) -> None:
    """Exactly one way to reach it: URLs for http and sse, a name of the plane's file for stdio."""
    if transport == "stdio":
        if urls:
            raise BadServer("urls", "not_for_stdio", "A stdio server has no URLs.")
        if not stdio:
            raise BadServer("stdio", "missing", "A stdio server needs its name in stdio.toml.")
        return
    if stdio:
        raise BadServer("stdio", "not_for_http", "Only a stdio server has this name.")
    if not 1 <= len(urls) <= MAX_URLS or len(set(urls)) != len(urls):
        raise BadServer("urls", "count", f"1 to {MAX_URLS} different URLs.")
    for index, url in enumerate(urls):
        if not is_plain_url(url):
            raise BadServer(
                f"urls/{index}", "url", "http(s)://host[:port]/path without user or fragment."
            )


def is_plain_url(url: str) -> bool:
    if not url.isascii() or any(ord(c) <= 0x20 or c in '"<>\\^`{|}' for c in url):
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = not (parts.username or parts.password or parts.fragment or "@" in parts.netloc)
    return plain and parts.scheme in {"http", "https"} and bool(parts.hostname) and port != 0


def check_credential_header(name: str) -> None:
    if _is_transports(name):
        raise BadServer("credential/name", "header", "This header belongs to the transport.")


def check_headers(headers: Mapping[str, str]) -> None:
    """Plain words for the server: what is secret has its place in the credential."""
    if len(headers) > MAX_HEADERS:
        raise BadServer("headers", "too_many", f"At most {MAX_HEADERS} headers.")
    if len({name.lower() for name in headers}) != len(headers):
        raise BadServer("headers", "twice", "A header's name is there twice; case does not count.")
    for name, value in headers.items():
        if not re.fullmatch(HEADER_NAME, name):
            raise BadServer("headers", "name", "A header's name: letters, digits and - . _ ~ etc.")
        if _is_transports(name):
            raise BadServer(
                "headers", "header", "One of these headers belongs to the transport; leave it out."
            )
        if _SECRET_WORDS & set(re.split(r"[-_.]", name.lower())):
            raise BadServer(
                "headers", "secret", "A header of that name holds a secret: use `credential` of "
                "kind `header` with a value `secret://name`."
            )  # fmt: skip
        if not re.fullmatch(HEADER_VALUE, value):
            raise BadServer(
                "headers", "value", "A header's value: 1 to 256 printable ASCII characters."
            )
        if "secret://" in value:
            raise BadServer(
                "headers", "secret", "Only `credential` can refer to a secret; use its kind "
                "`header`."
            )  # fmt: skip


def check_transport_only(server: Mapping[str, Any]) -> None:
    """What only one kind of transport knows."""
    if server["transport"] == "stdio":
        if server["headers"]:
            raise BadServer("headers", "not_for_stdio", "A stdio server gets no headers.")
        if server["ca"]:
            raise BadServer("ca", "not_for_stdio", "A stdio server is not reached by TLS.")
        return
    if server["share"] != "agent":
        raise BadServer(
            "share", "only_for_stdio", "Only a stdio server's program can be shared; leave `agent`."
        )
    if server["ca"] and not all(url.lower().startswith("https://") for url in server["urls"]):
        raise BadServer("ca", "needs_https", "A CA is for https:// URLs; change all of `urls`.")


def check_grants(grants: Mapping[str, Any]) -> None:
    for field in ("elicitation_hosts", "extensions"):
        if len(set(grants[field])) != len(grants[field]):
            raise BadServer(f"grants/{field}", "twice", "An entry is there twice.")


def check_nothing_secret(server: Mapping[str, Any]) -> None:
    """Bundles hold all of it, and no bundle is made of what looks like a secret."""
    for name, value in desired(server).items():
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and looks_secret(text) for text in texts):
            top, _, rest = name.partition(".")
            field = {
                "credential_header": "credential/name",
                "credential_ref": "credential/value",
                "credential_settings": f"credential/{rest.partition('.')[0]}",
            }.get(top, top)
            raise BadServer(
                field,
                "secret",
                "This looks like a secret. Put it into a file of the plane's secrets and say "
                "`secret://name` in `credential`.",
            )


def _is_transports(name: str) -> bool:
    return name.lower() in _TRANSPORTS or name.lower().startswith(_TRANSPORTS_PREFIXES)


def is_tool_name(name: str) -> bool:
    return _TOOL_NAME.fullmatch(name) is not None


def is_schema_hash(text: str) -> bool:
    return re.fullmatch(SCHEMA_HASH, text) is not None


def state_after_sighting(*, state: str, pinned_hash: str, seen_hash: str) -> str:
    """Another definition than the approved one hides the tool until somebody approves it, even if
    the old one comes back: a server that flips shows what it can do.
    """
    return "changed" if state == "approved" and seen_hash != pinned_hash else state


def desired(server: Mapping[str, Any]) -> dict[str, Any]:
    """What a record's `changes` compares: every leaf by its dotted name."""
    unsaid = {"id", "revision", "created_at"}
    return _leaves({key: value for key, value in server.items() if key not in unsaid})


def _leaves(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves
