"""One sign-in on its way to the provider and back (OpenID Connect Core 3.1, RFC 7636, RFC 9207).

Decides what is sent along, and what of an answer may be looked at. Everything secret of it hangs
on a value that only the browser's cookie holds: state alone, or our database, opens nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from urllib.parse import urlencode, urlsplit

from services.control.oidc.configuration import Configuration

LIFE: Final = timedelta(minutes=10)
CALLBACK: Final = "/api/v1/auth/callback"
COOKIE_SECURE: Final = "__Host-behavry-provider"
COOKIE_LOOPBACK: Final = "behavry_provider"
MAX_PARAMETER: Final = 4096


class NotSignedIn(Exception):
    """The sign-in is refused. `reason` is for the record; the browser is told one thing only."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """`state` goes through the provider, `browser` stays in a cookie."""

    state: str = field(repr=False)
    browser: str = field(repr=False)

    @classmethod
    def new(cls) -> Transaction:
        return cls(state=secrets.token_urlsafe(32), browser=secrets.token_urlsafe(32))

    @property
    def nonce(self) -> str:
        return self._derived(b"nonce")

    @property
    def verifier(self) -> str:
        """PKCE's; 43 characters (RFC 7636 4.1)."""
        return self._derived(b"pkce")

    @property
    def challenge(self) -> str:
        return _base64url(hashlib.sha256(self.verifier.encode()).digest())

    def _derived(self, what: bytes) -> str:
        message = b"behavry/oidc/1\0" + what + b"\0" + self.state.encode()
        return _base64url(hmac.digest(self.browser.encode(), message, "sha256"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """What came back in the address."""

    code: str = field(repr=False)
    issuer: str | None


def kept(text: str) -> bytes:
    """What is stored of a state or a cookie."""
    return hashlib.sha256(text.encode()).digest()


def cookie_name(*, secure: bool) -> str:
    return COOKIE_SECURE if secure else COOKIE_LOOPBACK


def cookie(value: str, *, secure: bool) -> str:
    """A Set-Cookie value. Lax: the way back is a navigation from another site."""
    name, life = cookie_name(secure=secure), int(LIFE.total_seconds()) if value else 0
    ending = "; Secure" if secure else ""
    return f"{name}={value}; Path=/; Max-Age={life}; HttpOnly; SameSite=Lax{ending}"


def redirect_uri(public_url: str) -> str:
    return public_url.rstrip("/") + CALLBACK


def authorization_url(
    endpoint: str,
    configuration: Configuration,
    transaction: Transaction,
    *,
    public_url: str,
    again: bool,
) -> str:
    """`again`: the provider must ask for the proof anew."""
    asked = {
        "response_type": "code",
        "client_id": configuration.client_id,
        "redirect_uri": redirect_uri(public_url),
        "scope": " ".join(configuration.scopes),
        "state": transaction.state,
        "nonce": transaction.nonce,
        "code_challenge": transaction.challenge,
        "code_challenge_method": "S256",
    }
    if again:
        asked |= {"prompt": "login", "max_age": "0"}
    separator = "&" if urlsplit(endpoint).query else "?"
    return f"{endpoint}{separator}{urlencode(asked)}"


def end_session_url(endpoint: str, configuration: Configuration, *, public_url: str) -> str:
    """Where a browser signs out of the provider too (RP-Initiated Logout 2)."""
    asked = {
        "client_id": configuration.client_id,
        "post_logout_redirect_uri": public_url.rstrip("/") + "/",
    }
    separator = "&" if urlsplit(endpoint).query else "?"
    return f"{endpoint}{separator}{urlencode(asked)}"


def parameters(pairs: Iterable[tuple[str, str]], *, longest: int = MAX_PARAMETER) -> dict[str, str]:
    """Raises NotSignedIn where one comes twice (RFC 6749 3.1) or is out of all proportion."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found or len(value) > longest:
            raise NotSignedIn("oidc_answer_malformed")
        found[name] = value
    return found


def returned(
    found: dict[str, str], configuration: Configuration, *, issuer_promised: bool
) -> Returned:
    """1. from whom (RFC 9207)  2. whether it is an error  3. the code. Raises NotSignedIn."""
    issuer = found.get("iss")
    if issuer is None and issuer_promised:  # 1
        raise NotSignedIn("oidc_issuer_missing")
    if issuer is not None and issuer != configuration.issuer:
        raise NotSignedIn("oidc_issuer_mixed_up")
    if "error" in found:  # 2
        raise NotSignedIn("oidc_provider_refused")
    code = found.get("code", "")
    if not code:  # 3
        raise NotSignedIn("oidc_answer_malformed")
    return Returned(code=code, issuer=issuer)


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
