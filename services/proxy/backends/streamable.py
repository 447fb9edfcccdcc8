"""Tool servers over Streamable HTTP, both eras.

Decides which era a server speaks (probe, mcp.md 2.2), what a POST to it carries, and what its
answers mean. Sessions of legacy servers are opened here; modern agents share one per agent and
server, legacy agents have their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from services.common.clock import Clock
from services.common.ids import AgentId, ServerSlug, TenantId
from services.common.telemetry.counters import Counters
from services.proxy import messages
from services.proxy.backends.events import EventParser, EventTooLong
from services.proxy.backends.secrets import Secrets
from services.proxy.backends.upstream import (
    CALL_S,
    MAX_ANSWER,
    PROBE_S,
    Hear,
    Listening,
    Reply,
    Request,
    Session,
    SessionGone,
    UpstreamFailed,
)
from services.proxy.backends.wire import Origin, Response, tls_context
from services.proxy.bridge import NAME, OURS, VERSION, Facts, modern_meta
from services.proxy.calls import Visit
from services.proxy.eras import LEGACY, MODERN, NEWEST_LEGACY, NEWEST_MODERN, SERVER_META
from services.proxy.headers import encode
from services.proxy.messages import METHOD_NOT_FOUND
from services.proxy.snapshot import Server

FACTS_NS: Final = 3_600 * 1_000_000_000
SESSION_IDLE_NS: Final = 1_800 * 1_000_000_000
#: Codes that only a modern server gives.
MODERN_CODES: Final = frozenset({-32020, -32021, -32022})
_SESSION_ID: Final = frozenset(range(0x21, 0x7F))
_PROBE_ID: Final = 0

_Place = tuple[TenantId, ServerSlug]
_Holder = tuple[TenantId, AgentId, ServerSlug]


@dataclass(slots=True)
class _Known:
    facts: Facts
    server: Server
    until_ns: int


@dataclass(slots=True)
class _Pooled:
    session: Session
    used_ns: int


class StreamableBackend:
    """One per worker, for all servers of transport `http`."""

    def __init__(
        self,
        *,
        secrets: Secrets,
        clock: Clock,
        counters: Counters,
        spawn: Callable[[str, Callable[[], Any]], Any],
    ) -> None:
        self._secrets = secrets
        self._clock = clock
        self._counters = counters
        self._spawn = spawn
        self._tls: ssl.SSLContext = tls_context()
        self._origins: dict[str, Origin] = {}
        self._heads: dict[str, bytes] = {}
        self._known: dict[_Place, _Known] = {}
        self._probing: dict[_Place, asyncio.Lock] = {}
        self._pool: dict[_Holder, _Pooled] = {}
        self._opening: dict[_Holder, asyncio.Lock] = {}
        self._turn = 0
        self._next_id = 0

    async def facts(self, visit: Visit) -> Facts:
        place = (visit.caller.tenant, visit.slug)
        known = self._known.get(place)
        if known is not None and self._fresh(known, visit):
            return known.facts
        async with self._probing.setdefault(place, asyncio.Lock()):
            known = self._known.get(place)
            if known is None or not self._fresh(known, visit):
                facts = await self._probe(visit)
                until_ns = self._clock.monotonic_ns() + FACTS_NS
                known = self._known[place] = _Known(facts, visit.server, until_ns)
            return known.facts

    async def open(self, visit: Visit, capabilities: Mapping[str, Any]) -> Session | None:  # noqa: ARG002
        facts = await self.facts(visit)
        return None if facts.modern else (await self._initialize(visit))[0]

    async def ask(
        self,
        visit: Visit,
        request: Request,
        session: Session | None = None,
        hear: Hear | None = None,  # noqa: ARG002  # heard later
    ) -> Reply:
        facts = await self.facts(visit)
        if facts.modern:
            return await self._modern(visit, request, facts.version)
        if session is not None:
            return await self._legacy(visit, request, session)
        pooled = await self._pooled(visit)
        try:
            return await self._legacy(visit, request, pooled)
        except SessionGone:  # it said that it does not know the session: nothing ran
            self._pool.pop(_holder(visit), None)
            return await self._legacy(visit, request, await self._pooled(visit))

    async def tell(self, visit: Visit, message: Mapping[str, Any], session: Session | None) -> None:
        raise UpstreamFailed("upstream_protocol", ran=False)

    async def listen(
        self, visit: Visit, listening: Listening, hear: Hear, session: Session | None = None
    ) -> None:
        raise UpstreamFailed("upstream_protocol", ran=False, status=405)

    async def close(self, visit: Visit, session: Session) -> None:
        if not session.id:
            return
        url = self._url(visit)
        head = self._head(visit, url, b"DELETE") + _version_headers(session)
        with contextlib.suppress(UpstreamFailed):
            await self._origin(url).request(
                head + b"content-length: 0\r\n\r\n", b"", timeout_s=PROBE_S
            )

    def forget(self) -> None:
        """Every server is probed anew."""
        self._known.clear()
        self._pool.clear()

    async def sweep(self) -> None:
        """Lets go of pooled sessions that nobody used for 30 minutes."""
        now_ns = self._clock.monotonic_ns()
        for holder, pooled in list(self._pool.items()):
            if now_ns - pooled.used_ns > SESSION_IDLE_NS:
                del self._pool[holder]

    def shut(self) -> None:
        for origin in self._origins.values():
            origin.close()

    # --- dialects -------------------------------------------------------------------------------

    async def _probe(self, visit: Visit) -> Facts:
        """1. `server/discover`  2. a modern answer or error is modern  3. else `initialize`."""
        if visit.server.era != "legacy":
            probe = Request(
                method="server/discover",
                params={"_meta": modern_meta(NEWEST_MODERN)},
                timeout_s=PROBE_S,
            )
            try:
                reply = await self._modern(visit, probe, NEWEST_MODERN)  # 1
            except UpstreamFailed as failure:
                if failure.status is None and failure.reason != "upstream_timeout":
                    raise  # nobody there: that tells no era
                if failure.reason in {
                    "upstream_auth",
                    "secret_unresolved",
                    "upstream_rate_limited",
                }:
                    raise
                reply = None
            facts = None if reply is None else discovered(reply)  # 2
            if facts is not None:
                return facts
            if visit.server.era == "modern":
                raise UpstreamFailed("upstream_protocol", ran=False)
        session, facts = await self._initialize(visit)  # 3
        self._pool[_holder(visit)] = _Pooled(session, self._clock.monotonic_ns())
        return facts

    async def _initialize(self, visit: Visit) -> tuple[Session, Facts]:
        opened = Session("", "")
        params = {"protocolVersion": NEWEST_LEGACY, "capabilities": {}, "clientInfo": OURS}
        request = Request(method="initialize", params=params, timeout_s=3 * PROBE_S)
        reply, response = await self._post(visit, request, b"")
        facts = introduced(reply)
        sid = response.headers.get("mcp-session-id", "")
        if not set(sid.encode("latin-1")) <= _SESSION_ID:
            raise UpstreamFailed("upstream_protocol", ran=False)
        opened = Session(sid, facts.version)
        await self._notify(visit, "notifications/initialized", opened)
        return opened, facts

    async def _pooled(self, visit: Visit) -> Session:
        holder = _holder(visit)
        async with self._opening.setdefault(holder, asyncio.Lock()):
            now_ns = self._clock.monotonic_ns()
            pooled = self._pool.get(holder)
            if pooled is None or now_ns - pooled.used_ns > SESSION_IDLE_NS:
                session, _ = await self._initialize(visit)
                pooled = self._pool[holder] = _Pooled(session, now_ns)
            pooled.used_ns = now_ns
            return pooled.session

    async def _modern(self, visit: Visit, request: Request, version: str) -> Reply:
        lines = [f"mcp-protocol-version: {version}\r\nmcp-method: {request.method}\r\n"]
        if request.name is not None:
            lines.append(f"mcp-name: {encode(request.name)}\r\n")
        lines.extend(f"{name}: {value}\r\n" for name, value in request.headers)
        return (await self._post(visit, request, "".join(lines).encode("latin-1")))[0]

    async def _legacy(self, visit: Visit, request: Request, session: Session) -> Reply:
        reply, _ = await self._post(visit, request, _version_headers(session), session)
        return reply

    async def _notify(self, visit: Visit, method: str, session: Session) -> None:
        url = self._url(visit)
        body = messages.encode({"jsonrpc": "2.0", "method": method})
        head = self._head(visit, url, b"POST") + _version_headers(session)
        response = await self._origin(url).request(
            head + b"content-length: %d\r\n\r\n" % len(body), body, timeout_s=PROBE_S
        )
        if response.status >= 400:
            raise UpstreamFailed("upstream_protocol", ran=False, status=response.status)

    # --- one exchange ---------------------------------------------------------------------------

    async def _post(
        self, visit: Visit, request: Request, lines: bytes, session: Session | None = None
    ) -> tuple[Reply, Response]:
        url = self._url(visit)
        self._next_id += 1
        number = self._next_id
        body = messages.encode(
            {"jsonrpc": "2.0", "id": number, "method": request.method, "params": request.params}
        )
        head = b"%s%scontent-length: %d\r\n\r\n" % (
            self._head(visit, url, b"POST"), lines, len(body),
        )  # fmt: skip
        answers = _Answers(number)
        response = await self._origin(url).request(
            head, body, timeout_s=min(request.timeout_s, CALL_S), tap=answers.feed
        )
        for asked in answers.asked:
            self._refuse_later(visit, asked, session)
        return _read(response, answers, number, session), response

    def _refuse_later(self, visit: Visit, asked: dict[str, Any], session: Session | None) -> None:
        """A server that asks the client something is told that nobody answers such things."""

        async def refuse() -> None:
            error = {"code": METHOD_NOT_FOUND, "message": "not supported"}
            body = messages.encode({"jsonrpc": "2.0", "id": asked["id"], "error": error})
            url = self._url(visit)
            head = self._head(visit, url, b"POST") + (_version_headers(session) if session else b"")
            with contextlib.suppress(UpstreamFailed):
                await self._origin(url).request(
                    head + b"content-length: %d\r\n\r\n" % len(body), body, timeout_s=PROBE_S
                )

        self._spawn("refuse server request", refuse)

    def _url(self, visit: Visit) -> str:
        urls = visit.server.urls
        if not urls:
            raise UpstreamFailed("upstream_unreachable", ran=False)
        if len(urls) == 1:
            return urls[0]
        self._turn += 1
        return urls[self._turn % len(urls)]

    def _origin(self, url: str) -> Origin:
        parts = urlsplit(url)
        key = f"{parts.scheme}://{parts.netloc}"
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = Origin(url, self._counters, self._tls)
        return origin

    def _head(self, visit: Visit, url: str, verb: bytes) -> bytes:
        """What every request to this URL begins with, the server's credential last."""
        known = self._heads.get(url)
        if known is None:
            parts = urlsplit(url)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            known = self._heads[url] = (
                f" {target} HTTP/1.1\r\nhost: {parts.netloc.rpartition('@')[2]}\r\n"
                "accept: application/json, text/event-stream\r\naccept-encoding: identity\r\n"
                f"content-type: application/json\r\nuser-agent: {NAME}/{VERSION}\r\n"
            ).encode("ascii")
        credential = visit.server.credential
        if credential.kind == "none":
            return verb + known
        if credential.kind != "header" or not credential.name.replace("-", "").isalnum():
            raise UpstreamFailed("upstream_auth", ran=False)
        secret = self._secrets.header(credential.value)
        return b"%s%s%s: %s\r\n" % (verb, known, credential.name.encode(), secret.encode())

    def _fresh(self, known: _Known, visit: Visit) -> bool:
        """A server whose entry changed is another server."""
        same = known.server is visit.server or known.server == visit.server
        return same and known.until_ns > self._clock.monotonic_ns()


