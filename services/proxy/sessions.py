"""Sessions of legacy agents: a sealed value that the agent carries (mcp.md 9), and what a process
must remember beside it: how many there are, which ended.

No session is kept here to serve a request: any worker can open any seal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Struct

from services.common.clock import Clock
from services.common.ids import AgentId, TenantId, uuid7
from services.proxy import bridge
from services.proxy.backends.upstream import Session as UpstreamSession
from services.proxy.calls import Visit
from services.proxy.seals import Seals, Unsealed

LIFE_S: Final = 12 * 3600
IDLE_S: Final = 30 * 60
PER_AGENT: Final = 200
NONE_UPSTREAM: Final = UpstreamSession("", "")
_NS: Final = 1_000_000_000


class Session(Struct, frozen=True, array_like=True):
    """`upstream` is the tool server's own session id, empty where there is none of its own."""

    id: str
    version: str
    opened_s: int
    upstream: str = ""
    upstream_version: str = ""
    upstream_url: str = ""
    #: What the agent declared when it opened it, as far as it matters here.
    capabilities: dict[str, Any] = {}
    #: How loud log messages must be for the agent; empty where it did not say, and in every seal.
    level: str = ""

    @property
    def elicits(self) -> bool:
        """The agent can show a URL to its user."""
        return bridge.shows_urls(self.capabilities)


class TooMany(Exception):
    """The agent has its 200 sessions."""


@dataclass(slots=True)
class _Live:
    visit: Visit
    session: Session
    used_s: int


_decoder: Final = msgspec.msgpack.Decoder(Session)


class Sessions:
    def __init__(self, seals: Seals, clock: Clock) -> None:
        self._seals = seals
        self._clock = clock
        self._live: dict[tuple[TenantId, AgentId], dict[str, _Live]] = {}
        self._ended: dict[str, int] = {}
        #: What sessions said since they were sealed; of this worker.
        self._levels: dict[str, str] = {}
        #: Told the id of each session that ends.
        self.when_ended: Callable[[str], None] = _nobody

    def admit(self, visit: Visit) -> None:
        """Room for one more? Raises TooMany."""
        if len(self._live.get(_owner(visit), ())) >= PER_AGENT:
            raise TooMany

    def open(
        self,
        visit: Visit,
        version: str,
        upstream: UpstreamSession | None = None,
        capabilities: dict[str, Any] | None = None,
    ) -> str:
        """The value for Mcp-Session-Id."""
        now_s = self._now_s()
        made = uuid7(self._clock.now_ns())
        theirs = upstream or NONE_UPSTREAM
        session = Session(
            made, version, now_s, theirs.id, theirs.version, theirs.url, capabilities or {}
        )
        self._live.setdefault(_owner(visit), {})[session.id] = _Live(visit, session, now_s)
        return self._seals.seal("session", holder(visit), msgspec.msgpack.encode(session))

    def find(self, visit: Visit, sealed: str) -> Session:
        """Raises Unsealed: of another holder, ended, too old. All read as if it never was."""
        try:
            session = _decoder.decode(self._seals.open("session", holder(visit), sealed))
        except msgspec.DecodeError:
            raise Unsealed from None
        now_s = self._now_s()
        if session.id in self._ended or now_s - session.opened_s > LIFE_S:
            raise Unsealed
        live = self._live.setdefault(_owner(visit), {}).get(session.id)
        if live is None:
            self._live[_owner(visit)][session.id] = _Live(visit, session, now_s)
        else:
            live.used_s = now_s
        level = self._levels.get(session.id)
        return session if level is None else msgspec.structs.replace(session, level=level)

    def set_level(self, session: Session, level: str) -> None:
        """From here on, until it ends; it may have ended meanwhile."""
        if session.id not in self._ended:
            self._levels[session.id] = level

    def end(self, visit: Visit, session: Session) -> None:
        self._ended[session.id] = session.opened_s + LIFE_S
        self._live.get(_owner(visit), {}).pop(session.id, None)
        self._levels.pop(session.id, None)
        self.when_ended(session.id)

    def touch(self, visit: Visit, session: Session) -> None:
        """It is used without being presented."""
        live = self._live.get(_owner(visit), {}).get(session.id)
        if live is not None:
            live.used_s = self._now_s()

    def sweep(self) -> list[tuple[Visit, Session]]:
        """Forgets what is over; answers the idle sessions, whose upstream ends should be told."""
        now_s = self._now_s()
        self._ended = {one: until for one, until in self._ended.items() if until > now_s}
        idle: list[tuple[Visit, Session]] = []
        for owner, sessions in list(self._live.items()):
            for live in [one for one in sessions.values() if now_s - one.used_s > IDLE_S]:
                idle.append((live.visit, live.session))
                self._ended[live.session.id] = live.session.opened_s + LIFE_S
                del sessions[live.session.id]
                self._levels.pop(live.session.id, None)
                self.when_ended(live.session.id)
            if not sessions:
                del self._live[owner]
        return idle

    def _now_s(self) -> int:
        return self._clock.now_ns() // _NS


def _nobody(_session_id: str) -> None:
    pass


def _owner(visit: Visit) -> tuple[TenantId, AgentId]:
    return visit.caller.tenant, visit.caller.agent


def holder(visit: Visit) -> tuple[str, ...]:
    """Tenant, agent, server, and of the policy set the agent's class (core.md 4)."""
    return (visit.caller.tenant, visit.caller.agent, visit.slug, visit.agent.cls)
