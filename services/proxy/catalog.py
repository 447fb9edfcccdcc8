"""What tool servers offer and what each agent sees of it (mcp.md 6).

Decides the digest that pins a definition (core.md 7) and when a list is fetched again: after the
time that the server gave it, at most 5 minutes, and so seldom that fetching takes a twentieth of
the time at most. Which tools an agent may see is the authorizer's answer; without one there is no
view, never the raw list.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from services.common.clock import Clock
from services.common.ids import AgentId, ServerSlug, TenantId
from services.proxy import bridge, headers, messages
from services.proxy.backends.upstream import MAX_ANSWER, Backend, Request, UpstreamFailed
from services.proxy.bridge import Facts
from services.proxy.calls import Decider, Offered, Visit
from services.proxy.snapshot import Server

NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
PINNED: Final = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
MAX_LISTS: Final = 1_000
MAX_TOOLS: Final = 5_000
MAX_PAGES: Final = 100
MAX_DEFINITION: Final = 64 * 1024
FRESH_NS: Final = 300 * 1_000_000_000
#: A server that gives its list no time to live is asked again after this, not at every call.
SHORTEST_NS: Final = 1_000_000_000
#: A list that takes long to fetch lives this many times as long.
PER_FETCH: Final = 20
SEARCH_NS: Final = 30 * 1_000_000_000
MAX_VIEWS: Final = 10_000
LIST_S: Final = 30.0

#: Tenant, server, and the agent where the server knows it by a credential of its own.
_Place = tuple[TenantId, ServerSlug, str]
_Owner = tuple[TenantId, AgentId, ServerSlug]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    name: str
    schema_hash: str
    #: Canonical JSON of what is pinned; empty when over 64 KiB.
    definition: bytes
    #: As the server sent it.
    raw: dict[str, Any]
    params: tuple[headers.ParamHeader, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All tools of a server that could ever be shown, in its order."""

    tools: dict[str, Tool]
    digest: str
    facts: Facts
    #: What the server allows; 0 where it says nothing.
    ttl_ns: int

    @property
    def offered(self) -> tuple[Offered, ...]:
        return tuple(Offered(tool.name, tool.schema_hash) for tool in self.tools.values())


