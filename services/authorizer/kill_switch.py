"""Step 1 of a decision: what stands still, whoever asks and whatever policy says (core.md 10).

Three sources are OR-ed: signals of the link, the active bundle, and the local file of kill_file.py.
Pure but for the callbacks; recording and telling the proxies is the work of those who listen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, assert_never

from services.authorizer.plane_state import PlaneState, Tenant
from services.common.ids import is_uuid

Scope = Literal["agent", "class", "server", "tenant", "fleet"]
Source = Literal["link", "bundle", "file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One kill switch that is on; `switch` makes them. Without a tenant it holds in every one.

    `subject` is an agent's id, a class's name or a server's slug. A tenant's own has its id, or its
    slug, in `tenant`; the fleet's has neither.
    """

    scope: Scope
    tenant: str = ""
    subject: str = ""


FLEET: Final = Switch(scope="fleet")


def switch(scope: str, tenant: str, subject: str) -> Switch:
    """From words that came from elsewhere: what cannot be understood stops more, never less. By its
    slug a tenant is only known as a whole: what else is named in it stops in every one.
    """
    match scope:
        case "agent" | "class" | "server" if subject:
            within = tenant if is_uuid(tenant) else ""
            return Switch(scope=scope, tenant=within, subject=subject)
        case "tenant" if tenant or subject:
            return Switch(scope="tenant", tenant=tenant or subject)
        case _:
            return Switch(scope="tenant", tenant=tenant) if tenant else FLEET


@dataclass(frozen=True, slots=True)
class Stops:
    """All that is on, ready to be asked. Where nothing is, that costs one attribute: `any`."""

    switches: frozenset[Switch] = frozenset()
    any: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "any", bool(self.switches))  # frozen, but made here

    def stopped(self, tenant_id: str, tenant: Tenant | None, agent_id: str, server: str) -> bool:
        """Whether this call falls under any of them."""
        if not self.any:
            return False
        agent = tenant.agents.get(agent_id) if tenant else None
        return (
            self.tenant(tenant_id, tenant.slug if tenant else "")
            or self.agent(tenant_id, agent_id, agent.cls if agent else "")
            or self.server(tenant_id, server)
        )

    def tenant(self, tenant_id: str, slug: str) -> bool:
        """Whether the whole tenant stands still, by itself or with the fleet."""
        return self.any and (
            FLEET in self.switches
            or self._on("tenant", tenant_id, "")
            or bool(slug and self._on("tenant", slug, ""))
        )

    def agent(self, tenant_id: str, agent_id: str, cls: str) -> bool:
        return self.any and (
            self._on("agent", tenant_id, agent_id) or self._on("class", tenant_id, cls)
        )

    def server(self, tenant_id: str, server: str) -> bool:
        return self.any and self._on("server", tenant_id, server)

    def _on(self, scope: Scope, tenant_id: str, subject: str) -> bool:
        here = Switch(scope=scope, tenant=tenant_id, subject=subject)
        return here in self.switches or Switch(scope=scope, subject=subject) in self.switches


NOTHING: Final = Stops()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A switch went on or off; `source` is where it was seen first, or last."""

    switch: Switch
    on: bool
    source: Source


Listener = Callable[[list[Change]], None]


@dataclass(slots=True, kw_only=True)
class KillSwitch:
    """`stops` is replaced, never changed: a decision under way keeps the one it began with."""

    stops: Stops = NOTHING
    _sources: dict[Source, frozenset[Switch]] = field(default_factory=dict)
    _listeners: list[Listener] = field(default_factory=list)

    def listen(self, listener: Listener) -> None:
        """Calls it with what changed, each time that something did."""
        self._listeners.append(listener)

    def set(self, source: Source, switches: Iterable[Switch]) -> bool:
        """What this source says now. True where that changed what is on."""
        return self.set_all({source: switches})

    def set_all(self, said: dict[Source, Iterable[Switch]]) -> bool:
        """Several sources at one moment: a switch that moves between them never goes off."""
        before = dict(self._sources)
        self._sources |= {source: frozenset(switches) for source, switches in said.items()}
        now: frozenset[Switch] = frozenset().union(*self._sources.values())
        if now == self.stops.switches:
            return False
        changes = [
            *_changes(now - self.stops.switches, self._sources, on=True),
            *_changes(self.stops.switches - now, before, on=False),
        ]
        self.stops = Stops(now)
        for listener in self._listeners:
            listener(changes)
        return True


def of_bundle(state: PlaneState) -> Iterable[Switch]:
    """A fleet's stop inside a tenant's part would let one tenant stop all: it stops that tenant."""
    for stop in state.stops:
        yield switch(stop.scope, "", stop.subject)
    for tenant_id, tenant in state.tenants.items():
        for stop in tenant.stops:
            yield switch(stop.scope, tenant_id, stop.subject)


def reach(one: Switch, state: PlaneState | None) -> list[tuple[str, tuple[str, ...]]]:
    """Whose held calls and streams a switch concerns: (tenant, agents) as in `Revoked`, where no
    agents means all of the tenant and no tenant means everybody.
    """
    tenants = state.tenants if state else {}
    match one.scope:
        case "agent":
            return [(one.tenant or _tenant_of(one.subject, tenants), (one.subject,))]
        case "class":
            named = {one.tenant: tenants[one.tenant]} if one.tenant in tenants else tenants
            found = [
                (tenant_id, tuple(id_ for id_, a in tenant.agents.items() if a.cls == one.subject))
                for tenant_id, tenant in named.items()
            ]
            return [(tenant_id, agents) for tenant_id, agents in found if agents]
        case "server":
            return [(one.tenant, ())]
        case "tenant":
            ids = [id_ for id_, tenant in tenants.items() if one.tenant in {id_, tenant.slug}]
            return [(tenant_id, ()) for tenant_id in ids] or [(one.tenant, ())]
        case "fleet":
            return [("", ())]
        case unknown:
            assert_never(unknown)


def _tenant_of(agent_id: str, tenants: dict[str, Tenant]) -> str:
    return next((id_ for id_, tenant in tenants.items() if agent_id in tenant.agents), "")


def _changes(
    switches: Iterable[Switch], sources: dict[Source, frozenset[Switch]], *, on: bool
) -> Iterable[Change]:
    for one in sorted(switches, key=lambda it: (it.scope, it.tenant, it.subject)):
        source = next(name for name, said in sources.items() if one in said)
        yield Change(switch=one, on=on, source=source)
