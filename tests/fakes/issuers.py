"""A token endpoint that checks what it is shown, and a tool server that wants its tokens: both real
servers on this machine, with TLS where a test wants it. Every byte that reaches them is kept.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote_plus

import orjson
from aiohttp import web
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from services.common.clock import SystemClock
from tests.fakes import mcp_wire as wire

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@dataclass(kw_only=True)
class TokenServer:
    """Knows one client and one signing key. `valid`: token -> whom it is for."""

    client_id: str = "gate"
    client_secret: str = "s3cr3t-of-the-gate"
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256"))
    issuer: str = "behavry"
    life_s: float = 3600
    #: Answered instead, as it is.
    instead: web.Response | None = None
    url: str = ""
    valid: dict[str, str] = field(default_factory=dict)
    forms: list[dict[str, str]] = field(default_factory=list)
    heard: bytearray = field(default_factory=bytearray)

    def revoke(self) -> None:
        self.valid.clear()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await _kept(request, self.heard)
        form = {name: only for name, [only] in parse_qs(body.decode()).items()}
        self.forms.append(form)
        if self.instead is not None:
            return self.instead
        subject = self._subject(request, form)
        if subject is None:
            told = {"error": "invalid_client", "error_description": self.client_secret}
            return web.json_response(told, status=401, headers={"www-authenticate": "Basic"})
        token = f"token-{len(self.forms)}-of-{subject}"
        self.valid[token] = subject
        return web.json_response(
            {"access_token": token, "token_type": "bearer", "expires_in": self.life_s}
        )

    def _subject(self, request: web.Request, form: dict[str, str]) -> str | None:
        match form.get("grant_type"):
            case "client_credentials":
                return self._client(request, form)
            case "urn:ietf:params:oauth:grant-type:jwt-bearer":
                return self._signed(form.get("assertion", ""))
            case "urn:ietf:params:oauth:grant-type:token-exchange":
                return self._signed(form.get("subject_token", ""))
            case _:
                return None

    def _client(self, request: web.Request, form: dict[str, str]) -> str | None:
        known = (self.client_id, self.client_secret)
        if (form.get("client_id"), form.get("client_secret")) == known:
            return self.client_id
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if scheme != "Basic":
            return None
        name, _, secret = base64.b64decode(encoded).decode().partition(":")
        return self.client_id if (unquote_plus(name), unquote_plus(secret)) == known else None

    def _signed(self, token: str) -> str | None:
        try:
            claims = jwt.decode(token, self.key, algorithms=["ES256"]).claims
        except (JoseError, ValueError):
            return None
        now_s = SystemClock().now_ns() // 10**9
        fresh = claims["iat"] - 30 <= now_s < claims["exp"] <= now_s + 330
        ours = (claims["iss"], claims["aud"]) == (self.issuer, self.url)
        return str(claims["sub"]) if fresh and ours else None


@dataclass(kw_only=True)
class GuardedTools:
    """A modern tool server that answers 401 unless a request shows a token that `tokens` knows.
    Without `tokens` it asks for none.
    """

    tokens: TokenServer | None = None
    url: str = ""
    #: Whom each call was for.
    ran: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    #: The name in each client's certificate.
    shown: list[str] = field(default_factory=list)
    refused: int = 0
    heard: bytearray = field(default_factory=bytearray)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await _kept(request, self.heard)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self._look_at(request)
        subject = "anybody"
        if self.tokens is not None:
            shown = request.headers.get("authorization", "").removeprefix("Bearer ")
            if shown not in self.tokens.valid:
                self.refused += 1
                told = 'Bearer resource_metadata="https://elsewhere.example/meta"'
                return web.Response(status=401, headers={"www-authenticate": told}, text="no")
            subject = self.tokens.valid[shown]
        message = orjson.loads(body)
        match message.get("method"):
            case "server/discover":
                return _json(wire.discovered(message, "guarded"))
            case "tools/list":
                return _json(wire.listed(message, [wire.tool("read_note", "Reads.", {})]))
            case "tools/call":
                self.ran.append(subject)
                return _json(wire.result(message, wire.content(f"for {subject}")))
            case _:
                return web.Response(status=202)

    def _look_at(self, request: web.Request) -> None:
        transport = request.transport
        certificate = transport.get_extra_info("peercert") if transport else None
        for part in (certificate or {}).get("subject", ()):
            self.shown += [value for name, value in part if name == "commonName"]


@asynccontextmanager
async def token_server(
    *, tls: ssl.SSLContext | None = None, **told: Any
) -> AsyncIterator[TokenServer]:
    made = TokenServer(**told)
    async with _serving("/token", made.answer, tls) as made.url:
        yield made


@asynccontextmanager
async def guarded_tools(
    tokens: TokenServer | None = None, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[GuardedTools]:
    made = GuardedTools(tokens=tokens)
    async with _serving("/mcp", made.answer, tls) as made.url:
        yield made


@asynccontextmanager
async def _serving(
    path: str,
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
    tls: ssl.SSLContext | None,
) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", path, answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    scheme = "https" if tls else "http"
    try:
        yield f"{scheme}://127.0.0.1:{runner.addresses[0][1]}{path}"
    finally:
        await runner.cleanup()


async def _kept(request: web.Request, heard: bytearray) -> bytes:
    heard += request.raw_path.encode()
    for name, value in request.raw_headers:
        heard += b"\n" + name + b": " + value
    body = await request.read()
    heard += b"\n" + body
    return body


def _json(tree: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(tree), content_type="application/json")
