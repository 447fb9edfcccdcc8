"""A proxy of a test's own: real application, real outbox, a fake authorizer that a test tells what
to say, and agents' tokens signed by the test's key.
"""

from __future__ import annotations

import asyncio
import io
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from joserfc import jwt
from joserfc.jwk import RSAKey

from behavry.audit.v1 import audit_pb2
from services.common.clock import SystemClock
from services.common.mcp_headers import NAMED
from services.common.outbox.files import DiskFiles
from services.common.outbox.recovery import read_all
from services.common.outbox.segment import scan
from services.common.settings import load
from services.proxy.app import Running, running
from services.proxy.settings import ProxySettings
from services.proxy.stdio_host import app as stdio_host
from tests.fakes import mcp_wire as wire
from tests.fakes.authorizer import (
    AGENT,
    SESSION,
    TENANT,
    FakeAuthorizer,
    server_entry,
    serving,
    snapshot,
)
from tests.fakes.neighbour import http_client, unseen
from tests.fakes.peers import make_peers

ISSUER = "http://127.0.0.1:8701"
AUDIENCE = "behavry:dp:dp-local"
BOTH = "application/json, text/event-stream"
MODERN_META = {
    wire.VERSION_META: wire.MODERN,
    wire.CLIENT_META: {"name": "test", "version": "1"},
    wire.CAPABILITIES_META: {},
}