class _Answers:
    """The events of an answer stream: ours ends it, notifications pass by, requests are kept."""

    def __init__(self, id: int) -> None:
        self._id = id
        self._parser: EventParser | None = None
        self.answer: dict[str, Any] | None = None
        self.failed = False
        self.asked: list[dict[str, Any]] = []

    def feed(self, chunk: bytes) -> bool:
        if self._parser is None:
            self._parser = EventParser(MAX_ANSWER)
        try:
            ended = [self._event(data) for data in self._parser.feed(chunk)]
            return True in ended
        except (EventTooLong, messages.Malformed):
            self.failed = True
            return True

    def _event(self, data: bytes) -> bool:
        if not data.strip() or self.answer is not None:
            return False
        tree = messages.decode(data)
        for one in tree if type(tree) is list else [tree]:
            if type(one) is not dict:
                continue
            if "method" in one:
                if messages.valid_id(one.get("id")) and len(self.asked) < 8:
                    self.asked.append(one)
            elif one.get("id") == self._id and ("result" in one or "error" in one):
                self.answer = one
                return True
        return False


def _read(response: Response, answers: _Answers, id: int, session: Session | None) -> Reply:
    """An HTTP response as a JSON-RPC reply. Raises UpstreamFailed."""
    status = response.status
    if status == 404 and session is not None and session.id:
        raise SessionGone
    if status in {401, 403}:
        raise UpstreamFailed("upstream_auth", ran=False, status=status)
    if status == 429:
        raise UpstreamFailed("upstream_rate_limited", ran=False, status=status)
    if "content-encoding" in response.headers:
        raise UpstreamFailed("upstream_protocol", ran=None, status=status)
    if response.content_type == "text/event-stream" and 200 <= status < 300:
        tree: Any = answers.answer
    else:
        try:
            tree = messages.decode(bytes(response.body))
        except messages.Malformed:
            tree = None
        if type(tree) is list:
            tree = next((m for m in tree if type(m) is dict and m.get("id") == id), None)
    if type(tree) is dict and (tree.get("id") == id or (status >= 400 and tree.get("id") is None)):
        if type(tree.get("result")) is dict and 200 <= status < 300:
            return Reply(tree["result"], None, status)
        error = tree.get("error")
        if type(error) is dict and type(error.get("code")) is int:
            return Reply(None, error, status)
    if status in {502, 503, 504}:
        raise UpstreamFailed("upstream_unreachable", ran=None, status=status)
    raise UpstreamFailed("upstream_protocol", ran=None, status=status)


