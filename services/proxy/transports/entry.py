"""The HTTP door, raw ASGI: paths, and the checks that need no identity (mcp.md 1.1, 1.3).

Decides which requests reach the pipeline at all, and turns its answers into HTTP. Refusals here are
counted, not recorded: nobody knows yet who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log, describe
from services.proxy import answers
from services.proxy.answers import Answer
from services.proxy.clients.control import ControlClient
from services.proxy.identity import ControlAway
from services.proxy.pipeline import Arrival, Pipeline, TooLarge
from services.proxy.snapshot import RESERVED, server_name

MCP: Final = "/mcp/v1/"
METADATA: Final = "/.well-known/oauth-protected-resource"
RELAYED: Final = frozenset({"/api/v1/auth/token", "/api/v1/enroll"})
MAX_BODY: Final = 4 * 1024 * 1024
MAX_RELAYED: Final = 64 * 1024
PATIENCE_S: Final = 15.0
_SSE: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Scope = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """What this door answers to. `public_url` has no trailing slash."""

    public_url: str
    issuer: str
    hosts: frozenset[str]
    origins: frozenset[str]


def edges(
    *, public_url: str, issuer: str, allowed_hosts: Sequence[str], cors_origins: Sequence[str]
) -> Edges:
    own = urlsplit(public_url)
    hosts = {own.netloc.lower(), *(host.lower() for host in allowed_hosts)}
    if own.hostname in {"127.0.0.1", "localhost", "::1"}:  # loopback spellings are equal
        hosts |= {f"{name}:{own.port}" for name in ("127.0.0.1", "localhost", "[::1]")}
    return Edges(
        public_url=public_url.rstrip("/"),
        issuer=issuer.rstrip("/"),
        hosts=frozenset(hosts),
        origins=frozenset({f"{own.scheme}://{own.netloc}", *cors_origins}),
    )


class Entry:
    """The ASGI application."""

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        control: ControlClient,
        edges: Edges,
        ready: Callable[[], bool],
        counters: Counters,
        log: Log,
    ) -> None:
        self._pipeline = pipeline
        self._control = control
        self._edges = edges
        self._ready = ready
        self._refused = counters.counter("proxy.admission.refused")
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The outermost handler: what nobody expected reads -32603 and no more."""
        if scope["type"] != "http":
            return
        try:
            await self._route(scope, receive, send)
        except Exception as failure:  # the outermost middleware's own handler
            self._log.error("request_failed", error=describe(failure))
            await _send(send, answers.internal_error())

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path.startswith(MCP):
            await self._mcp(path[len(MCP) :], scope, receive, send)
        elif path in RELAYED:
            await _send(send, await self._relay(path, scope, receive))
        elif path.startswith(METADATA):
            await _send(send, self._metadata(path[len(METADATA) :], scope))
        elif path in {"/healthz", "/readyz"}:
            ok = path == "/healthz" or self._ready()
            await _send(send, Answer(200 if ok else 503, b"{}"))
        else:
            self._refused.value += 1
            await _send(send, _plain(404))

    async def _mcp(self, rest: str, scope: Scope, receive: Receive, send: Send) -> None:
        name, _, form = rest.partition("/")
        raw: Sequence[tuple[bytes, bytes]] = scope["headers"]
        sent = dict(raw)
        refusal = self._admission(name, form, scope["method"], sent, raw)
        if refusal is not None:
            self._refused.value += 1
            await _send(send, refusal)
            return
        client = scope["client"]
        address = client[0] if client else ""
        if self._pipeline.failures.blocked(address):
            self._refused.value += 1
            await _send(send, _plain(429, (b"retry-after", b"60")))
            return
        credential, ambiguous = _credential(sent, raw, scope["query_string"], key=form == "key")
        resource = f"{self._edges.public_url}{MCP}{rest}"
        reply = _Reply(receive, send)
        arrival = Arrival(
            verb=scope["method"],
            server=name,
            resource=resource,
            metadata_url=f"{self._edges.public_url}{METADATA}{MCP}{rest}",
            discovering=form == "",
            credential=credential,
            ambiguous=ambiguous,
            headers=sent,
            raw_headers=raw,
            client_ip=address,
            read=lambda: _read(receive, MAX_BODY),
            stream=reply,
        )
        await reply.give(self._pipeline.serve(arrival))

    def _admission(
        self,
        name: str,
        form: str,
        verb: str,
        sent: Mapping[bytes, bytes],
        raw: Sequence[tuple[bytes, bytes]],
    ) -> Answer | None:
        """1. path, method  2. Host, Origin  3. Content-Type, Accept  4. Content-Length."""
        if not server_name(name) or name in RESERVED or form not in {"", "key"}:  # 1
            return _plain(404)
        legacy_end = verb == "DELETE" and b"mcp-session-id" in sent
        if verb != "POST" and not legacy_end:
            return _plain(405, (b"allow", b"POST, DELETE"))
        if sent.get(b"host", b"").decode("latin-1").lower() not in self._edges.hosts:  # 2
            return _plain(421)
        origin = sent.get(b"origin")
        if origin is not None and origin.decode("latin-1") not in self._edges.origins:
            return _plain(403)
        if len(raw) > 100:
            return _plain(431)
        if legacy_end:
            return None
        kind = sent.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json" or b"content-encoding" in sent:  # 3
            return _plain(415)
        if not _admits(sent.get(b"accept", b"")):
            return _plain(406)
        length = sent.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:  # 4
            return _plain(413)
        return None if self._ready() else _plain(503, (b"retry-after", b"1"))

    async def _relay(self, path: str, scope: Scope, receive: Receive) -> Answer:
        """Tokens and enrolment are control's; so is the limit on asking for them."""
        if scope["method"] != "POST":
            return _plain(405, (b"allow", b"POST"))
        sent = dict(scope["headers"])
        passed = {
            name.decode(): sent[name].decode("latin-1")
            for name in (b"content-type", b"authorization", b"accept")
            if name in sent
        }
        client = scope["client"]
        passed["x-forwarded-for"] = client[0] if client else ""
        try:
            body = await _read(receive, MAX_RELAYED)
            answer = await self._control.relay(path, body, passed)
        except TooLarge:
            return _plain(413)
        except ControlAway:
            problem = {"title": "control cannot be reached", "status": 503,
                       "code": "control_unavailable"}  # fmt: skip
            kind = (b"content-type", b"application/problem+json")
            return Answer(503, orjson.dumps(problem), (kind, (b"retry-after", b"5")))
        return Answer(answer.status, answer.body, answer.headers)

    def _metadata(self, rest: str, scope: Scope) -> Answer:
        """RFC 9728, of the discovering form only; the same for every well-formed name."""
        name = rest.removeprefix(MCP)
        if not rest.startswith(MCP) or not server_name(name) or name in RESERVED:
            self._refused.value += 1
            return _plain(404)
        if scope["method"] != "GET":
            return _plain(405, (b"allow", b"GET"))
        document = {
            "resource": f"{self._edges.public_url}{rest}",
            "authorization_servers": [self._edges.issuer],
            "scopes_supported": ["mcp"],
            "bearer_methods_supported": ["header"],
        }
        return Answer(200, orjson.dumps(document))


