"""What we ask of OpenID providers over the net: what they are, their keys, the token for a code.

HTTPS, or plain HTTP on this machine; no redirects; addresses as for notices (egress.py); little
time and few bytes. Keys and descriptions are kept for as long as nothing newer can be had, and a
key set is fetched twice a minute at most, whatever names of keys are made up.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote_plus, urlsplit

import aiohttp
from joserfc.errors import JoseError

from services.common.clock import Clock
from services.common.secret_refs import SecretFiles, SecretUnresolved
from services.control.limits import TooMany, Window
from services.control.notifications import egress
from services.control.notifications.destinations import is_loopback
from services.control.oidc.configuration import Configuration
from services.control.oidc.flow import NotSignedIn
from services.control.oidc.tokens import PublicKey, usable

TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 256 * 1024
FRESH_S: Final = 300
FETCHES_PER_MINUTE: Final = 2
_MAX_KEYS: Final = 64
_MAX_ISSUERS: Final = 1_000
_WELL_KNOWN: Final = "/.well-known/openid-configuration"


class ProviderFailed(NotSignedIn):
    """It cannot be reached, or what it says cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    end_session_endpoint: str | None
    #: How a client with a secret shows it: in the head, or in the form.
    secret_in_form: bool
    #: It says who it is in each answer (RFC 9207).
    names_itself: bool


@dataclass(slots=True)
class _Known:
    """Of one issuer. `lock`: one asks, the others take what it got."""

    fetches: Window
    descriptions: Window
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    description: Description | None = None
    described_ns: int = 0
    #: None: it never gave a set. One without a key that can be used takes the others back.
    keys: tuple[PublicKey, ...] | None = None
    keys_ns: int = 0


class Providers:
    def __init__(self, session: aiohttp.ClientSession, secrets: SecretFiles, clock: Clock) -> None:
        self._session = session
        self._secrets = secrets
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def describe(self, issuer: str) -> Description:
        """Raises ProviderFailed."""
        known = self._of(issuer)
        async with known.lock:
            if known.description is None or self._is_old(known.described_ns):
                await self._describe(issuer, known)
            if known.description is None:
                raise ProviderFailed("oidc_provider_not_reachable")
            return known.description

    def known(self, issuer: str) -> Description | None:
        """What it said last; nobody is asked."""
        known = self._known.get(issuer)
        return known.description if known else None

    async def keys(
        self, issuer: str, *, unlike: tuple[PublicKey, ...] = ()
    ) -> tuple[PublicKey, ...]:
        """`unlike`: those that did not do; newer ones are looked for. Raises ProviderFailed."""
        description = await self.describe(issuer)
        known = self._of(issuer)
        async with known.lock:
            wanted = not known.keys or self._is_old(known.keys_ns) or known.keys == unlike
            if wanted:
                await self._fetch_keys(description, known)
            if known.keys is None:
                raise ProviderFailed("oidc_provider_not_reachable")
            return known.keys

    async def redeem(
        self, configuration: Configuration, code: str, *, verifier: str, redirect_uri: str
    ) -> str:
        """The ID token that a code stands for. Raises ProviderFailed."""
        description = await self.describe(configuration.issuer)
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        headers: dict[str, str] = {}
        if configuration.client_secret is None:
            form["client_id"] = configuration.client_id
        else:
            secret = self._secret(configuration.client_secret)
            if description.secret_in_form:
                form |= {"client_id": configuration.client_id, "client_secret": secret}
            else:  # both form-encoded first (RFC 6749 2.3.1)
                pair = f"{quote_plus(configuration.client_id)}:{quote_plus(secret)}"
                headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        told = await self._ask("POST", description.token_endpoint, form=form, headers=headers)
        token = told.get("id_token")
        if not isinstance(token, str):
            raise ProviderFailed("oidc_no_token")
        return token

    def _secret(self, reference: str) -> str:
        try:
            return self._secrets.resolve(reference)
        except SecretUnresolved:
            raise ProviderFailed("oidc_secret_unresolved") from None

    # --- what is kept -------------------------------------------------------------------------

    def _of(self, issuer: str) -> _Known:
        known = self._known.get(issuer)
        if known is None:
            if len(self._known) >= _MAX_ISSUERS:
                self._known.pop(next(iter(self._known)))
            known = self._known[issuer] = _Known(
                fetches=Window(self._clock, limit=FETCHES_PER_MINUTE, seconds=60),
                descriptions=Window(self._clock, limit=FETCHES_PER_MINUTE, seconds=60),
            )
        return known

    def _is_old(self, since_ns: int) -> bool:
        return self._clock.monotonic_ns() - since_ns > FRESH_S * 1_000_000_000

    async def _describe(self, issuer: str, known: _Known) -> None:
        """What was known before stays where nothing newer can be had."""
        try:
            known.descriptions.take(issuer)
            told = await self._ask("GET", issuer.rstrip("/") + _WELL_KNOWN)
            known.description = described(told, issuer)
        except TooMany:
            return
        except ProviderFailed:
            if known.description is None:
                raise
        known.described_ns = self._clock.monotonic_ns()

    async def _fetch_keys(self, description: Description, known: _Known) -> None:
        try:
            known.fetches.take(description.issuer)
            told = await self._ask("GET", description.jwks_uri)
            found = _keys(told)
        except TooMany:
            return
        except ProviderFailed:
            if known.keys is None:
                raise
            return
        known.keys, known.keys_ns = found, self._clock.monotonic_ns()

    # --- the wire -----------------------------------------------------------------------------

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        """One JSON object. Raises ProviderFailed; no text of the other side leaves here."""
        if not is_address(url):
            raise ProviderFailed("oidc_provider_malformed")
        try:
            egress.check(urlsplit(url).hostname or "")  # an address in the URL is never resolved
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._session.request(
                    method,
                    url,
                    data=form,
                    headers={"accept": "application/json", **(headers or {})},
                    allow_redirects=False,
                ) as answer,
            ):
                raw = await _capped(answer)
                if answer.status != 200:
                    raise ProviderFailed("oidc_provider_answered_no")
            told = json.loads(raw)
        except (aiohttp.ClientError, OSError, TimeoutError):
            raise ProviderFailed("oidc_provider_not_reachable") from None
        except (ValueError, RecursionError):
            raise ProviderFailed("oidc_provider_malformed") from None
        if not isinstance(told, dict):
            raise ProviderFailed("oidc_provider_malformed")
        return told


