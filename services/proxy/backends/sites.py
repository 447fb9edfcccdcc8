"""What one worker remembers of an HTTP tool server: its era, its addresses, pooled sessions.

Decides which address a request goes to (mcp.md 2.2): in turn, those whose circuit is closed; a
session's own. What is asked there is streamable.py's business.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from msgspec.structs import replace

from services.common.clock import Clock
from services.common.ids import AgentId, ServerSlug, TenantId
from services.common.telemetry.counters import Counters
from services.proxy.backends.circuit import Circuit
from services.proxy.backends.credentials import Credentials
from services.proxy.backends.upstream import Session, SessionGone, UpstreamFailed
from services.proxy.backends.wire import Origin
from services.proxy.bridge import NAME, VERSION, Facts
from services.proxy.calls import Visit
from services.proxy.snapshot import Server, Tenant

FACTS_NS: Final = 3_600 * 1_000_000_000
#: Whom we just met is not doubted: some servers answer any odd request like that.
DOUBT_NS: Final = 5 * 1_000_000_000
_Place = tuple[TenantId, ServerSlug]
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")


@dataclass(slots=True, eq=False)
class Door:
    """One address of a server. The heads are what every request to it begins with."""

    url: str
    origin: Origin
    post: bytes
    get: bytes
    delete: bytes
    circuit: Circuit = field(default_factory=Circuit)
    #: When it was last known to answer, or asked whether it does.
    seen_ns: int = 0
    #: How many answers to its own questions are under way.
    answering: int = 0
    #: It leads to the host of stdio servers, which tells by itself what became of a child.
    hosted: bool = False


@dataclass(slots=True, eq=False)
class Pooled:
    """A legacy session for an agent of the modern era. `visit` is whose it is."""

    session: Session
    visit: Visit
    used_ns: int


@dataclass(slots=True, eq=False)
class Site:
    """A server, as its entry says. Another entry is another site."""

    server: Server
    doors: Sequence[Door]
    #: The last visit: what is asked on nobody's behalf goes with its credential.
    visit: Visit
    facts: Facts | None = None
    until_ns: int = 0
    met_ns: int = 0
    used_ns: int = 0
    probing: asyncio.Lock = field(default_factory=asyncio.Lock)
    pool: dict[AgentId, Pooled] = field(default_factory=dict)
    _opening: WeakValueDictionary[AgentId, asyncio.Lock] = field(
        default_factory=WeakValueDictionary
    )
    _turn: int = 0

    def known(self, now_ns: int) -> Facts | None:
        """What it said of itself, unless that is long ago."""
        return self.facts if self.until_ns > now_ns else None

    def door(self, now_ns: int) -> Door:
        """The next one that may answer. Raises UpstreamFailed."""
        doors = self.doors
        for _ in doors:
            self._turn = (self._turn + 1) % len(doors)
            door = doors[self._turn]
            if door.circuit.closed(now_ns):
                return door
        raise UpstreamFailed("upstream_unreachable", ran=False)

    def door_of(self, session: Session, now_ns: int) -> Door:
        """The one that knows the session. Raises UpstreamFailed; SessionGone where there is none
        any more.
        """
        if not session.url:
            return self.door(now_ns)
        for door in self.doors:
            if door.url == session.url:
                if door.circuit.closed(now_ns):
                    return door
                raise UpstreamFailed("upstream_unreachable", ran=False)
        raise SessionGone

    def door_at(self, url: str) -> Door:
        """An address that the server named itself, on an origin of its entry. Raises
        UpstreamFailed.
        """
        base = url_base(url)
        for door in self.doors:
            if door.url == url:
                return door
            if url_base(door.url) == base:
                return make_door(url, door.origin, self.server.headers)
        raise UpstreamFailed("upstream_protocol", ran=False)

    def opening(self, agent: AgentId) -> asyncio.Lock:
        """Held while a session is opened for the agent; gone when nobody holds it."""
        lock = self._opening.get(agent)
        if lock is None:
            lock = self._opening[agent] = asyncio.Lock()
        return lock

    def learned(self, facts: Facts, now_ns: int) -> None:
        if self.facts is not None and self.facts.era != facts.era:
            self.pool.clear()
        self.facts, self.met_ns, self.until_ns = facts, now_ns, now_ns + FACTS_NS

    def doubt(self, now_ns: int) -> None:
        """It answers as one of the other era would: it is met anew, unless it just was."""
        if now_ns - self.met_ns >= DOUBT_NS:
            self.until_ns = 0

    def forget(self) -> None:
        """It is met anew."""
        self.until_ns = 0
        self.pool.clear()


class Sites:
    """One per worker."""

    def __init__(
        self,
        credentials: Credentials,
        clock: Clock,
        counters: Counters,
        *,
        private: bool,
        socket: str = "",
    ) -> None:
        """`socket`: the path of the one unix socket that all servers are behind."""
        self._credentials = credentials
        self._clock = clock
        self._counters = counters
        self._private = private
        self._socket = socket
        self._tls = _tls_context()
        self._known: dict[_Place, Site] = {}

    def of(self, visit: Visit) -> Site:
        place = (visit.caller.tenant, visit.slug)
        site = self._known.get(place)
        if site is not None and site.server is visit.server:
            return site
        if site is not None and site.server == visit.server:
            site.server, site.visit = visit.server, alone(visit)
            return site
        made = Site(server=visit.server, doors=self._doors(visit.server), visit=alone(visit))
        if site is not None:  # a server whose entry changed is another server
            made.pool = _kept(site, visit.server)
            _retire(site)
        made.used_ns = self._clock.monotonic_ns()
        self._known[place] = made
        return made

    def near(self, visit: Visit) -> Site:
        """The server as it is known now, though the visit may have begun with another entry."""
        return self._known.get((visit.caller.tenant, visit.slug)) or self.of(visit)

    def all(self) -> list[Site]:
        return list(self._known.values())

    def let_go(self, site: Site) -> None:
        """Until somebody asks for it again."""
        self._known = {place: one for place, one in self._known.items() if one is not site}
        _retire(site)

    def close(self) -> None:
        for site in self._known.values():
            for door in site.doors:
                door.origin.close()

    def _doors(self, server: Server) -> list[Door]:
        origins: dict[str, Origin] = {}
        doors = []
        for url in server.urls:
            base = url_base(url)
            if base not in origins:
                tls = partial(self._context, server)
                origins[base] = Origin(
                    url, self._counters, tls=tls, private=self._private, socket=self._socket
                )
            door = make_door(url, origins[base], server.headers)
            door.hosted = bool(self._socket)
            doors.append(door)
        return doors

    async def _context(self, server: Server) -> ssl.SSLContext:
        return await self._credentials.tls(server) or self._tls


def alone(visit: Visit) -> Visit:
    """What is kept of a visit for requests on nobody's behalf: not the whole tenant that it saw."""
    return replace(visit, tenant=Tenant(slug=visit.tenant.slug, status=visit.tenant.status))


