"""An OpenID provider that can be bent: a real server on this machine whose tokens say whatever a
test wants. Unbent it keeps to the rules: PKCE, codes used once, exact redirects, a client's secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

import orjson
from aiohttp import web
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from services.common.clock import Clock

CLIENT: Final = "behavry"
SECRET: Final = "the secret of a client"
LOGOUT: Final = "http://schemas.openid.net/event/backchannel-logout"
Claims = dict[str, Any]
Key = RSAKey | ECKey | OKPKey


@dataclass(kw_only=True)
class OpenIdProvider:
    """`bend` changes the claims, `header` and `sign` the rest of the next tokens."""

    clock: Clock
    key: Key = field(default_factory=lambda: ECKey.generate_key("P-256"))
    alg: str = "ES256"
    kid: str = "one"
    secret: str | None = SECRET
    url: str = ""
    #: What else the description says, and what the key set says instead.
    description: dict[str, Any] = field(default_factory=dict)
    jwks: dict[str, Any] | None = None
    bend: Callable[[Claims], Claims] = lambda claims: claims
    header: dict[str, Any] = field(default_factory=dict)
    sign: Callable[[dict[str, Any], bytes], str] | None = None
    #: While set, it answers nothing but this status.
    away: int = 0
    asked: list[str] = field(default_factory=list)
    _codes: dict[str, tuple[dict[str, str], Claims]] = field(default_factory=dict)

    def straighten(self) -> None:
        self.bend, self.header, self.sign, self.jwks, self.away = lambda c: c, {}, None, None, 0
        self.description.clear()

    def fetches(self, path: str) -> int:
        return self.asked.count(path)

    def consent(self, location: str, subject: str = "anna", **claims: Any) -> dict[str, str]:
        """Somebody signed in at the address that a browser was sent to: what they bring back."""
        asked = dict(parse_qsl(urlsplit(location).query))
        assert "S256" == asked["code_challenge_method"]
        code = secrets.token_urlsafe(16)
        self._codes[code] = (asked, {"sub": subject, **claims})
        return {"code": code, "state": asked["state"], "iss": self.url}

    def token(self, claims: Claims, *, typ: str = "JWT") -> str:
        header = {"alg": self.alg, "kid": self.kid, "typ": typ, **self.header}
        header = {name: value for name, value in header.items() if value is not None}
        payload = orjson.dumps(claims)
        if self.sign is not None:
            return self.sign(header, payload)
        return jws.serialize_compact(header, payload, self.key, algorithms=[header["alg"]])

    def logout_token(self, **claims: Any) -> str:
        now_s = self.clock.now_ns() // 10**9
        told = {
            "iss": self.url, "aud": CLIENT, "iat": now_s, "exp": now_s + 120,
            "jti": secrets.token_hex(8), "events": {LOGOUT: {}}, **claims,
        }  # fmt: skip
        told = {name: value for name, value in told.items() if value is not None}
        return self.token(self.bend(told), typ="logout+jwt")

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if self.away:
            return web.Response(status=self.away, headers={"location": f"{self.url}/elsewhere"})
        match request.path:
            case "/.well-known/openid-configuration":
                return web.json_response(self._described())
            case "/jwks":
                return web.json_response(self.jwks if self.jwks is not None else self.public())
            case "/token":
                return await self._redeem(request)
            case _:
                return web.Response(status=404)

    def public(self) -> dict[str, Any]:
        return {"keys": [{**self.key.as_dict(private=False), "kid": self.kid}]}

    def _described(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            **self.description,
        }

    async def _redeem(self, request: web.Request) -> web.Response:
        form = dict(parse_qsl((await request.read()).decode()))
        asked, claims = self._codes.pop(form.get("code", ""), ({}, {}))
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        pairs = (
            (challenge, asked.get("code_challenge", "-")),
            (form.get("redirect_uri", ""), asked.get("redirect_uri", "-")),
            (self._client(request, form), CLIENT),
        )
        if not all(hmac.compare_digest(one, other) for one, other in pairs):
            return web.json_response({"error": "invalid_grant"}, status=400)
        now_s = self.clock.now_ns() // 10**9
        told = {
            "iss": self.url, "aud": CLIENT, "exp": now_s + 300, "iat": now_s,
            "nonce": asked["nonce"], "auth_time": now_s, **claims,
        }  # fmt: skip
        bent = {name: value for name, value in self.bend(told).items() if value is not None}
        answer = {"access_token": "x", "token_type": "Bearer", "id_token": self.token(bent)}
        return web.json_response(answer)

    def _client(self, request: web.Request, form: dict[str, str]) -> str:
        if self.secret is None:
            return form.get("client_id", "")
        encoded = request.headers.get("authorization", "").removeprefix("Basic ")
        shown = dict([base64.b64decode(encoded).decode().split(":", 1)]) if encoded else {}
        expected = urlencode({"": self.secret}).removeprefix("=")
        return CLIENT if shown.get(CLIENT) == expected else ""


@asynccontextmanager
async def openid_provider(clock: Clock, **told: Any) -> AsyncIterator[OpenIdProvider]:
    made = OpenIdProvider(clock=clock, **told)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()
