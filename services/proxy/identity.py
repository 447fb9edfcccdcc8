"""Who is calling: agents' tokens and keys (mcp.md 1.2, core.md 2).

Decides whether a credential is good. A verified token is remembered by its hash until it expires;
whether agent and session still live is looked at on each request, elsewhere. A key is traded for a
token at control and kept in memory only.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, RSAKey
from msgspec.structs import replace

from services.common.clock import Clock
from services.common.ids import AgentId, SessionId, TenantId, is_uuid
from services.proxy.calls import Caller

LEEWAY_S: Final = 30
KEY_PREFIX: Final = "bhv_ak_"
MIN_RSA_BITS: Final = 2048
MAX_TOKEN: Final = 8 * 1024
REFUSED_S: Final = 10
MAX_CACHED: Final = 20_000
_NS: Final = 1_000_000_000
#: The one scope of this resource. A token that names scopes must name it.
SCOPE: Final = "mcp"
INSUFFICIENT_SCOPE: Final = "insufficient_scope"
_Session = tuple[TenantId, AgentId, SessionId]
_JWK_MEMBERS: Final = ("kty", "n", "e", "kid", "alg", "use")


class Unauthenticated(Exception):
    """`reason` is recorded; the tenant and agent are what an unproven token claims."""

    def __init__(self, reason: str, *, presented: bool = True, claimed: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.presented = presented
        self.claimed = claimed


class Expired(Unauthenticated):
    """All is well with the token but its time."""

    def __init__(self, caller: Caller) -> None:
        super().__init__("token_expired", claimed=caller.tenant)
        self.caller = caller


class ControlAway(Exception):
    """A key that was never traded, and nobody to trade it with."""


@dataclass(frozen=True, slots=True)
class Traded:
    token: str
    expires_in_s: int


class Trader(Protocol):
    async def trade(self, client_id: str, client_secret: str, session: str | None) -> Traded | None:
        """None: refused. Raises ControlAway."""

    async def away(self) -> bool:
        """Whether nobody could be given a token now."""


@dataclass(slots=True)
class _Key:
    caller: Caller
    renew_at_s: int


class Identity:
    """One per worker. `spawn` runs a renewal in the background."""

    def __init__(
        self,
        *,
        issuer: str,
        plane_audience: str,
        trader: Trader,
        clock: Clock,
        spawn: Callable[[str, Callable[[], Any]], Any],
        grace_s: int = 0,
    ) -> None:
        """`grace_s`: how long a token outlives its end while control is away (core.md 2)."""
        self._issuer = issuer
        self._plane_audience = plane_audience
        self._trader = trader
        self._clock = clock
        self._spawn = spawn
        self._grace_s = grace_s
        #: Sessions that were let in, and how long their tokens lived.
        self._alive: dict[_Session, int] = {}
        self._keys: KeySet | None = None
        self._kids: frozenset[str] = frozenset()
        self._tokens: dict[bytes, Caller] = {}
        self._traded: dict[bytes, _Key] = {}
        self._refused: dict[bytes, int] = {}
        self._trades: dict[bytes, asyncio.Future[Caller]] = {}

    @property
    def ready(self) -> bool:
        return self._keys is not None

    def set_keys(self, issuer: str, jwks: dict[str, Any]) -> None:
        """The issuer's public keys; only RSA keys of 2,048 bits and more count."""
        usable: list[RSAKey] = []
        for raw in jwks.get("keys", ()):
            if raw.get("kty") == "RSA" and raw.get("kid"):
                key = RSAKey.import_key({name: raw[name] for name in _JWK_MEMBERS if name in raw})
                if key.raw_value.key_size >= MIN_RSA_BITS:
                    usable.append(key)
        kids = frozenset(str(key.kid) for key in usable)
        if not kids >= self._kids:  # a key was withdrawn: what it signed is no longer good
            self._tokens.clear()
            self._traded.clear()
        self._issuer = issuer or self._issuer
        self._keys, self._kids = KeySet([*usable]), kids

    def recall(self, credential: bytes, resource: str) -> Caller | None:
        """The caller of a credential that was checked before, or None: nothing is awaited."""
        digest = hashlib.sha256(credential).digest()
        caller = self._tokens.get(digest)
        if caller is None:
            return None
        if caller.expires_at_s + LEEWAY_S <= self._now_s():
            del self._tokens[digest]
            return None
        self._check_audience(caller, resource)
        return caller

    def knows(self, credential: bytes) -> bool:
        """Whether it was good the last time, and still may be."""
        digest, now_s = hashlib.sha256(credential).digest(), self._now_s()
        caller, key = self._tokens.get(digest), self._traded.get(digest)
        if caller is not None:
            return caller.expires_at_s + LEEWAY_S > now_s
        return key is not None and key.caller.expires_at_s > now_s

    async def prove(self, credential: bytes, resource: str) -> Caller:
        """A credential seen for the first time. Raises Unauthenticated, ControlAway."""
        try:
            text = credential.decode("ascii")
        except UnicodeDecodeError:
            raise Unauthenticated("invalid_token") from None
        if text.startswith(KEY_PREFIX):
            return await self._prove_key(text)
        try:
            caller = self.verify(text)
        except Expired as expired:
            caller = await self._graced(expired)
            self._check_audience(caller, resource)
            return caller  # not remembered: when control is back, it is over
        self._check_audience(caller, resource)
        self._met(caller)
        if len(self._tokens) >= MAX_CACHED:
            self._tokens.clear()
        self._tokens[hashlib.sha256(credential).digest()] = caller
        return caller

    def verify(self, token: str) -> Caller:
        """1. signature by a known key, RS256 only  2. issuer  3. its beginning  4. names  5. its
        end. Raises.
        """
        if self._keys is None or not self._kids or len(token) > MAX_TOKEN:
            raise Unauthenticated("invalid_token")
        try:
            decoded = jwt.decode(token, self._keys, algorithms=["RS256"])  # 1
        except (JoseError, ValueError, TypeError, KeyError):
            raise Unauthenticated("invalid_token") from None
        claims: dict[str, Any] = decoded.claims
        header = decoded.header
        if header.get("kid") not in self._kids:
            raise Unauthenticated("invalid_token")
        claimed = str(claims.get("tid") or "")
        if claims.get("iss") != self._issuer:  # 2
            raise Unauthenticated("invalid_issuer", claimed=claimed)
        now_s = self._now_s()
        times = [claims.get(name) for name in ("iat", "nbf", "exp")]
        if not all(type(one) is int for one in times):
            raise Unauthenticated("invalid_token", claimed=claimed)
        issued, not_before, expires = (int(one or 0) for one in times)
        if not_before > now_s + LEEWAY_S or issued > now_s + LEEWAY_S:  # 3
            raise Unauthenticated("token_not_yet_valid", claimed=claimed)
        names = [claims.get(name) for name in ("tid", "sub")]
        session = claims.get("sid")
        named = all(isinstance(name, str) and is_uuid(name) for name in names)
        if not named or not isinstance(session, str) or not session or "cnf" in claims:  # 4
            raise Unauthenticated("invalid_token", claimed=claimed)
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        caller = Caller(
            tenant=TenantId(str(names[0])),
            agent=AgentId(str(names[1])),
            session=SessionId(session),
            issued_at_s=issued,
            expires_at_s=expires,
            audiences=frozenset(_same_loopback(a) for a in audiences if isinstance(a, str)),
            scoped="scope" not in claims or SCOPE in str(claims["scope"]).split(),
        )
        if expires + LEEWAY_S <= now_s:  # 5
            raise Expired(caller)
        return caller

    def forget(self, credential: bytes) -> None:
        """The credential's session was revoked: a key must be traded again."""
        digest = hashlib.sha256(credential).digest()
        self._tokens.pop(digest, None)
        self._traded.pop(digest, None)

    def _check_audience(self, caller: Caller, resource: str) -> None:
        if (
            self._plane_audience not in caller.audiences
            and _same_loopback(resource) not in caller.audiences
        ):
            raise Unauthenticated("invalid_audience", claimed=caller.tenant)
        if not caller.scoped:
            raise Unauthenticated(INSUFFICIENT_SCOPE, claimed=caller.tenant)

    def _met(self, caller: Caller) -> None:
        session = _session(caller)
        if len(self._alive) >= MAX_CACHED and session not in self._alive:
            self._alive.clear()
        self._alive[session] = max(caller.expires_at_s, self._alive.get(session, 0))

    async def _graced(self, expired: Expired) -> Caller:
        """1. its session was let in before  2. not too long ago  3. nobody can give it another
        token. Whether the session was revoked is looked at for everybody alike. Raises Expired.
        """
        caller = expired.caller
        alive_s = self._alive.get(_session(caller)) if self._grace_s else None
        if alive_s is None:  # 1
            raise expired
        until_s = min(alive_s, caller.expires_at_s) + self._grace_s
        if self._now_s() >= until_s or not await self._trader.away():  # 2, 3
            raise expired
        return replace(caller, expires_at_s=until_s, graced=True)

    async def _prove_key(self, text: str) -> Caller:
        client_id, dot, secret = text.removeprefix(KEY_PREFIX).partition(".")
        if not dot or not client_id or not secret or len(text) > 512:
            raise Unauthenticated("invalid_key")
        digest = hashlib.sha256(text.encode()).digest()
        now_s = self._now_s()
        known = self._traded.get(digest)
        if known is not None and known.caller.expires_at_s > now_s:
            if now_s >= known.renew_at_s:
                known.renew_at_s = now_s + REFUSED_S  # one renewal at a time, then again
                session = known.caller.session
                self._spawn("renew key", lambda: self._renew(digest, client_id, secret, session))
            return known.caller
        if known is not None and self._grace_s and await self._trader.away():
            return await self._graced(Expired(known.caller))
        if self._refused.get(digest, 0) > now_s:
            raise Unauthenticated("invalid_client")
        return await self._first_trade(digest, client_id, secret)

    async def _first_trade(self, digest: bytes, client_id: str, secret: str) -> Caller:
        """Callers that come together wait for one trade."""
        running = self._trades.get(digest)
        if running is not None:
            return await asyncio.shield(running)
        waiter: asyncio.Future[Caller] = asyncio.get_running_loop().create_future()
        self._trades[digest] = waiter
        try:
            caller = await self._trade(digest, client_id, secret, None)
            waiter.set_result(caller)
        except (Unauthenticated, ControlAway) as failure:
            waiter.set_exception(failure)
            waiter.exception()  # seen, even if nobody else waits
            raise
        except asyncio.CancelledError:
            waiter.set_exception(ControlAway())
            waiter.exception()
            raise
        finally:
            del self._trades[digest]
        return caller

    async def _renew(self, digest: bytes, client_id: str, secret: str, session: str) -> None:
        try:
            await self._trade(digest, client_id, secret, session)
        except Unauthenticated:
            self._traded.pop(digest, None)
        except ControlAway:
            return  # the live token goes on until it expires

    async def _trade(
        self, digest: bytes, client_id: str, secret: str, session: str | None
    ) -> Caller:
        now_s = self._now_s()
        traded = await self._trader.trade(client_id, secret, session)
        if traded is None:
            if len(self._refused) >= MAX_CACHED:
                self._refused.clear()
            self._refused[digest] = now_s + REFUSED_S
            raise Unauthenticated("invalid_client")
        caller = self.verify(traded.token)
        self._met(caller)
        if len(self._traded) >= MAX_CACHED:
            self._traded.clear()
        life_s = caller.expires_at_s - now_s
        self._traded[digest] = _Key(caller, now_s + life_s * 8 // 10)
        return caller

    def _now_s(self) -> int:
        return self._clock.now_ns() // _NS


def _session(caller: Caller) -> _Session:
    return caller.tenant, caller.agent, caller.session


def _same_loopback(resource: str) -> str:
    """Loopback spellings are equal: a token for localhost is one for 127.0.0.1."""
    for spelling in ("//localhost:", "//[::1]:"):
        if spelling in resource[:20]:
            return resource.replace(spelling, "//127.0.0.1:", 1)
    return resource