def url_base(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def make_door(url: str, origin: Origin, headers: Mapping[str, str]) -> Door:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2]
    fixed = {"host": host, "accept-encoding": "identity", "user-agent": f"{NAME}/{VERSION}"}
    given = {name: value for name, value in headers.items() if _sound(name, value)}
    given = {name: value for name, value in given.items() if name.lower() not in fixed}
    lines = [f"{name}: {value}\r\n" for name, value in (*fixed.items(), *given.items())]
    common = f" {target} HTTP/1.1\r\n{''.join(lines)}".encode("ascii")
    both = b"accept: application/json, text/event-stream\r\ncontent-type: application/json\r\n"
    return Door(
        url=url,
        origin=origin,
        post=b"POST" + common + both,
        get=b"GET" + common + b"accept: text/event-stream\r\n",
        delete=b"DELETE" + common,
    )


def _sound(name: str, value: str) -> bool:
    """Control refuses others; one that came all the same would be two headers."""
    return bool(_HEADER_NAME.fullmatch(name)) and bool(_HEADER_VALUE.fullmatch(value))


def _kept(site: Site, server: Server) -> dict[AgentId, Pooled]:
    """Sessions that the entry after this one knows, too."""
    if site.server.credential != server.credential:
        return {}
    return {agent: one for agent, one in site.pool.items() if one.session.url in server.urls}


def _retire(site: Site) -> None:
    for door in site.doors:
        door.origin.retire()


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