@asynccontextmanager
async def opened(
    secrets: SecretFiles, clock: Clock, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Providers]:
    """`tls`: whom to trust; the system's own choice where nothing is said."""
    connector = aiohttp.TCPConnector(
        resolver=egress.GuardedResolver(),
        ssl=tls or True,
        use_dns_cache=False,
        keepalive_timeout=5,
        limit=20,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        headers={"user-agent": "Behavry"},
    ) as session:
        yield Providers(session, secrets, clock)


def is_address(url: str) -> bool:
    """Whether we would ask there: HTTPS, or plain HTTP on this machine; no user, no fragment."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        return False
    if parts.username is not None or parts.password is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def described(told: Mapping[str, Any], issuer: str) -> Description:
    """Raises ProviderFailed for a description that is not of this issuer, or of too little."""
    if told.get("issuer") != issuer:
        raise ProviderFailed("oidc_issuer_wrong")
    challenges = told.get("code_challenge_methods_supported")
    if isinstance(challenges, list) and "S256" not in challenges:
        raise ProviderFailed("oidc_provider_without_pkce")
    methods = told.get("token_endpoint_auth_methods_supported")
    if not isinstance(methods, list):
        methods = ["client_secret_basic"]
    ending = told.get("end_session_endpoint")
    return Description(
        issuer=issuer,
        authorization_endpoint=_endpoint(told, "authorization_endpoint"),
        token_endpoint=_endpoint(told, "token_endpoint"),
        jwks_uri=_endpoint(told, "jwks_uri"),
        end_session_endpoint=ending if isinstance(ending, str) and is_address(ending) else None,
        secret_in_form="client_secret_basic" not in methods and "client_secret_post" in methods,
        names_itself=told.get("authorization_response_iss_parameter_supported") is True,
    )


def _endpoint(told: Mapping[str, Any], name: str) -> str:
    url = told.get(name)
    if not isinstance(url, str) or not is_address(url):
        raise ProviderFailed("oidc_provider_malformed")
    return url


def _keys(told: Mapping[str, Any]) -> tuple[PublicKey, ...]:
    """Those that can be used; what we do not know is passed over (RFC 7517 5)."""
    listed = told.get("keys")
    if not isinstance(listed, list):
        raise ProviderFailed("oidc_provider_malformed")
    try:
        found = [usable(one) for one in listed[:_MAX_KEYS] if isinstance(one, dict)]
    except JoseError:
        raise ProviderFailed("oidc_provider_malformed") from None
    return tuple(one for one in found if one is not None)


async def _capped(answer: aiohttp.ClientResponse) -> bytes:
    raw = bytearray()
    async for chunk in answer.content.iter_chunked(16 * 1024):
        raw += chunk
        if len(raw) > MAX_BYTES:
            raise ProviderFailed("oidc_provider_malformed")
    return bytes(raw)
