"""The HTTP door, raw ASGI: paths, bodies and answers (mcp.md 1.1, 1.3).

Turns requests into arrivals and the pipeline's answers into HTTP. What needs no identity to be
refused is admission.py's decision; it is counted, not recorded: nobody knows yet who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import orjson

from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log, describe
from services.proxy import admission, answers
from services.proxy.admission import Edges
from services.proxy.answers import Answer, Headers
from services.proxy.clients.control import ControlClient
from services.proxy.identity import ControlAway
from services.proxy.pipeline import Arrival, Pipeline, TooLarge
from services.proxy.snapshot import RESERVED, server_name

MCP: Final = "/mcp/v1/"
METADATA: Final = "/.well-known/oauth-protected-resource"
RELAYED: Final = frozenset({"/api/v1/auth/token", "/api/v1/enroll"})
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


class _Disconnected(Exception):
    """The agent left in the middle of its body: what came is no message, however whole it looks."""


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
        if self._edges.cors:
            send = _shown_to_browsers(send, self._edges, scope["headers"])
        try:
            await self._route(scope, receive, send)
        except _Disconnected:
            return
        except Exception as failure:  # the outermost middleware's own handler
            self._log.error("request_failed", error=describe(failure))
            await _send(send, answers.internal_error())

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        shared = path.startswith((MCP, METADATA))
        if shared and scope["method"] == "OPTIONS" and self._edges.cors:
            await _send(send, admission.preflight(self._edges, dict(scope["headers"])))
        elif path.startswith(MCP):
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
            await _send(send, admission.plain(404))

    async def _mcp(self, rest: str, scope: Scope, receive: Receive, send: Send) -> None:
        name, slash, form = rest.partition("/")
        if bool(slash) != bool(form) or b"%" in scope["raw_path"]:
            name = ""  # a second spelling of a path would be a second resource
        raw: admission.Raw = scope["headers"]
        sent = admission.joined(raw)
        refusal = admission.refused(self._edges, path=(name, form), verb=scope["method"], sent=sent)
        if refusal is None and not self._ready():
            refusal = admission.plain(503, (b"retry-after", b"1"))
        if refusal is not None:
            self._refused.value += 1
            await _send(send, refusal)
            return
        client = scope["client"]
        address = client[0] if client else ""
        if self._pipeline.failures.blocked(address):
            self._refused.value += 1
            await _send(send, admission.plain(429, (b"retry-after", b"60")))
            return
        credential, ambiguous = admission.credential(
            sent, raw, scope["query_string"], key=form == "key"
        )
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
            read=lambda: _read(receive, admission.MAX_BODY),
            stream=reply,
        )
        await reply.give(self._pipeline.serve(arrival))

    async def _relay(self, path: str, scope: Scope, receive: Receive) -> Answer:
        """Tokens and enrolment are control's; so is the limit on asking for them."""
        if scope["method"] != "POST":
            return admission.plain(405, (b"allow", b"POST"))
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
            return admission.plain(413)
        except ControlAway:
            problem = {"title": "control cannot be reached", "status": 503,
                       "code": "control_unavailable"}  # fmt: skip
            kind = (b"content-type", b"application/problem+json")
            return Answer(503, orjson.dumps(problem), (kind, (b"retry-after", b"5")))
        return Answer(answer.status, answer.body, answer.headers)

    def _metadata(self, rest: str, scope: Scope) -> Answer:
        """RFC 9728, of the discovering form only; the same for every well-formed name."""
        name = rest.removeprefix(MCP)
        odd = b"%" in scope["raw_path"]
        if odd or not rest.startswith(MCP) or not server_name(name) or name in RESERVED:
            self._refused.value += 1
            return admission.plain(404)
        if scope["method"] != "GET":
            return admission.plain(405, (b"allow", b"GET"))
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


async def _read(receive: Receive, cap: int) -> bytes:
    """Raises TooLarge as soon as there is more, _Disconnected where there should be."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise _Disconnected
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > cap:
            raise TooLarge
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _shown_to_browsers(send: Send, edges: Edges, raw: admission.Raw) -> Send:
    """Pages of the listed sites may read every answer, refusals too."""
    added: Headers = admission.cors_headers(edges, dict(raw))

    async def sending(event: Any) -> None:
        if event["type"] == "http.response.start":
            event = {**event, "headers": [*event["headers"], *added]}
        await send(event)

    return sending if added else send


async def _send(send: Send, answer: Answer) -> None:
    headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