class _Reply:
    """JSON; or an event stream kept open by comments, if the answer takes longer than 15 s or
    something has to be said before it.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._beginning = asyncio.Lock()
        self._begun = False
        self._watched = False
        self._beside: list[asyncio.Task[None]] = []
        self.gone = asyncio.Event()

    async def give(self, work: Awaitable[Answer]) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(PATIENCE_S, lambda: self._start(self._begin()))
        try:
            answer = await work
        finally:
            timer.cancel()
            for task in self._beside:
                task.cancel()
            if self._beside:  # nothing is sent in the middle of what they send
                await asyncio.wait(self._beside)
        if not self._begun:
            await _send(self._send, answer)
            return
        event = b"event: message\ndata: %s\n\n" % answer.body
        await self._send({"type": "http.response.body", "body": event})

    async def open(self) -> None:
        """From here on the answer is an event stream, and who reads it is watched. Only once the
        body is read: what is watched for comes the same way.
        """
        await self._begin()
        if not self._watched:
            self._watched = True
            self._start(self._watch())

    async def send(self, message: bytes) -> None:
        event = b"event: message\ndata: %s\n\n" % message
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    def push(self, message: bytes, event_id: str = "") -> None:  # noqa: ARG002
        self._start(self._pushed(message))

    async def _pushed(self, message: bytes) -> None:
        await self._begin()
        await self.send(message)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._beside.append(asyncio.get_running_loop().create_task(work))

    async def _begin(self) -> None:
        async with self._beginning:
            if self._begun:
                return
            await self._send({"type": "http.response.start", "status": 200, "headers": _SSE})
            self._begun = True
        self._start(self._keep_open())

    async def _keep_open(self) -> None:
        while True:
            await self._send({"type": "http.response.body", "body": b":\n\n", "more_body": True})
            await asyncio.sleep(PATIENCE_S)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()


def _credential(
    sent: Mapping[bytes, bytes], raw: Sequence[tuple[bytes, bytes]], query: bytes, *, key: bool
) -> tuple[bytes | None, bool]:
    """The one credential, and whether there is more than that."""
    header = sent.get(b"authorization")
    given: list[bytes] = []
    if header is not None:
        scheme, _, value = header.partition(b" ")
        given.append(value.strip() if scheme.lower() == b"bearer" else b"")
    if key and b"x-api-key" in sent:
        given.append(sent[b"x-api-key"])
    several = len(given) > 1 or (
        len(raw) != len(sent)
        and sum(name in {b"authorization", b"x-api-key"} for name, _ in raw) > 1
    )
    lowered = query.lower()
    in_query = bool(query) and any(
        part.partition(b"=")[0] in {b"access_token", b"token", b"key", b"api_key", b"x-api-key"}
        for part in lowered.split(b"&")
    )
    return (given[0] if given else None), several or in_query


def _admits(accept: bytes) -> bool:
    """Both forms that an answer can take."""
    if accept == b"application/json, text/event-stream":
        return True
    kinds = {part.partition(b";")[0].strip().lower() for part in accept.split(b",")}
    if b"*/*" in kinds:
        return True
    json = bool({b"application/json", b"application/*"} & kinds)
    return json and bool({b"text/event-stream", b"text/*"} & kinds)


async def _read(receive: Receive, cap: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if len(body) > cap:
        raise TooLarge
    if not message.get("more_body"):
        return body
    parts, size = [body], len(body)
    while message.get("more_body"):
        message = await receive()
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > cap:
            raise TooLarge
        parts.append(part)
    return b"".join(parts)


def _plain(status: int, *headers: tuple[bytes, bytes]) -> Answer:
    return Answer(status, b"", headers)


async def _send(send: Send, answer: Answer) -> None:
    headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
