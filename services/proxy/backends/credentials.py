"""How the proxy proves itself to a tool server: the header and the TLS context of a request.

Decides when a token is asked for, how long it is used, and for whom. None of it is ever the agent's
own credential. What cannot be had is the upstream's failure, 5023, and nothing went out.
"""

from __future__ import annotations

import asyncio
import re
import secrets as random
import ssl
from dataclasses import dataclass, field
from typing import Final, Protocol

from services.common.clock import Clock
from services.common.ids import ServerSlug, TenantId
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log
from services.proxy.backends import token_endpoint, token_requests
from services.proxy.backends.secrets import Secrets
from services.proxy.backends.tls import Contexts
from services.proxy.backends.token_endpoint import Answered
from services.proxy.backends.token_requests import (
    KeyUnusable,
    Subject,
    Token,
    TokenRefused,
    TokenRequest,
)
from services.proxy.backends.upstream import UpstreamFailed
from services.proxy.calls import Visit
from services.proxy.snapshot import Credential, Server

#: A token is used until so long before its end.
MARGIN_S: Final = 60
#: Whoever comes right after a refusal gets the same one; the endpoint is not asked again.
REFUSED_NS: Final = 1_000_000_000
#: A token that was renewed after a 401 and is refused as well is not renewed again at once.
RENEWED_NS: Final = 10 * 1_000_000_000
MAX_PLACES: Final = 10_000
_NS: Final = 1_000_000_000
_TOKENS: Final = frozenset({"client_credentials", "jwt_bearer", "token_exchange"})
_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_|~-]{1,64}")
_BEARER: Final = b"authorization"

#: (name, value), as they go onto the wire.
Header = tuple[bytes, bytes]
#: Tenant, server, and the agent where the token is its own.
_Key = tuple[TenantId, ServerSlug, str]


class Post(Protocol):
    async def __call__(
        self, url: str, request: TokenRequest, *, tls: ssl.SSLContext, private: bool
    ) -> Answered:
        """Raises TokenRefused."""


