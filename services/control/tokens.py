"""Agents' access tokens: which claims they carry, for whom, and how long (core.md 2).

Decides the audience rule and the making; who may have one is api/token.py's, and a decision takes
rights from the bundle, never from here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from joserfc import jwt

from services.common.ids import AgentId, PlaneId, SessionId, TenantId, uuid7
from services.control.keys import SigningKey

ALGORITHM: Final = "RS256"
DEFAULT_LIFE_S: Final = 900
#: No producer of risk exists yet; decisions never read this claim.
RISK_TIER: Final = "low"
_ENDPOINT: Final = re.compile(r"/mcp/v1/[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?(/key)?")
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class UnknownResource(ValueError):
    """The asked resource is none of the data plane's endpoints (RFC 8707 2, invalid_target)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audiences:
    plane_id: PlaneId
    proxy_public_url: str

    def of(self, resource: str | None) -> str:
        """The `aud` of a token: the plane, or the one endpoint that was asked for."""
        if resource is None:
            return f"behavry:dp:{self.plane_id}"
        try:
            asked, ours = urlsplit(resource), urlsplit(self.proxy_public_url)
            same_place = _place(asked.scheme, asked.hostname, asked.port) == _place(
                ours.scheme, ours.hostname, ours.port
            )
        except ValueError:
            raise UnknownResource from None
        plain = not (asked.query or asked.fragment or asked.username or asked.password)
        if not (same_place and plain and _ENDPOINT.fullmatch(asked.path)):
            raise UnknownResource
        return f"{self.proxy_public_url.rstrip('/')}{asked.path}"


def _place(scheme: str, host: str | None, port: int | None) -> tuple[str, str, int | None]:
    default = {"http": 80, "https": 443}.get(scheme)
    return scheme, "loopback" if host in _LOOPBACK else host or "", port or default


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Everything a token says about its holder."""

    tenant: TenantId
    agent: AgentId
    session: SessionId
    agent_class: str
    roles: tuple[str, ...]
    permissions: tuple[str, ...]
    audience: str
    life_s: int


@dataclass(frozen=True, slots=True)
class Issuer:
    url: str
    key: SigningKey

    def issue(self, grant: Grant, *, now_ns: int) -> str:
        now_s = now_ns // 1_000_000_000
        claims: dict[str, Any] = {
            "iss": self.url,
            "sub": grant.agent,
            "tid": grant.tenant,
            "sid": grant.session,
            "jti": uuid7(now_ns),
            "aud": grant.audience,
            "iat": now_s,
            "nbf": now_s,
            "exp": now_s + grant.life_s,
            "cls": grant.agent_class,
            "roles": list(grant.roles),
            "permissions": list(grant.permissions),
            "risk_tier": RISK_TIER,
        }
        header = {"alg": ALGORITHM, "kid": self.key.kid, "typ": "JWT"}
        return jwt.encode(header, claims, self.key.private, algorithms=[ALGORITHM])