def discovered(reply: Reply) -> Facts | None:
    """None where the answer does not come from a modern server that we can speak with."""
    if reply.result is None:
        code = reply.error["code"] if reply.error else 0
        if code in MODERN_CODES:
            raise UpstreamFailed("upstream_protocol", ran=False, status=reply.status)
        return None
    found = reply.result
    versions = found.get("supportedVersions")
    shared = [one for one in MODERN if type(versions) is list and one in versions]
    if not shared:
        return None
    meta = found.get("_meta")
    info = meta.get(SERVER_META) if type(meta) is dict else None
    return _facts("modern", shared[0], found, info)


def introduced(reply: Reply) -> Facts:
    """The answer to `initialize`. Raises UpstreamFailed."""
    if reply.result is None or reply.result.get("protocolVersion") not in LEGACY:
        raise UpstreamFailed("upstream_protocol", ran=False, status=reply.status)
    found = reply.result
    return _facts("legacy", found["protocolVersion"], found, found.get("serverInfo"))


def _facts(era: Any, version: str, found: dict[str, Any], info: Any) -> Facts:
    capabilities, instructions = found.get("capabilities"), found.get("instructions")
    return Facts(
        era=era,
        version=version,
        capabilities=capabilities if type(capabilities) is dict else {},
        server_info=info if type(info) is dict else {},
        instructions=instructions if type(instructions) is str else None,
    )


def _version_headers(session: Session) -> bytes:
    lines = f"mcp-protocol-version: {session.version}\r\n"
    if session.id:
        lines += f"mcp-session-id: {session.id}\r\n"
    return lines.encode("latin-1")


def _holder(visit: Visit) -> _Holder:
    return visit.caller.tenant, visit.caller.agent, visit.slug