@dataclass(slots=True)
class View:
    """What one agent sees of one listing; results are encoded once per era."""

    names: frozenset[str]
    digest: str
    encoded: dict[bool, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _Cached:
    listing: Listing
    server: Server
    began_ns: int
    at_ns: int
    life_ns: int
    reported_ns: int


Report = Callable[[Visit, Listing], None]
Served = Callable[[Visit, View, Listing], None]


class Catalog:
    """One per worker. `report` and `served` are told of what is new; they do not block."""

    def __init__(self, *, decider: Decider, clock: Clock, report: Report, served: Served) -> None:
        self._decider = decider
        self._clock = clock
        self._report = report
        self._served = served
        self._cached: dict[_Place, _Cached] = {}
        self._fetching: dict[_Place, asyncio.Lock] = {}
        self._views: dict[tuple[TenantId, AgentId, ServerSlug, str, str], View] = {}
        self._last_served: dict[_Owner, str] = {}
        #: Digests of the views that agents were given or told of.
        self._known: dict[_Owner, str] = {}

    async def listing(self, visit: Visit, backend: Backend) -> Listing:
        """Raises UpstreamFailed."""
        cached = self._fresh(visit)
        return cached if cached is not None else await self._refresh(visit, backend)

    async def find(self, visit: Visit, backend: Backend, name: str) -> Tool | None:
        """The tool as it is offered now; a name that is not listed is looked for once per 30 s."""
        listing = await self.listing(visit, backend)
        if name not in listing.tools and self._fresh(visit, SEARCH_NS) is None:
            listing = await self._refresh(visit, backend, SEARCH_NS)
        return listing.tools.get(name)

    async def view(self, visit: Visit, listing: Listing) -> View:
        """What the agent is given. Raises BehavryError when the authorizer cannot tell."""
        owner = _owner(visit)
        view = await self._decided(visit, listing)
        self._known[owner] = view.digest
        if self._last_served.get(owner) != view.digest:
            self._last_served[owner] = view.digest
            self._served(visit, view, listing)
        return view

    async def renew(self, visit: Visit, backend: Backend) -> None:
        """The server says that its list changed. Raises UpstreamFailed."""
        await self._refresh(visit, backend, since_ns=self._clock.monotonic_ns())

    async def differs(self, visit: Visit, backend: Backend) -> bool:
        """Whether the agent would be given another list than the one that it knows of; whom this
        told, knows. Raises UpstreamFailed, BehavryError.
        """
        owner = _owner(visit)
        view = await self._decided(visit, await self.listing(visit, backend))
        before = self._known.get(owner)
        self._known[owner] = view.digest
        return before is not None and before != view.digest

    async def _decided(self, visit: Visit, listing: Listing) -> View:
        key = (*_owner(visit), listing.digest, visit.revision)
        view = self._views.get(key)
        if view is None:
            visible = await self._decider.view(visit, listing.offered)
            names = frozenset(name for name in listing.tools if name in visible)
            hashes = [listing.tools[name].schema_hash for name in listing.tools if name in names]
            view = View(names, _digest("\n".join(hashes).encode()))
            if len(self._views) >= MAX_VIEWS:
                self._views.clear()
            self._views[key] = view
        return view

    def result(self, listing: Listing, view: View, *, modern: bool) -> bytes:
        """The agent's `tools/list`, whole, in one page."""
        encoded = view.encoded.get(modern)
        if encoded is None:
            tools = [tool.raw for tool in listing.tools.values() if tool.name in view.names]
            result = bridge.result({"tools": tools}, "tools/list", listing.facts, to_modern=modern)
            encoded = view.encoded[modern] = messages.encode(result)
        return encoded

    def forget_views(self) -> None:
        """Another revision decides anew."""
        self._views.clear()

    def forget(self) -> None:
        """Every list is fetched, and so reported, anew."""
        self._cached.clear()

    def _fresh(self, visit: Visit, age_ns: int = FRESH_NS) -> Listing | None:
        cached = self._cached.get(_place(visit))
        # A server whose entry changed is another server.
        if cached is None or (cached.server is not visit.server and cached.server != visit.server):
            return None
        young = self._clock.monotonic_ns() - cached.at_ns < min(cached.life_ns, age_ns)
        return cached.listing if young else None

    async def _refresh(
        self,
        visit: Visit,
        backend: Backend,
        age_ns: int = FRESH_NS,
        *,
        since_ns: int | None = None,
    ) -> Listing:
        """Single flight: who waited for another's fetch takes its result, if it began after
        `since_ns`.
        """
        place = _place(visit)
        async with self._fetching.setdefault(place, asyncio.Lock()):
            known = self._fresh(visit, age_ns)
            if known is not None and (since_ns is None or self._cached[place].began_ns >= since_ns):
                return known
            began_ns = self._clock.monotonic_ns()
            listing = await fetch(visit, backend)
            at_ns = self._clock.monotonic_ns()
            news = self._is_news(visit, listing, at_ns)
            while len(self._cached) >= MAX_LISTS and place not in self._cached:
                del self._cached[next(iter(self._cached))]  # the oldest; it is fetched again
            self._cached[place] = _Cached(
                listing=listing,
                server=visit.server,
                began_ns=began_ns,
                at_ns=at_ns,
                life_ns=_life_ns(listing.ttl_ns, took_ns=at_ns - began_ns),
                reported_ns=at_ns if news else self._cached[place].reported_ns,
            )
        if news:
            self._report(visit, listing)
        return listing

    def _is_news(self, visit: Visit, listing: Listing, now_ns: int) -> bool:
        """Control is told of what changed, and of all every 5 minutes: a report may be lost."""
        before = self._cached.get(_place(visit))
        return (
            before is None
            or before.server != visit.server
            or before.listing.digest != listing.digest
            or now_ns - before.reported_ns >= FRESH_NS
        )


def _place(visit: Visit) -> _Place:
    own = visit.server.credential.per_agent
    return visit.caller.tenant, visit.slug, visit.caller.agent if own else ""


def _owner(visit: Visit) -> _Owner:
    return visit.caller.tenant, visit.caller.agent, visit.slug


async def fetch(visit: Visit, backend: Backend) -> Listing:
    """All pages. Raises UpstreamFailed."""
    facts = await backend.facts(visit)
    tools: dict[str, Tool] = {}
    cursor: str | None = None
    size = 0
    ttl_ns = FRESH_NS
    for _ in range(MAX_PAGES):
        params: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
        request = Request(
            method="tools/list", params=bridge.outgoing(params, facts), timeout_s=LIST_S
        )
        reply = await backend.ask(visit, request)
        found = reply.result.get("tools") if reply.result is not None else None
        if type(found) is not list:
            raise UpstreamFailed("upstream_protocol", ran=False, status=reply.status)
        for raw in found:
            tool = define(raw)
            if tool is not None:
                size += len(tool.definition)
                tools.setdefault(tool.name, tool)
        ttl_ns = min(ttl_ns, _ttl_ns(reply.result or {}))
        if len(tools) > MAX_TOOLS or size > MAX_ANSWER:
            raise UpstreamFailed("upstream_protocol", ran=False)
        cursor = reply.result.get("nextCursor") if reply.result is not None else None
        if type(cursor) is not str:
            digest = _digest("\n".join(tool.schema_hash for tool in tools.values()).encode())
            return Listing(tools=tools, digest=digest, facts=facts, ttl_ns=ttl_ns)
    raise UpstreamFailed("upstream_protocol", ran=False)


def _ttl_ns(page: dict[str, Any]) -> int:
    ttl_ms = page.get("ttlMs")
    return ttl_ms * 1_000_000 if type(ttl_ms) is int and ttl_ms > 0 else 0


def _life_ns(ttl_ns: int, *, took_ns: int) -> int:
    return min(max(ttl_ns, SHORTEST_NS, took_ns * PER_FETCH), FRESH_NS)


def define(raw: Any) -> Tool | None:
    """None for what no agent may see: odd names, odd headers, tools that need tasks."""
    if type(raw) is not dict or type(raw.get("name")) is not str:
        return None
    execution = raw.get("execution")
    if type(execution) is dict and execution.get("taskSupport") == "required":
        return None
    if NAME.fullmatch(raw["name"]) is None:
        return None
    try:
        params = headers.annotated(raw.get("inputSchema"))
        definition = canonical_definition(raw)
    except (headers.InvalidAnnotation, ValueError, TypeError):
        return None
    return Tool(
        name=raw["name"],
        schema_hash=_digest(definition),
        definition=definition if len(definition) <= MAX_DEFINITION else b"",
        raw=raw,
        params=params,
    )


def canonical_definition(raw: dict[str, Any]) -> bytes:
    """The one maker of the bytes that a pin is the digest of; absent members are left out."""
    pinned = {name: raw[name] for name in PINNED if raw.get(name) is not None}
    return messages.encode(pinned, sort=True)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
