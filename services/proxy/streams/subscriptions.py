"""Resources that agents hear of when they change (mcp.md 4, 7).

Each was decided on like a read before it is in here, and is decided on again when policy has
changed since, or when it was another process that decided. Which streams carry the news is
feeds.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Self
from uuid import uuid4

import msgspec
from msgspec import Struct

from services.proxy import answers, messages
from services.proxy.answers import Answer, bad_params
from services.proxy.asking.nobody import Nobody
from services.proxy.bridge import Facts
from services.proxy.calls import Spawn, Visit
from services.proxy.endings import LIFE_S
from services.proxy.eras import Route
from services.proxy.governed import SUBSCRIBE, Call, Incoming
from services.proxy.local import Refused, failed
from services.proxy.messages import Kind, Message
from services.proxy.replicas.post import Post
from services.proxy.sessions import Session, holder
from services.proxy.streams.relay import LISTS
from services.proxy.streams.task_news import MEMBER, Watched

UNSUBSCRIBE: Final = "resources/unsubscribe"
LISTEN: Final = "subscriptions/listen"
MOST: Final = 64
MAX_URI: Final = 8 * 1024
#: What proxies keep for each other, and tell each other of.
URIS: Final = "uris"

Govern = Callable[[Incoming], Awaitable[Answer]]


class _Told(Struct, frozen=True, array_like=True):
    """What a legacy session hears of from now on, or no more."""

    session: str
    uri: str
    wanted: bool


_told: Final = msgspec.msgpack.Decoder(_Told)


class Uris:
    """What one stream, or one session, hears of: each with the revision that it was allowed at."""

    def __init__(self, route: Route, session: Session | None) -> None:
        self.route = route
        self.session = session
        self.all: dict[str, str] = {}
        self.changed = asyncio.Event()
        #: Streams of the legacy session that are open here, or about to be.
        self.heard = 0
        #: Being decided on again.
        self.asking: set[str] = set()

    def add(self, uri: str, revision: str) -> None:
        new = uri not in self.all
        self.all[uri] = revision
        if new:
            self.changed.set()

    def reconsider(self) -> None:
        """Each is decided on again when it changes."""
        self.all = dict.fromkeys(self.all, "")

    def drop(self, uri: str) -> None:
        if self.all.pop(uri, None) is not None:
            self.changed.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a stream was opened for: methods of `LISTS`, resources, and tasks."""

    lists: frozenset[str]
    uris: Uris
    tasks: Watched

    def offered(self, facts: Facts) -> Self:
        """Without lists that the server does not have."""
        has = facts.capabilities
        kept = {one for one in self.lists if type(has.get(one.split("/")[1])) is dict}
        return replace(self, lists=frozenset(kept))

    def acknowledged(self) -> dict[str, Any]:
        made: dict[str, Any] = {LISTS[one]: True for one in sorted(self.lists)}
        if self.uris.all:
            made["resourceSubscriptions"] = list(self.uris.all)
        if self.tasks.all:
            made[MEMBER] = self.tasks.sealed
        return made


def wanted(lists: frozenset[str], uris: Uris) -> Wanted:
    """No tasks yet."""
    return Wanted(lists=lists, uris=uris, tasks=Watched(uris.route, uris.changed))