class Issuer:
    """Signs agents' tokens as control would."""

    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, parameters={"kid": "k1", "use": "sig"})

    def jwks(self) -> dict[str, Any]:
        keys = {"keys": [self.key.as_dict(private=False)]}
        return {"issuer": ISSUER, "jwks": keys, "fetched_at": SystemClock().now_ns() // 10**9}

    def token(self, *, key: RSAKey | None = None, **changes: Any) -> str:
        now_s = SystemClock().now_ns() // 10**9
        claims = {
            "iss": ISSUER, "sub": AGENT, "tid": TENANT, "sid": SESSION, "aud": AUDIENCE,
            "iat": now_s, "nbf": now_s, "exp": now_s + 900, "jti": secrets.token_hex(8), **changes,
        }  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        signer = key or self.key
        return jwt.encode({"alg": "RS256", "kid": signer.kid}, claims, signer)


@dataclass(kw_only=True)
class Gateway:
    """A running proxy with what a test asks of it."""

    running: Running
    authorizer: FakeAuthorizer
    issuer: Issuer
    http: aiohttp.ClientSession
    state_dir: Path
    settings: ProxySettings
    tenant: str = TENANT
    agent: str = AGENT
    #: The body of the last answer, as it came.
    last: bytes = b""
    #: And the session that it gave.
    session: str = ""
    #: What came before it, where it came as an event stream.
    events: list[Any] = field(default_factory=list)
    _forgotten: int = 0

    @property
    def url(self) -> str:
        return self.running.http

    def mcp(self, server: str = "notes", *, key: bool = False) -> str:
        return f"{self.url}/mcp/v1/{server}" + ("/key" if key else "")

    async def post(
        self,
        body: Any,
        *,
        server: str = "notes",
        token: str | None = None,
        headers: dict[str, str] | None = None,
        drop: tuple[str, ...] = (),
    ) -> tuple[int, Any]:
        """(status, JSON or None): of an event stream, its last event. Bytes go as they are."""
        async with self.sending(
            body, server=server, token=token, headers=headers, drop=drop
        ) as response:
            self.last = content = await response.read()
            self.session = response.headers.get("mcp-session-id", "")
            if response.content_type != "text/event-stream":
                return response.status, orjson.loads(content) if content else None
            *self.events, answer = [
                orjson.loads(line[6:])
                for line in content.splitlines()
                if line.startswith(b"data: ")
            ]
            return response.status, answer

    @asynccontextmanager
    async def sending(
        self,
        body: Any,
        *,
        server: str = "notes",
        token: str | None = None,
        headers: dict[str, str] | None = None,
        drop: tuple[str, ...] = (),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer as it comes."""
        sent = {
            "authorization": f"Bearer {token or self.issuer.token()}",
            "content-type": "application/json",
            "accept": BOTH,
            **(headers or {}),
        }
        sent = {name: value for name, value in sent.items() if name not in drop}
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        data = raw if len(raw) < 1_000_000 else io.BytesIO(raw)  # the client's own advice
        async with self.http.post(self.mcp(server), data=data, headers=sent) as response:
            yield response

    async def modern(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        headers: dict[str, str] | None = None,
        capabilities: dict[str, Any] | None = None,
        meta: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[int, Any]:
        """A request of the modern era with the headers that belong to it."""
        body, sent = modern_request(method, params or {}, capabilities or {}, meta or {})
        return await self.post(body, headers={**sent, **(headers or {})}, **options)

    async def open_session(
        self, capabilities: Any = None, *, version: str = "2025-11-25", **options: Any
    ) -> dict[str, str]:
        """Of a legacy agent: the headers that it sends from now on."""
        params = {"protocolVersion": version, "capabilities": capabilities or {},
                  "clientInfo": {"name": "t", "version": "1"}}  # fmt: skip
        body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
        await self.post(body, **options)
        return {"mcp-session-id": self.session, "mcp-protocol-version": version}

    async def call(
        self, tool: str, arguments: dict[str, Any] | None = None, **options: Any
    ) -> tuple[int, Any]:
        return await self.modern(
            "tools/call", {"name": tool, "arguments": arguments or {}}, **options
        )

    async def offered(self, server: str, *tools: str) -> None:
        """The proxy has listed and reported the tools, and they are approved."""
        await self.modern("tools/list", server=server)
        await self.authorizer.approve(server, *tools)
        await self.settled()

    def records(self, *types: str) -> list[dict[str, Any]]:
        """What is in the outbox's files, in order; of these types, or all of calls and refusals."""
        found = [orjson.loads(entry.body) for entry in self.entries()]
        wanted = types or ("call.", "auth.", "catalog.")
        unseen(found[self._forgotten :])
        return [body for body in found[self._forgotten :] if body["type"].startswith(wanted)]

    async def settled(self) -> None:
        """The snapshot that was published last has arrived."""
        await until(lambda: self.running.revision() == self.authorizer.snapshot["revision"])

    def forget_catalog(self) -> None:
        """As if five minutes had passed."""
        self.running.forget_catalog()

    def forget_upstreams(self) -> None:
        """As if the proxy had never met a tool server."""
        self.running.forget_upstreams()
        self.running.forget_catalog()

    def forget_records(self) -> None:
        """`records` begins anew."""
        self._forgotten = len(self.entries())

    async def recorded(
        self, *types: str, count: int = 1, seconds: float = 5
    ) -> list[dict[str, Any]]:
        """Waits for records that are written beside the answer. To look at ten thousand of them
        takes seconds in which nothing is written.
        """
        await until(lambda: len(self.records(*types)) >= count, seconds=seconds)
        return self.records(*types)

    def entries(self) -> list[audit_pb2.Entry]:
        made = []
        for path in sorted((self.settings.outbox_dir / "w0").glob("*.seg")):
            data = written(path)
            made += [
                audit_pb2.StoredRecord.FromString(one.stored).entry for one in scan(data).frames
            ]
        return made


def written(path: Path) -> bytes:
    """Of a segment, which is as long as it may become, what was written: up to a megabyte of
    nothing.
    """
    size, chunk = path.stat().st_size, 1 << 20
    end = chunk
    with path.open("rb") as file:
        while end < size and file.read(chunk).strip(b"\0"):
            end += chunk
    return read_all(path, min(end, size), DiskFiles())


def modern_request(
    method: str, params: dict[str, Any], capabilities: dict[str, Any], meta: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """(body, headers)"""
    name = params.get(NAMED[method]) if method in NAMED else None
    sent = {"mcp-protocol-version": wire.MODERN, "mcp-method": method}
    if isinstance(name, str):
        sent["mcp-name"] = name
    full = {**MODERN_META, wire.CAPABILITIES_META: capabilities, **meta}
    body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": {**params, "_meta": full}}
    return body, sent


def environment(state_dir: Path, **changes: str) -> dict[str, str]:
    """What `behavry up` would have made, and the settings that name it."""
    for name in ("run", "keys", "secrets"):
        (state_dir / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    make_peers(state_dir / "peers")
    for name in ("digest.keys", "seal.keys"):
        file = state_dir / "keys" / name
        if not file.exists():
            file.write_text(secrets.token_hex(32) + "\n")
            file.chmod(0o600)
    return {
        "BEHAVRY_STATE_DIR": str(state_dir),
        "BEHAVRY_ENV": "development",
        "BEHAVRY_PROXY_HTTP_LISTEN": "127.0.0.1:0",
        "BEHAVRY_CONTROL_PUBLIC_URL": ISSUER,
        "BEHAVRY_OUTBOX_DURABILITY": os.environ.get("BEHAVRY_OUTBOX_DURABILITY", "process"),
        **changes,
    }


def hosted(state_dir: Path) -> dict[str, str]:
    """The setting by which stdio servers are not the proxy's own children."""
    return {"BEHAVRY_PROXY_STDIO_HOST": f"unix:{state_dir}/run/stdio.sock"}


@asynccontextmanager
async def hosting(state_dir: Path) -> AsyncIterator[stdio_host.Running]:
    """That host, for a proxy with this setting."""
    env = environment(state_dir, **hosted(state_dir), BEHAVRY_PROXY_ROLE="stdio-host")
    async with stdio_host.running(load(ProxySettings, env)) as host:
        yield host


@asynccontextmanager
async def gateway(
    state_dir: Path, servers: dict[str, dict[str, Any]], **changes: str
) -> AsyncIterator[Gateway]:
    """Servers are entries of the snapshot (see `server_entry`)."""
    settings = load(ProxySettings, environment(state_dir, **changes))
    issuer = Issuer()
    fake = FakeAuthorizer(snapshot(servers), issuer.jwks())
    async with (
        serving(fake, settings.authorizer_address, settings.peers_dir),
        running(settings) as proxy,
        http_client() as http,
    ):
        made = Gateway(
            running=proxy,
            authorizer=fake,
            issuer=issuer,
            http=http,
            state_dir=state_dir,
            settings=settings,
        )
        await until_ready(made)
        yield made


async def until_ready(made: Gateway) -> None:
    async def ready() -> bool:
        async with made.http.get(f"{made.url}/readyz") as response:
            return response.status == 200

    await until_true(ready)


async def until(check: Callable[[], bool], *, seconds: float = 5) -> None:
    """Looks again every few milliseconds, at most for five seconds."""

    async def checked() -> bool:
        return check()

    await until_true(checked, seconds=seconds)


async def until_true(check: Callable[[], Awaitable[bool]], *, seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not await check():  # noqa: ASYNC110  # what is waited for tells nobody
            await asyncio.sleep(0.01)


def http_server(url: str, **changes: Any) -> dict[str, Any]:
    return server_entry(urls=[url], **changes)
