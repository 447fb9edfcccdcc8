"""What a credential for a tool server may say (mcp.md 10.2). Rules over values alone; no secret is
ever one of them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from services.control.servers import (
    BadServer,
    check_credential_header,
    is_plain_url,
)

#: Client ids, issuers, audiences, key ids.
NAME: Final = r"^[\x21-\x7e]([\x20-\x7e]{0,510}[\x21-\x7e])?$"
#: RFC 6749 3.3, or empty.
SCOPE: Final = r"^([\x21\x23-\x5b\x5d-\x7e]+( [\x21\x23-\x5b\x5d-\x7e]+)*)?$"
CLAIM: Final = r"^[A-Za-z0-9_]([A-Za-z0-9_.:/-]{0,126}[A-Za-z0-9_])?$"
MAX_SCOPE: Final = 1024
MAX_CLAIMS: Final = 16
#: What the plane says itself.
_OURS: Final = frozenset({"iss", "sub", "aud", "iat", "nbf", "exp", "jti"})


def check(server: Mapping[str, Any]) -> None:
    """`server`: the row as it will be. Raises BadServer."""
    kind, settings = server["credential_kind"], server["credential_settings"]
    if kind == "none":
        return
    if server["transport"] == "stdio":
        raise BadServer(
            "credential",
            "not_for_stdio",
            "A stdio server has no header to carry it: name what its program needs in `env` of "
            "stdio.toml.",
        )
    if kind == "header":
        _check_header(server)
    elif kind == "mtls":
        if not all(url.lower().startswith("https://") for url in server["urls"]):
            raise BadServer(
                "credential",
                "needs_https",
                "A client certificate is shown over TLS: make all of `urls` https://.",
            )
    else:
        _check_token(settings)


def _check_header(server: Mapping[str, Any]) -> None:
    check_credential_header(server["credential_header"])
    if server["credential_header"].lower() in {name.lower() for name in server["headers"]}:
        raise BadServer(
            "headers", "twice", "The credential's header is one of these; leave it out."
        )


def _check_token(settings: Mapping[str, Any]) -> None:
    if not is_safe_url(settings["token_url"]):
        raise BadServer(
            "credential/token_url",
            "url",
            "https://host[:port]/path without user or fragment; http:// only on this machine.",
        )
    if len(settings.get("scope", "")) > MAX_SCOPE:
        raise BadServer("credential/scope", "too_long", f"At most {MAX_SCOPE} characters.")
    if settings.get("client_secret") and not settings.get("client_id"):
        raise BadServer("credential/client_id", "missing", "A client secret needs its client_id.")
    if _OURS & set(settings.get("claims", {})):
        raise BadServer(
            "credential/claims",
            "reserved",
            "iss, sub and aud are `issuer`, `subject` and `audience`; the rest is the plane's.",
        )


def is_safe_url(url: str) -> bool:
    """Where a secret may be sent."""
    if not is_plain_url(url):
        return False
    parts = urlsplit(url)
    return parts.scheme == "https" or _is_here(parts.hostname or "")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