class Subscriptions:
    """One per process: those of legacy sessions, and the question whether one may be. A session's
    stream may be in another process than the one that it subscribes in.
    """

    def __init__(self, govern: Govern, spawn: Spawn, post: Post) -> None:
        self._govern = govern
        self._spawn = spawn
        self._post = post
        self._sessions: dict[str, Uris] = {}
        post.notes(URIS, self._hear)

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, session: Session) -> Uris:
        found = self._sessions.get(session.id)
        if found is None:
            route = Route("legacy", session.version, in_session=True)
            found = self._sessions[session.id] = Uris(route, session)
        return found

    def admit(self, session: Session, params: Mapping[str, Any]) -> None:
        """Room for one more? Raises Refused."""
        known = self._sessions.get(session.id)
        if known is not None and len(known.all) >= MOST and params.get("uri") not in known.all:
            raise Refused(failed("rate_limited"))

    async def subscribed(self, call: Call) -> None:
        """A legacy agent's own request, allowed."""
        session, visit, uri = call.session, call.subject.visit, call.asked.name
        if session is None:
            return
        self.of(session).add(uri, visit.revision)
        until_s = session.opened_s + LIFE_S
        await self._post.put(
            _owner(visit, session),
            URIS,
            uri.encode(),
            part=uri,
            ttl_s=until_s - self._post.now_s(),
        )
        await self._tell(session, uri, wanted=True)

    async def unsubscribed(self, visit: Visit, session: Session, uri: str) -> None:
        known = self._sessions.get(session.id)
        if known is not None:
            known.drop(uri)
        await self._post.drop(_owner(visit, session), URIS, part=uri)
        await self._tell(session, uri, wanted=False)

    @asynccontextmanager
    async def heard(self, visit: Visit, session: Session) -> AsyncIterator[Uris]:
        """For a stream: also what was, and will be, subscribed to in other processes."""
        uris = self.of(session)
        uris.heard += 1
        try:
            for found in await self._post.get(_owner(visit, session), URIS):
                if len(uris.all) < MOST and found.decode() not in uris.all:
                    uris.add(found.decode(), "")
            yield uris
        finally:
            uris.heard -= 1
            if not (uris.all or uris.heard):  # nothing is kept of who hears of nothing
                self.forget(session.id)

    async def _tell(self, session: Session, uri: str, *, wanted: bool) -> None:
        await self._post.tell(URIS, msgspec.msgpack.encode(_Told(session.id, uri, wanted)))

    async def _hear(self, body: bytes) -> None:
        """What is new matters where the session's stream is."""
        told = _told.decode(body)
        uris = self._sessions.get(told.session)
        if uris is None:
            return
        if not told.wanted:
            uris.drop(told.uri)
        elif uris.heard and len(uris.all) < MOST and told.uri not in uris.all:
            uris.add(told.uri, "")

    def forget(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)

    def reconsider(self) -> None:
        for uris in self._sessions.values():
            uris.reconsider()

    async def ask(self, visit: Visit, uri: str, uris: Uris, *, id: int | str) -> Answer | None:
        """A decision of its own, recorded like any other. None: the agent may hear of it."""
        message = Message(Kind.REQUEST, id, SUBSCRIBE, {"uri": uri}, has_params=True)
        incoming = Incoming(
            visit=visit,
            message=message,
            route=uris.route,
            session=uris.session,
            headers={},
            stream=Nobody(),
        )
        answer = await self._govern(incoming)
        said = messages.decode(answer.body) if answer.body else {}
        if "result" not in said:
            return answer
        uris.add(uri, visit.revision)
        return None

    def still(self, visit: Visit, uris: Uris, uri: str, then: Callable[[], None]) -> None:
        """Runs `then` if the agent may hear of it under the policy of now."""
        if uris.all.get(uri) == visit.revision:
            then()
            return
        if uri in uris.asking:
            return
        uris.asking.add(uri)

        async def ask() -> None:
            try:
                refusal = await self.ask(visit, uri, uris, id=uuid4().hex)
            except Refused:
                refusal = answers.ACCEPTED
            finally:
                uris.asking.discard(uri)
            if refusal is None:
                then()
                return
            uris.drop(uri)
            if uris.session is not None:
                await self.unsubscribed(visit, uris.session, uri)

        self._spawn("resource", ask)


def _owner(visit: Visit, session: Session) -> tuple[str, ...]:
    return (*holder(visit), session.id)


def asked_for(params: Mapping[str, Any]) -> tuple[frozenset[str], list[str]]:
    """The lists and the resources of a `subscriptions/listen`. Raises Refused."""
    wanted = params.get("notifications")
    if type(wanted) is not dict:
        raise Refused(bad_params("notifications must be an object"))
    for member in LISTS.values():
        if type(wanted.get(member, False)) is not bool and wanted[member] is not None:
            raise Refused(bad_params(f"{member} must be a boolean"))
    uris = wanted.get("resourceSubscriptions") or []
    if type(uris) is not list or not all(
        type(one) is str and 1 <= len(one) <= MAX_URI for one in uris
    ):
        raise Refused(bad_params("resourceSubscriptions must be a list of strings"))
    if len(uris) > MOST:
        raise Refused(bad_params("too many resourceSubscriptions"))
    lists = {method for method, member in LISTS.items() if wanted.get(member) is True}
    return frozenset(lists), list(dict.fromkeys(uris))
