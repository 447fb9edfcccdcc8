"""What tool servers offer and what each agent sees of it (mcp.md 6).

Decides the digest that pins a definition (core.md 7), and what control is told of. Which tools an
agent may see is the authorizer's answer; without one there is no view, never the raw list. How a
list is fetched is pages.py's, how long it is kept kept.py's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from services.common.clock import Clock
from services.common.ids import AgentId, ServerSlug, TenantId
from services.proxy import bridge, headers, messages, pages
from services.proxy.backends.upstream import Backend
from services.proxy.bridge import TASKS, Facts
from services.proxy.calls import Decider, Offered, Visit
from services.proxy.kept import Kept, Place, place
from services.proxy.lists import Lists
from services.proxy.pages import FRESH_NS, NAME
from services.proxy.snapshot import Server

PINNED: Final = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
MAX_DEFINITION: Final = 64 * 1024
SEARCH_NS: Final = 30 * 1_000_000_000
MAX_VIEWS: Final = 10_000
MAX_REPORTED: Final = 10_000

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


@dataclass(frozen=True, slots=True)
class _Reported:
    server: Server
    digest: str
    at_ns: int


Report = Callable[[Visit, Listing], None]
Served = Callable[[Visit, View, Listing], None]


class Catalog:
    """One per worker. `report` and `served` are told of what is new; they do not block."""

    def __init__(self, *, decider: Decider, clock: Clock, report: Report, served: Served) -> None:
        self._decider = decider
        self._clock = clock
        self._report = report
        self._served = served
        #: Prompts and resource templates.
        self.lists = Lists(clock)
        self._listings: Kept[Listing] = Kept(clock, lambda listing: listing.ttl_ns)
        self._reported: dict[Place, _Reported] = {}
        self._views: dict[tuple[TenantId, AgentId, ServerSlug, str, str], View] = {}
        self._last_served: dict[_Owner, str] = {}
        #: Digests of the views that agents were given or told of.
        self._known: dict[_Owner, str] = {}

    async def listing(self, visit: Visit, backend: Backend) -> Listing:
        """Raises UpstreamFailed."""
        known = self._listings.fresh(visit)
        return known if known is not None else await self._refresh(visit, backend)

    async def find(self, visit: Visit, backend: Backend, name: str) -> Tool | None:
        """The tool as it is offered now; a name that is not listed is looked for once per 30 s."""
        listing = await self.listing(visit, backend)
        if name not in listing.tools and self._listings.fresh(visit, SEARCH_NS) is None:
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
        self._listings.clear()
        self._reported.clear()
        self.lists.clear()

    async def _refresh(
        self,
        visit: Visit,
        backend: Backend,
        age_ns: int = FRESH_NS,
        *,
        since_ns: int | None = None,
    ) -> Listing:
        fetched = partial(fetch, visit, backend)
        listing, new = await self._listings.renewed(visit, fetched, age_ns, since_ns=since_ns)
        if new and self._is_news(visit, listing):
            self._report(visit, listing)
        return listing

    def _is_news(self, visit: Visit, listing: Listing) -> bool:
        """Control is told of what changed, and of all every 5 minutes: a report may be lost."""
        here, now_ns = place(visit), self._clock.monotonic_ns()
        told = self._reported.get(here)
        known = told is not None and (told.server, told.digest) == (visit.server, listing.digest)
        if told is not None and known and now_ns - told.at_ns < FRESH_NS:
            return False
        if len(self._reported) >= MAX_REPORTED:
            self._reported.clear()
        self._reported[here] = _Reported(visit.server, listing.digest, now_ns)
        return True


def _owner(visit: Visit) -> _Owner:
    return visit.caller.tenant, visit.caller.agent, visit.slug


async def fetch(visit: Visit, backend: Backend) -> Listing:
    """All pages. Raises UpstreamFailed."""
    whole = await pages.fetch(visit, backend, "tools/list")
    tasks = whole.facts.modern and TASKS in visit.server.grants.extensions
    tools: dict[str, Tool] = {}
    for raw in whole.entries:
        tool = define(raw, tasks=tasks)
        if tool is not None:
            tools.setdefault(tool.name, tool)
    digest = _digest("\n".join(tool.schema_hash for tool in tools.values()).encode())
    return Listing(tools=tools, digest=digest, facts=whole.facts, ttl_ns=whole.ttl_ns)


def define(raw: Any, *, tasks: bool = False) -> Tool | None:
    """None for what no agent may see: odd names, odd headers, tools that need tasks where there are
    none.
    """
    if type(raw) is not dict or type(raw.get("name")) is not str:
        return None
    execution = raw.get("execution")
    if not tasks and type(execution) is dict and execution.get("taskSupport") == "required":
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
