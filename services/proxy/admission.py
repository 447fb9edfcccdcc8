"""What a request has to be before anybody asks who sends it (mcp.md 1.1, 1.2; 1.3, steps 1 to 4).

Decides by the request's line and headers alone: path and verb, Host and Origin, media types,
length, and which credential it brings. Pure; whether the credential is good is identity.py's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from services.proxy import headers
from services.proxy.answers import Answer
from services.proxy.eras import MODERN
from services.proxy.snapshot import RESERVED, server_name

MAX_BODY: Final = 4 * 1024 * 1024
#: Of a legacy session, beside POST.
IN_SESSION: Final = ("GET", "DELETE")
JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"
_BOTH: Final = b"application/json, text/event-stream"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MODERN: Final = frozenset(version.encode() for version in MODERN)
_NO_QUALITY: Final = re.compile(rb"0(?:\.0*)?")
_IN_QUERY: Final = frozenset({
    "access_token", "token", "bearer", "authorization", "key", "api_key", "apikey", "x_api_key",
    "client_secret",
})  # fmt: skip
_LOOKS_LIKE_ONE: Final = re.compile(r"bhv_ak_|bearer\s|ey[\w-]+\.[\w-]+\.[\w-]*$", re.IGNORECASE)
_ASKED_BY_BROWSERS: Final = frozenset({
    b"authorization", b"content-type", b"accept", b"x-api-key", b"x-requester-id", b"last-event-id",
    b"mcp-session-id", b"mcp-protocol-version", b"mcp-method", b"mcp-name",
})  # fmt: skip
_SHOWN_TO_BROWSERS: Final = b"mcp-session-id, mcp-protocol-version, www-authenticate, retry-after"

Raw = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """What the door answers to. `public_url` has no trailing slash; of `origins`, those in `cors`
    are other sites, whose pages may read the answers.
    """

    public_url: str
    issuer: str
    hosts: frozenset[str]
    origins: frozenset[str]
    cors: frozenset[str]


def edges(
    *, public_url: str, issuer: str, allowed_hosts: Sequence[str], cors_origins: Sequence[str]
) -> Edges:
    own = urlsplit(public_url)
    hosts = {own.netloc.lower(), *(host.lower() for host in allowed_hosts)}
    if own.hostname in {"127.0.0.1", "localhost", "::1"}:  # loopback spellings are equal
        hosts |= {f"{name}:{own.port}" for name in ("127.0.0.1", "localhost", "[::1]")}
    usual = f":{_DEFAULT_PORTS.get(own.scheme, '')}"
    hosts |= {host.removesuffix(usual) for host in hosts if host.endswith(usual)}
    if own.port is None:
        hosts.add(own.netloc.lower() + usual)
    return Edges(
        public_url=public_url.rstrip("/"),
        issuer=issuer.rstrip("/"),
        hosts=frozenset(hosts),
        origins=frozenset({f"{own.scheme}://{own.netloc}", *cors_origins}),
        cors=frozenset(cors_origins),
    )


def joined(raw: Raw) -> dict[bytes, bytes]:
    """Headers by name; what came on several lines reads as one list (RFC 9110 5.3), which is no
    host, no origin and no media type. Blanks around a value are not part of it (5.5).
    """
    sent = {name: value.strip(b" \t") for name, value in raw}
    if len(sent) != len(raw):
        sent = {}
        for name, value in raw:
            bare = value.strip(b" \t")
            sent[name] = b"%s, %s" % (sent[name], bare) if name in sent else bare
    return sent


def refused(
    edges: Edges, *, path: tuple[str, str], verb: str, sent: Mapping[bytes, bytes]
) -> Answer | None:
    """1. path, verb  2. Host, Origin  3. Content-Type, Accept  4. Content-Length. `path` is the
    server's name and which of its two forms.
    """
    name, form = path
    if not server_name(name) or name in RESERVED or form not in {"", "key"}:  # 1
        return plain(404)
    if verb != "POST" and not _in_session(verb, sent):
        return plain(405, (b"allow", ", ".join(("POST", *IN_SESSION)).encode()))
    if sent.get(b"host", b"").decode("latin-1").lower() not in edges.hosts:  # 2
        return plain(421)
    origin = sent.get(b"origin")
    if origin is not None and origin.decode("latin-1") not in edges.origins:
        return plain(403)
    if verb == "DELETE":
        return None
    accept = sent.get(b"accept", b"")
    if verb == "GET":
        return None if admits(accept, EVENTS) else plain(406)
    kind = sent.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != JSON or b"content-encoding" in sent:  # 3
        return plain(415)
    if accept != _BOTH and not (admits(accept, JSON) and admits(accept, EVENTS)):
        return plain(406)
    length = sent.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > MAX_BODY:  # 4
        return plain(413)
    return None


def admits(accept: bytes, kind: bytes) -> bool:
    """Whether an answer may be of this kind: the closest range decides (RFC 9110 12.5.1)."""
    ranges: dict[bytes, bool] = {}
    for part in accept.lower().split(b","):
        name, *parameters = (one.strip() for one in part.split(b";"))
        quality = next((one[2:] for one in parameters if one.startswith(b"q=")), b"1")
        ranges[name] = _NO_QUALITY.fullmatch(quality.strip()) is None
    family = kind.partition(b"/")[0] + b"/*"
    return next((ranges[one] for one in (kind, family, b"*/*") if one in ranges), False)


def credential(
    sent: Mapping[bytes, bytes], raw: Raw, query: bytes, *, key: bool
) -> tuple[bytes | None, bool]:
    """The one credential, and whether there is more than that. Only the key form takes X-API-Key;
    a second credential beside a first is one too many anywhere.
    """
    header, api_key = sent.get(b"authorization"), sent.get(b"x-api-key")
    given: bytes | None = None
    if header is not None:
        scheme, _, value = header.partition(b" ")
        given = value.strip() if scheme.lower() == b"bearer" else b""
    elif key and api_key is not None:
        given = api_key
    several = header is not None and api_key is not None
    if len(raw) != len(sent):
        several |= sum(name in {b"authorization", b"x-api-key"} for name, _ in raw) > 1
    return given, several or (bool(query) and in_query(query))


def in_query(query: bytes) -> bool:
    """Whether a credential stands where logs and referrers keep it."""
    pairs = parse_qsl(query.decode("latin-1").replace(";", "&"), keep_blank_values=True)
    return any(
        name.lower().replace("-", "_") in _IN_QUERY or _LOOKS_LIKE_ONE.match(value)
        for name, value in pairs
    )


def preflight(edges: Edges, sent: Mapping[bytes, bytes]) -> Answer:
    """A browser asks for a page of another site what it may send."""
    if sent.get(b"origin", b"").decode("latin-1") not in edges.cors:
        return plain(403)
    asked = sent.get(b"access-control-request-headers", b"").lower().split(b",")
    allowed = [
        name
        for name in (one.strip() for one in asked)
        if name in _ASKED_BY_BROWSERS or name.startswith(headers.PARAM_PREFIX)
    ]
    return plain(
        204,
        (b"access-control-allow-methods", b"POST, GET, DELETE"),
        (b"access-control-allow-headers", b", ".join(allowed)),
        (b"access-control-max-age", b"600"),
    )


def cors_headers(edges: Edges, sent: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """What every answer carries for a page of another site that is on the list."""
    origin = sent.get(b"origin")
    if origin is None or origin.decode("latin-1") not in edges.cors:
        return ()
    return (
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", _SHOWN_TO_BROWSERS),
        (b"vary", b"origin"),
    )


def plain(status: int, *headers: tuple[bytes, bytes]) -> Answer:
    return Answer(status, b"", headers)


def _in_session(verb: str, sent: Mapping[bytes, bytes]) -> bool:
    """The modern era has no sessions, whatever stands in the header for one."""
    return (
        verb in IN_SESSION
        and b"mcp-session-id" in sent
        and sent.get(b"mcp-protocol-version") not in _MODERN
    )