@dataclass(slots=True)
class _Place:
    """What is known of one token. The lock is held by whoever asks for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    server: Server | None = None
    header: Header | None = field(default=None, repr=False)
    until_ns: int = 0
    #: When the one before was forgotten.
    forgotten_ns: int | None = None
    refused_ns: int | None = None
    reason: str = ""


class Credentials:
    """One per worker, for all tool servers."""

    def __init__(
        self,
        *,
        secrets: Secrets,
        clock: Clock,
        counters: Counters,
        log: Log,
        private: bool = True,
        post: Post = token_endpoint.post,
    ) -> None:
        """`private`: whether token endpoints may have private addresses."""
        self._secrets = secrets
        self._clock = clock
        self._asked = counters.counter("proxy.upstream.tokens")
        self._log = log
        self._private = private
        self._post = post
        self._contexts = Contexts(secrets, clock)
        self._names: dict[str, bytes] = {}
        self._places: dict[_Key, _Place] = {}

    async def header(self, visit: Visit) -> Header | None:
        """None where requests carry none. Waits only when a token must be asked for. Raises
        UpstreamFailed.
        """
        credential = visit.server.credential
        kind = credential.kind
        if kind in {"none", "mtls"}:
            return None
        if kind == "header":
            value = self._secrets.header(credential.value)
            return self._name(credential.name), value.encode("ascii")
        if kind not in _TOKENS:
            raise UpstreamFailed("upstream_auth", ran=False)
        place = self._places.get(_key(visit))
        if place is not None and self._good(place, visit):
            return place.header
        return await self._renewed(visit)

    def forget(self, visit: Visit, used: Header | None = None) -> bool:
        """After a 401: whether there will be another header to try. `used` is the one that was
        refused: another call may have renewed it meanwhile.
        """
        if visit.server.credential.kind not in _TOKENS:
            return False
        place = self._places.get(_key(visit))
        if place is None or place.header is None:
            return True
        if used is not None and place.header is not used:
            return True
        now_ns = self._clock.monotonic_ns()
        if place.forgotten_ns is not None and now_ns - place.forgotten_ns < RENEWED_NS:
            return False
        place.header, place.forgotten_ns = None, now_ns
        return True

    async def tls(self, server: Server) -> ssl.SSLContext | None:
        """None where the machine's own authorities are trusted and no certificate is shown; else
        the same context as long as its files are the same. Raises UpstreamFailed.
        """
        credential = server.credential
        shown = credential.kind == "mtls"
        if not server.ca and not shown:
            return None
        if not shown:
            return await self._contexts.of(ca=server.ca)
        return await self._contexts.of(
            ca=server.ca, certificate=credential.certificate, key=credential.key
        )

    # --- tokens ---------------------------------------------------------------------------------

    def _good(self, place: _Place, visit: Visit) -> bool:
        """A server whose entry changed is another server."""
        return (
            place.header is not None
            and place.until_ns > self._clock.monotonic_ns()
            and (place.server is visit.server or place.server == visit.server)
        )

    async def _renewed(self, visit: Visit) -> Header:
        """One asks, the others wait for what it gets. Who asks may be cancelled: the next does."""
        key = _key(visit)
        place = self._places.get(key)
        if place is None:
            self._make_room()
            place = self._places[key] = _Place()
        began_ns = self._clock.monotonic_ns()
        async with place.lock:
            if self._good(place, visit) and place.header is not None:
                return place.header
            if place.refused_ns is not None and began_ns - place.refused_ns < REFUSED_NS:
                raise UpstreamFailed(place.reason, ran=False)
            asked_ns = self._clock.monotonic_ns()
            try:
                token = await self._token(visit)
            except UpstreamFailed as failure:
                place.refused_ns, place.reason = self._clock.monotonic_ns(), failure.reason
                raise
            header = (_BEARER, b"Bearer " + token.value.encode("ascii"))
            place.server, place.header, place.refused_ns = visit.server, header, None
            place.until_ns = asked_ns + _usable_ns(token.life_s)
            return header

    async def _token(self, visit: Visit) -> Token:
        credential = visit.server.credential
        tls = await self._contexts.of(ca=credential.token_ca)
        request = await self._request(visit)
        self._asked.value += 1
        try:
            answered = await self._post(
                credential.token_url, request, tls=tls, private=self._private
            )
            return token_requests.read(answered.status, bytes(answered.body))
        except TokenRefused as refused:
            self._log.warning("upstream_token_refused", server=visit.slug, why=refused.why)
            raise UpstreamFailed("upstream_auth", ran=False) from None

    async def _request(self, visit: Visit) -> TokenRequest:
        credential = visit.server.credential
        secret = self._resolved(credential.client_secret)
        if credential.kind == "client_credentials":
            return token_requests.client_credentials(credential, secret)
        key = self._secrets.resolve(credential.key)
        try:  # to read and use a key takes milliseconds
            return await asyncio.to_thread(self._signed, visit, credential, secret, key)
        except KeyUnusable:
            raise UpstreamFailed("secret_unresolved", ran=False) from None

    def _signed(self, visit: Visit, credential: Credential, secret: str, key: str) -> TokenRequest:
        now_s = self._clock.now_ns() // _NS
        jti = random.token_urlsafe(16)
        if credential.kind == "jwt_bearer":
            return token_requests.jwt_bearer(credential, secret, key, now_s=now_s, jti=jti)
        subject = Subject(visit.caller.tenant, visit.caller.agent, visit.agent.name)
        return token_requests.token_exchange(credential, secret, key, subject, now_s=now_s, jti=jti)

    def _resolved(self, reference: str) -> str:
        return self._secrets.resolve(reference) if reference else ""

    def _make_room(self) -> None:
        if len(self._places) < MAX_PLACES:
            return
        now_ns = self._clock.monotonic_ns()
        for key, place in list(self._places.items()):
            if place.until_ns <= now_ns and not place.lock.locked():
                del self._places[key]
        while len(self._places) >= MAX_PLACES:  # the oldest; it is asked for again
            del self._places[next(iter(self._places))]

    def _name(self, name: str) -> bytes:
        known = self._names.get(name)
        if known is None:
            if not _NAME.fullmatch(name) or len(self._names) >= MAX_PLACES:
                raise UpstreamFailed("upstream_auth", ran=False)
            known = self._names[name] = name.encode("ascii")
        return known


def _key(visit: Visit) -> _Key:
    own = visit.server.credential.per_agent
    return visit.caller.tenant, visit.slug, visit.caller.agent if own else ""


def _usable_ns(life_s: int) -> int:
    """Up to a minute before the end; of one that lives no longer, half of it."""
    usable_s = life_s - MARGIN_S if life_s > MARGIN_S else life_s / 2
    return int(usable_s * _NS)
