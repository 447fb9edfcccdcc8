"""Tool servers over Streamable HTTP, both eras.

Decides which era a server speaks (probe, mcp.md 2.2), and in which dialect and session each request
goes. Sessions of legacy servers are opened here; modern agents share one per agent and server,
legacy agents have their own. Addresses are sites.py's business, requests sender.py's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from services.common.clock import Clock
from services.common.mcp_headers import encode
from services.common.telemetry.counters import Counters
from services.proxy.backends.conversation import LISTEN
from services.proxy.backends.credentials import Credentials
from services.proxy.backends.plain import PlainHttp
from services.proxy.backends.sender import Sender, Way
from services.proxy.backends.sites import FACTS_NS, Door, Pooled, Site, Sites, alone
from services.proxy.backends.upstream import (
    PROBE_S,
    Hear,
    Listening,
    Reply,
    Request,
    Session,
    SessionGone,
    UpstreamFailed,
    discovered,
    introduced,
    supported,
)
from services.proxy.bridge import OURS, Facts, modern_meta
from services.proxy.calls import Visit
from services.proxy.eras import MODERN, NEWEST_LEGACY, NEWEST_MODERN

SESSION_IDLE_NS: Final = 1_800 * 1_000_000_000
CHECK_NS: Final = 30 * 1_000_000_000
#: A server that was asked within this time is in use.
IN_USE_NS: Final = 2 * CHECK_NS
_SESSION_ID: Final = frozenset(range(0x21, 0x7F))
#: Failures that tell nothing of an era.
_NO_ERA: Final = frozenset({"upstream_auth", "secret_unresolved", "upstream_rate_limited"})


class StreamableBackend:
    """One per worker, for all servers of transport `http`."""

    def __init__(
        self,
        *,
        credentials: Credentials,
        clock: Clock,
        counters: Counters,
        spawn: Callable[[str, Callable[[], Any]], Any],
        private: bool = True,
        socket: str = "",
        probe_s: float = PROBE_S,
    ) -> None:
        """`private`: whether tool servers may have private addresses. `socket`: the path of the one
        unix socket that all are behind. `probe_s`: how long one may take to say what it speaks.
        """
        self._clock = clock
        self._spawn = spawn
        self._probe_s = probe_s
        self._sites = Sites(credentials, clock, counters, private=private, socket=socket)
        self._sender = Sender(credentials=credentials, clock=clock, counters=counters, spawn=spawn)
        self.plain = PlainHttp(self._sites, self._sender)

    async def facts(self, visit: Visit) -> Facts:
        site = self._sites.of(visit)
        known = site.known(self._clock.monotonic_ns())
        return known or await self._learn(visit, site)

    async def open(self, visit: Visit, capabilities: Mapping[str, Any]) -> Session | None:
        site = self._sites.of(visit)
        facts = site.known(self._clock.monotonic_ns()) or await self._learn(visit, site)
        return None if facts.modern else (await self._initialize(visit, site, capabilities))[0]

    async def ask(
        self,
        visit: Visit,
        request: Request,
        session: Session | None = None,
        hear: Hear | None = None,
    ) -> Reply:
        site = self._sites.of(visit)
        now_ns = site.used_ns = self._clock.monotonic_ns()
        facts = site.known(now_ns) or await self._learn(visit, site)
        if facts.modern:
            lines = _modern_headers(request, facts.version)
            way = Way(visit, site, site.door(now_ns), lines, modern=True)
            return (await self._sender.ask(way, request, hear))[0]
        if session is not None:
            return await self._legacy(visit, site, request, session, hear)
        pooled = await self._pooled(visit, site)
        try:
            return await self._legacy(visit, site, request, pooled, hear)
        except SessionGone:  # it said that it does not know the session: nothing ran
            self._drop_pooled(visit, site, pooled)
            again = await self._pooled(visit, site)
            return await self._legacy(visit, site, request, again, hear)

    async def tell(self, visit: Visit, message: Mapping[str, Any], session: Session | None) -> None:
        """Modern servers take answers with the next request, and no notifications."""
        site = self._sites.of(visit)
        facts = site.known(self._clock.monotonic_ns()) or await self._learn(visit, site)
        if facts.modern:
            return
        if session is None:
            session = await self._pooled(visit, site)
        await self._sender.tell(self._in_session(visit, site, session), message)

    async def listen(
        self, visit: Visit, listening: Listening, hear: Hear, session: Session | None = None
    ) -> None:
        site = self._sites.of(visit)
        facts = site.known(self._clock.monotonic_ns()) or await self._learn(visit, site)
        if facts.modern:
            params = listening.params
            given = params.get("_meta")
            meta = {**modern_meta(facts.version), **(given if type(given) is dict else {})}
            params = {**params, "_meta": meta}
            lines = _modern_headers(Request(method=LISTEN, params=params), facts.version)
            door = site.door(self._clock.monotonic_ns())
            way = Way(visit, site, door, lines, modern=True)
            await self._sender.subscribe(way, LISTEN, params, hear)
            return
        if session is None:
            session = await self._pooled(visit, site)
        way = self._in_session(visit, site, session)
        await self._sender.follow(way, listening.last_event_id, hear)

    async def close(self, visit: Visit, session: Session) -> None:
        if session.id:
            with contextlib.suppress(UpstreamFailed):
                site = self._sites.near(visit)
                await self._sender.end(self._in_session(visit, site, session))

    def forget(self) -> None:
        """Every server is probed anew."""
        for site in self._sites.all():
            site.forget()

    async def sweep(self) -> None:
        """Ends pooled sessions that nobody used for 30 minutes, forgets servers that nobody asked
        for an hour, and looks whether those in use still answer.
        """
        now_ns = self._clock.monotonic_ns()
        for site in self._sites.all():
            for agent, pooled in list(site.pool.items()):
                if now_ns - pooled.used_ns > SESSION_IDLE_NS:
                    del site.pool[agent]
                    self._end_later(pooled)
            idle_ns = now_ns - site.used_ns
            if idle_ns < IN_USE_NS:
                self._look_after(site, now_ns)
            elif idle_ns > FACTS_NS and not site.pool:
                self._sites.let_go(site)

    def shut(self) -> None:
        self._sites.close()

    # --- which era ------------------------------------------------------------------------------

    async def _learn(self, visit: Visit, site: Site) -> Facts:
        async with site.probing:
            known = site.known(self._clock.monotonic_ns())
            if known is None:
                known = await self._probe(visit, site)
                site.learned(known, self._clock.monotonic_ns())
            return known

    async def _probe(self, visit: Visit, site: Site) -> Facts:
        """1. `server/discover`, again if the server names another version of ours  2. a modern
        answer or error is modern  3. else `initialize`. Raises UpstreamFailed.
        """
        era = visit.server.era
        if era != "legacy":
            door = site.door(self._clock.monotonic_ns())
            reply = await self._discover(visit, site, door, NEWEST_MODERN)  # 1
            others = supported(reply) if reply is not None else []
            if reply is not None and others and others[0] in MODERN:
                reply = await self._discover(visit, site, door, others[0])
            if reply is None or (others and others[0] not in MODERN):
                facts = None
            else:
                facts = discovered(reply)  # 2
            if facts is not None:
                return facts
            if era == "modern":
                raise UpstreamFailed("upstream_protocol", ran=False)
        session, facts = await self._initialize(visit, site, {})  # 3
        self._pool(visit, site, session)
        return facts

    async def _discover(self, visit: Visit, site: Site, door: Door, version: str) -> Reply | None:
        """None where the server does not know what that is. Raises UpstreamFailed."""
        params = {"_meta": modern_meta(version)}
        probe = Request(method="server/discover", params=params, timeout_s=self._probe_s)
        lines = _modern_headers(probe, version)
        way = Way(visit, site, door, lines, modern=True, settled=False)
        try:
            return (await self._sender.ask(way, probe))[0]
        except UpstreamFailed as failure:
            if failure.status is None and failure.reason != "upstream_timeout":
                raise  # nobody there: that tells no era
            if failure.reason in _NO_ERA:
                raise
            return None

    # --- legacy sessions ------------------------------------------------------------------------

    async def _initialize(
        self, visit: Visit, site: Site, capabilities: Mapping[str, Any]
    ) -> tuple[Session, Facts]:
        door = site.door(self._clock.monotonic_ns())
        params = {
            "protocolVersion": NEWEST_LEGACY,
            "capabilities": dict(capabilities),
            "clientInfo": OURS,
        }
        timeout_s = max(3 * PROBE_S, self._probe_s)
        request = Request(method="initialize", params=params, timeout_s=timeout_s)
        reply, response = await self._sender.ask(Way(visit, site, door), request)
        facts = introduced(reply)
        sid = response.headers.get("mcp-session-id", "")
        if not set(sid.encode("latin-1")) <= _SESSION_ID:
            raise UpstreamFailed("upstream_protocol", ran=False)
        opened = Session(sid, facts.version, door.url)
        way = Way(visit, site, door, _legacy_headers(opened), opened)
        await self._sender.tell(way, {"method": "notifications/initialized"})
        return opened, facts

    async def _pooled(self, visit: Visit, site: Site) -> Session:
        agent = visit.caller.agent
        found = self._usable(site, visit)
        if found is not None:
            return found
        async with site.opening(agent):
            found = self._usable(site, visit)
            if found is None:
                found, _ = await self._initialize(visit, site, {})
                self._pool(visit, site, found)
            return found

    def _pool(self, visit: Visit, site: Site, session: Session) -> None:
        before = site.pool.get(visit.caller.agent)
        site.pool[visit.caller.agent] = Pooled(session, alone(visit), self._clock.monotonic_ns())
        if before is not None:
            self._end_later(before)

    def _end_later(self, pooled: Pooled) -> None:
        self._spawn("end session", partial(self.close, pooled.visit, pooled.session))

    def _usable(self, site: Site, visit: Visit) -> Session | None:
        pooled = site.pool.get(visit.caller.agent)
        now_ns = self._clock.monotonic_ns()
        if pooled is None or now_ns - pooled.used_ns > SESSION_IDLE_NS:
            return None
        if len(site.doors) > 1 and not site.door_of(pooled.session, 0).circuit.closed(now_ns):
            return None  # another address may have another session for us
        pooled.used_ns = now_ns
        return pooled.session

    def _drop_pooled(self, visit: Visit, site: Site, session: Session) -> None:
        pooled = site.pool.get(visit.caller.agent)
        if pooled is not None and pooled.session is session:
            del site.pool[visit.caller.agent]

    # --- dialects -------------------------------------------------------------------------------

    async def _legacy(
        self, visit: Visit, site: Site, request: Request, session: Session, hear: Hear | None
    ) -> Reply:
        way = self._in_session(visit, site, session)
        if request.traceparent:
            way.lines += b"traceparent: %s\r\n" % request.traceparent.encode()
        return (await self._sender.ask(way, request, hear))[0]

    def _in_session(self, visit: Visit, site: Site, session: Session) -> Way:
        door = site.door_of(session, self._clock.monotonic_ns())
        return Way(visit, site, door, _legacy_headers(session), session)

    # --- addresses ------------------------------------------------------------------------------

    def _look_after(self, site: Site, now_ns: int) -> None:
        for door in site.doors:
            if now_ns - door.seen_ns >= CHECK_NS:
                door.seen_ns = now_ns
                self._spawn("look after tool server", partial(self._check, site, door))

    async def _check(self, site: Site, door: Door) -> None:
        """Whether one address answers: its circuit hears of it."""
        if site.facts is None:
            return
        visit = site.visit
        with contextlib.suppress(UpstreamFailed):
            if site.facts.modern:
                reply = await self._discover(visit, site, door, site.facts.version)
                if reply is None or discovered(reply) is None:
                    site.doubt(self._clock.monotonic_ns())
                return
            ping = Request(method="ping", params={}, timeout_s=PROBE_S)
            for pooled in site.pool.values():
                if pooled.session.url == door.url:
                    way = self._in_session(pooled.visit, site, pooled.session)
                    await self._sender.ask(way, ping)
                    return


def _modern_headers(request: Request, version: str) -> bytes:
    lines = [f"mcp-protocol-version: {version}\r\nmcp-method: {request.method}\r\n"]
    if request.name is not None:
        lines.append(f"mcp-name: {encode(request.name)}\r\n")
    lines.extend(f"{name}: {value}\r\n" for name, value in request.headers)
    if request.traceparent:
        lines.append(f"traceparent: {request.traceparent}\r\n")
    return "".join(lines).encode("latin-1")


def _legacy_headers(session: Session) -> bytes:
    lines = f"mcp-protocol-version: {session.version}\r\n"
    if session.id:
        lines += f"mcp-session-id: {session.id}\r\n"
    return lines.encode("latin-1")
