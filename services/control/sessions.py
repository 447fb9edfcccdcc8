"""Sessions of people: a browser's cookie or a command line's bearer token, how long they live, and
the token that guards a browser's writes.

The session itself is a row (store/people.py), found by the hash of its token. The CSRF token is
derived from the cookie's value, so it needs no storage and is worth nothing without the cookie.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal
from urllib.parse import urlsplit

ABSOLUTE: Final = timedelta(hours=12)
IDLE: Final = timedelta(minutes=30)
#: How stale `seen_at` may get before a request writes it anew.
TOUCH_AFTER: Final = timedelta(seconds=60)
COOKIE_SECURE: Final = "__Host-behavry"
COOKIE_LOOPBACK: Final = "behavry_local"
CSRF_HEADER: Final = "x-csrf-token"
BEARER_PREFIX: Final = "bhv_us_"
#: A cookie is never a bearer token, nor the reverse.
Kind = Literal["browser", "bearer"]
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def new_token(kind: Kind = "browser") -> str:
    return (BEARER_PREFIX if kind == "bearer" else "") + secrets.token_urlsafe(32)


def stored(token: str) -> bytes:
    """What is kept of a session's token."""
    return hashlib.sha256(token.encode()).digest()


def csrf_token(token: str) -> str:
    mac = hmac.digest(token.encode(), b"behavry/csrf/1", "sha256")
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


def alive(*, created_at: datetime, seen_at: datetime, now: datetime) -> bool:
    return now < created_at + ABSOLUTE and now < seen_at + IDLE


@dataclass(frozen=True, slots=True)
class Origins:
    """Which `Origin` a browser may write from: the public address, loopback spellings equal."""

    public_url: str

    @property
    def secure(self) -> bool:
        return self.public_url.startswith("https:")

    @property
    def loopback(self) -> bool:
        """Whether nobody but this machine reaches us."""
        return (urlsplit(self.public_url).hostname or "") in _LOOPBACK

    @property
    def cookie(self) -> str:
        return COOKIE_SECURE if self.secure else COOKIE_LOOPBACK

    def allows(self, origin: str) -> bool:
        return _canonical(origin) == _canonical(self.public_url)

    def set_cookie(self, token: str) -> str:
        """A Set-Cookie value (RFC 6265 4.1)."""
        life = int(ABSOLUTE.total_seconds())
        return self._cookie(token, life)

    def clear_cookie(self) -> str:
        return self._cookie("", 0)

    def _cookie(self, value: str, life_s: int) -> str:
        secure = "; Secure" if self.secure else ""
        return f"{self.cookie}={value}; Path=/; Max-Age={life_s}; HttpOnly; SameSite=Lax{secure}"


def _canonical(url: str) -> tuple[str, str, int] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return None
    host = parts.hostname or ""
    if parts.scheme not in {"http", "https"} or not host or parts.path or parts.query:
        return None
    return parts.scheme, "loopback" if host in _LOOPBACK else host, port


def same(sent: str, expected: str) -> bool:
    """Constant-time; nothing equals an empty expectation."""
    return bool(expected) and hmac.compare_digest(sent.encode(), expected.encode())
