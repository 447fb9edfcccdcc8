"""Sessions of legacy agents: a sealed value that the agent carries (mcp.md 9), and what a process
must remember beside it: how many there are, which are idle. Which ended is endings.py's.

No session is kept here to serve a request: any process can open any seal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Struct

from services.common.clock import Clock
from services.common.ids import uuid7
from services.proxy import bridge
from services.proxy.backends.upstream import Session as UpstreamSession
from services.proxy.calls import Visit
from services.proxy.endings import LIFE_S, Endings, Owner
from services.proxy.replicas.post import Post
from services.proxy.seals import Seals, Unsealed

IDLE_S: Final = 30 * 60
#: How often other processes are told that a session is in use. They are told for less than the time
#: after which it is idle here, so that none takes its own word for another's.
TOLD_S: Final = 4 * 60
USED_S: Final = IDLE_S - 60
ENDED: Final = "ended"
LEVEL: Final = "level"
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
    #: When the others were told last.
    told_s: int = 0


class _Ended(Struct, frozen=True, array_like=True):
    """What proxies tell each other."""

    owner: Owner
    id: str
    opened_s: int


class _Level(Struct, frozen=True, array_like=True):
    """The same, and keep for each other."""

    owner: Owner
    id: str
    level: str


_decoder: Final = msgspec.msgpack.Decoder(Session)
_ended: Final = msgspec.msgpack.Decoder(_Ended)
_level: Final = msgspec.msgpack.Decoder(_Level)


class Sessions:
    def __init__(self, seals: Seals, clock: Clock, endings: Endings, post: Post) -> None:
        self._seals = seals
        self._clock = clock
        self._endings = endings
        self._post = post
        post.notes(ENDED, self._hear_ended)
        post.notes(LEVEL, self._hear_level)
        self._live: dict[Owner, dict[str, _Live]] = {}
        #: What sessions said since they were sealed.
        self._levels: dict[str, str] = {}
        #: Told the id of each session that ends, or that is not heard of here any more.
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

    async def find(self, visit: Visit, sealed: str) -> Session:
        """Raises Unsealed: of another holder, ended, too old. All read as if it never was."""
        try:
            session = _decoder.decode(self._seals.open("session", holder(visit), sealed))
        except msgspec.DecodeError:
            raise Unsealed from None
        if await self.over(visit, session):
            raise Unsealed
        now_s, owner = self._now_s(), _owner(visit)
        live = self._live.setdefault(owner, {}).get(session.id)
        if live is None:
            self._live[owner][session.id] = _Live(visit, session, now_s)
            for said in await self._post.get((*holder(visit), session.id), LEVEL):
                self._set_level(_Level(owner, session.id, said.decode()))
        else:
            live.used_s = now_s
        level = self._levels.get(session.id)
        return session if level is None else msgspec.structs.replace(session, level=level)

    async def over(self, visit: Visit, session: Session) -> bool:
        owner = _owner(visit)
        return self._now_s() - session.opened_s > LIFE_S or await self._endings.over(
            owner,
            session.id,
            session.opened_s,
            in_use=lambda: session.id in self._live.get(owner, ()),
        )

    async def set_level(self, visit: Visit, session: Session, level: str) -> None:
        """From here on, until it ends; it may have ended meanwhile."""
        said = _Level(_owner(visit), session.id, level)
        self._set_level(said)
        left_s = session.opened_s + LIFE_S - self._now_s()
        await self._post.put((*holder(visit), session.id), LEVEL, level.encode(), ttl_s=left_s)
        await self._post.tell(LEVEL, msgspec.msgpack.encode(said))

    async def _hear_level(self, body: bytes) -> None:
        """Who has not met the session yet looks for what it said when it does."""
        self._set_level(_level.decode(body))

    def _set_level(self, said: _Level) -> None:
        if said.id in self._live.get(said.owner, ()):
            self._levels[said.id] = said.level

    async def end(self, visit: Visit, session: Session) -> None:
        """When this returns, every process knows it, as far as it can be told."""
        ended = _Ended(_owner(visit), session.id, session.opened_s)
        self._end(ended)
        await self._endings.tell(session.id, session.opened_s)
        await self._post.tell(ENDED, msgspec.msgpack.encode(ended))

    async def _hear_ended(self, body: bytes) -> None:
        self._end(_ended.decode(body))

    def _end(self, ended: _Ended) -> None:
        self._endings.note(ended.owner, ended.id, ended.opened_s)
        self._live.get(ended.owner, {}).pop(ended.id, None)
        self._left(ended.id)

    def touch(self, visit: Visit, session: Session) -> None:
        """It is used without being presented."""
        live = self._live.get(_owner(visit), {}).get(session.id)
        if live is not None:
            live.used_s = self._now_s()

    async def sweep(self) -> list[tuple[Visit, Session]]:
        """Forgets what is over; answers the idle sessions, whose upstream ends should be told."""
        await self._endings.sweep()
        now_s = self._now_s()
        idle: list[tuple[Visit, Session]] = []
        for owner, sessions in list(self._live.items()):
            for live in list(sessions.values()):
                if now_s - live.used_s <= IDLE_S:
                    await self._tell_used(live, now_s)
                    continue
                used = await self._endings.used_elsewhere(live.session.id)
                if live.session.id not in sessions or now_s - live.used_s <= IDLE_S:
                    continue  # it ended, or came back, meanwhile
                if used is False:
                    idle.append((live.visit, live.session))
                    await self.end(live.visit, live.session)
                elif used:  # another process will find it idle
                    del sessions[live.session.id]
                    self._left(live.session.id)
            if not sessions and self._live.get(owner) is sessions:
                del self._live[owner]
        return idle

    async def _tell_used(self, live: _Live, now_s: int) -> None:
        due = live.used_s > live.told_s and now_s - live.told_s >= TOLD_S
        if due and await self._endings.used(live.session.id, USED_S):
            live.told_s = now_s

    def _left(self, session_id: str) -> None:
        self._levels.pop(session_id, None)
        self.when_ended(session_id)

    def _now_s(self) -> int:
        return self._clock.now_ns() // _NS


def _nobody(_session_id: str) -> None:
    pass


def _owner(visit: Visit) -> Owner:
    return visit.caller.tenant, visit.caller.agent


def holder(visit: Visit) -> tuple[str, ...]:
    """Tenant, agent, server, and of the policy set the agent's class (core.md 4)."""
    return (visit.caller.tenant, visit.caller.agent, visit.slug, visit.agent.cls)
