"""The HTTP door, raw ASGI: paths, bodies and answers (mcp.md 1.1, 1.3).

Turns requests into arrivals and the pipeline's answers into HTTP. What needs no identity to be
refused is admission.py's decision; it is counted, not recorded: nobody knows yet who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
from services.proxy.transports.listener import ABORT
from services.proxy.transports.reply import (
    BODY_S,
    Disconnected,
    Receive,
    Reply,
    Send,
    read,
    send_answer,
)

MCP: Final = "/mcp/v1/"
METADATA: Final = "/.well-known/oauth-protected-resource"
RELAYED: Final = frozenset({"/api/v1/auth/token", "/api/v1/enroll"})
MAX_RELAYED: Final = 64 * 1024

Scope = dict[str, Any]


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
        except Disconnected:
            return
        except Exception as failure:  # the outermost middleware's own handler
            self._log.error("request_failed", error=describe(failure))
            await send_answer(send, answers.internal_error())

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        shared = path.startswith((MCP, METADATA))
        if shared and scope["method"] == "OPTIONS" and self._edges.cors:
            await send_answer(send, admission.preflight(self._edges, dict(scope["headers"])))
        elif path.startswith(MCP):
            await self._mcp(path[len(MCP) :], scope, receive, send)
        elif path in RELAYED:
            await send_answer(send, await self._relay(path, scope, receive))
        elif path.startswith(METADATA):
            await send_answer(send, self._metadata(path[len(METADATA) :], scope))
        elif path in {"/healthz", "/readyz"}:
            ok = path == "/healthz" or self._ready()
            await send_answer(send, Answer(200 if ok else 503, b"{}"))
        else:
            self._refused.value += 1
            await send_answer(send, admission.plain(404))

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
            await send_answer(send, refusal)
            return
        client = scope["client"]
        address = client[0] if client else ""
        credential, ambiguous = admission.credential(
            sent, raw, scope["query_string"], key=form == "key"
        )
        if self._has_to_wait(address, credential):
            self._refused.value += 1
            await send_answer(send, admission.plain(429, (b"retry-after", b"60")))
            return
        resource = f"{self._edges.public_url}{MCP}{rest}"
        reply = Reply(receive, send, scope.get(ABORT, _nothing))
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
            read=lambda: reply.read(admission.MAX_BODY),
            stream=reply,
        )
        await reply.give(self._pipeline.serve(arrival))

    def _has_to_wait(self, address: str, credential: bytes | None) -> bool:
        """An address that fails too often: but not who was let in before. Many may share it, and
        one of them would lock the others out.
        """
        if not self._pipeline.failures.blocked(address):
            return False
        return not credential or not self._pipeline.identity.knows(credential)

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
            async with asyncio.timeout(BODY_S):
                body = await read(receive, MAX_RELAYED)
            answer = await self._control.relay(path, body, passed)
        except TooLarge:
            return admission.plain(413)
        except TimeoutError:
            return admission.plain(408, (b"connection", b"close"))
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


def _shown_to_browsers(send: Send, edges: Edges, raw: admission.Raw) -> Send:
    """Pages of the listed sites may read every answer, refusals too."""
    added: Headers = admission.cors_headers(edges, dict(raw))

    async def sending(event: Any) -> None:
        if event["type"] == "http.response.start":
            event = {**event, "headers": [*event["headers"], *added]}
        await send(event)

    return sending if added else send


def _nothing() -> None:
    """Where a connection cannot be ended by force."""
