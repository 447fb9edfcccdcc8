"""Streams that agents keep open to hear of changes: GET of a legacy session, a modern agent's
`subscriptions/listen` (mcp.md 7).

Decides what one such stream is fed by, what of it passes, and when it ends: with its reader, its
token, its rights, its session or this process. How many there are is limited here, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final
from uuid import uuid4

from services.common.clock import Clock
from services.common.ids import AgentId, TenantId
from services.common.telemetry.counters import Counter
from services.proxy import answers, local, messages
from services.proxy.answers import Answer
from services.proxy.asking.requests import Place, Questions
from services.proxy.backends.upstream import (
    PROBE_S,
    Backend,
    Backends,
    Heard,
    Listening,
    Request,
    SessionGone,
    UpstreamFailed,
)
from services.proxy.bridge import Facts, modern_meta
from services.proxy.calls import Spawn, Stream, Visit
from services.proxy.catalog import Catalog
from services.proxy.eras import RESUMING, Route
from services.proxy.governed import Call
from services.proxy.holding import concerns
from services.proxy.local import Refused
from services.proxy.messages import Message
from services.proxy.seals import Seals, Unsealed
from services.proxy.sessions import Session, Sessions, holder
from services.proxy.snapshot import Snapshot
from services.proxy.streams import tails
from services.proxy.streams.relay import (
    CANCELLED,
    ELICITED,
    LISTS,
    MESSAGE,
    PROGRESS,
    UPDATED,
    notification,
)
from services.proxy.streams.sources import Source, Sources
from services.proxy.streams.subscriptions import (
    LISTEN,
    MAX_URI,
    UNSUBSCRIBE,
    Subscriptions,
    Uris,
    Wanted,
    asked_for,
)
from services.proxy.streams.tails import Tail, Tails
from services.proxy.streams.views import PROMPTS, TOOLS, Owner, Views, owner

PER_AGENT: Final = 16
SUBSCRIPTION_META: Final = "io.modelcontextprotocol/subscriptionId"
ACKNOWLEDGED: Final = "notifications/subscriptions/acknowledged"
MAX_EVENT_ID: Final = 1024
#: Of a legacy session, beside changes.
_OF_A_SESSION: Final = frozenset({MESSAGE, PROGRESS, ELICITED})


@dataclass(slots=True, kw_only=True, eq=False)
class Feed:
    """One open stream. `id` is that of a modern agent's request; `session` a legacy agent's."""

    visit: Visit
    stream: Stream
    session: Session | None = None
    id: int | str | None = None
    wanted: Wanted
    place: Place = field(init=False)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    #: Nothing of it is left.
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.place = Place(
            id=str(uuid4()), visit=self.visit, session=self.session, stream=self.stream
        )

    def push(self, method: str, params: Mapping[str, Any], event_id: str = "") -> None:
        if self.id is not None:
            params = {**params, "_meta": {SUBSCRIPTION_META: self.id}}
            self.stream.push(answers.notification(method, params), event_id)
        else:
            self.stream.push(notification(method, params), event_id)

    def end(self) -> None:
        self.ended.set()


class Feeds:
    """One per worker."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        backends: Backends,
        sessions: Sessions,
        subscriptions: Subscriptions,
        seals: Seals,
        questions: Questions,
        snapshot: Callable[[], Snapshot],
        dropped: Counter,
        spawn: Spawn,
        clock: Clock,
    ) -> None:
        self._backends = backends
        self._sessions = sessions
        self._subscriptions = subscriptions
        self._seals = seals
        self._questions = questions
        self._snapshot = snapshot
        self._dropped = dropped
        self._clock = clock
        self._spawn = spawn
        self._sources = Sources(spawn)
        self._tails = Tails()
        self._open: dict[tuple[TenantId, AgentId], set[Feed]] = {}
        self._closed = False
        self.views = Views(
            catalog=catalog,
            backends=backends,
            spawn=spawn,
            listening=lambda: [one.visit for one in self._all() if TOOLS in one.wanted.lists],
            tell=lambda whose: self._tell(whose, TOOLS),
        )

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def of(self, tenant: TenantId, agent: AgentId) -> int:
        """How many streams an agent has open."""
        return len(self._open.get((tenant, agent), ()))

    def knows(self, method: str, *, modern: bool) -> bool:
        return method == (LISTEN if modern else UNSUBSCRIBE)

    async def answer(
        self, visit: Visit, message: Message, route: Route, session: Session | None, stream: Stream
    ) -> Answer:
        """Raises Refused."""
        try:
            if session is None:
                return await self.listen(visit, message, route, stream)
            return await self.unsubscribe(visit, message, session)
        except UpstreamFailed as failure:
            raise Refused(local.failed(failure.reason)) from None

    # --- who listens ----------------------------------------------------------------------------

    async def get(
        self, visit: Visit, session: Session, stream: Stream, last_event_id: str
    ) -> Answer:
        """A legacy session's stream, one at a time: a second one takes the place of the first.
        Raises Refused.
        """
        event, tail = self._resumed(visit, session, last_event_id)
        if tail is not None:
            return await self._rest(visit, session, stream, *tail)
        for other in self._of_session(session.id):
            other.end()
            await other.left.wait()
        wanted = Wanted(lists=frozenset(LISTS), uris=self._subscriptions.of(session))
        feed = Feed(visit=visit, stream=stream, session=session, wanted=wanted)
        with self._place(feed):
            try:
                backend = self._backends.of(visit.server)
                facts = await backend.facts(visit)
            except UpstreamFailed as failure:
                raise Refused(local.failed(failure.reason)) from None
            await stream.open()
            await self._fed(feed, self._feed(feed, backend, facts, event))
        self._subscriptions.tidy(session)
        return answers.SILENT

    async def listen(self, visit: Visit, message: Message, route: Route, stream: Stream) -> Answer:
        """A modern agent's. What it may not hear of is not acknowledged; where a person has to
        decide, or nothing remains, the refusal is the answer. Raises Refused, UpstreamFailed.
        """
        lists, asked = asked_for(message.params)
        named = message.id if message.id is not None else ""
        uris = Uris(route, None)
        feed = Feed(visit=visit, stream=stream, id=named, wanted=Wanted(lists=lists, uris=uris))
        with self._place(feed):
            backend = self._backends.of(visit.server)
            facts = await backend.facts(visit)
            for uri in asked:
                refusal = await self._subscriptions.ask(visit, uri, uris, id=named)
                if refusal is not None and (pending(refusal) or not (lists or len(asked) > 1)):
                    return refusal
            feed.wanted = feed.wanted.offered(facts)
            await stream.open()
            feed.push(ACKNOWLEDGED, {"notifications": feed.wanted.acknowledged()})
            try:
                await self._fed(feed, self._feed(feed, backend, facts, ""))
            finally:
                self._let_go(feed, backend, facts)
        ended = {"resultType": "complete", "_meta": {SUBSCRIPTION_META: named}}
        return answers.result(named, messages.encode(ended))

    async def unsubscribe(self, visit: Visit, message: Message, session: Session) -> Answer:
        """A legacy agent's. Raises Refused, UpstreamFailed."""
        uri = message.params.get("uri")
        if type(uri) is not str or not 1 <= len(uri) <= MAX_URI:
            raise Refused(answers.bad_params("uri must be a string"))
        self._subscriptions.of(session).drop(uri)
        upstream = local.upstream_session(session)
        if upstream is not None:
            request = Request(method=UNSUBSCRIBE, params={"uri": uri}, timeout_s=PROBE_S)
            await self._backends.of(visit.server).ask(visit, request, upstream)
        return answers.result(message.id, b"{}")

    # --- what a call brought --------------------------------------------------------------------

    def changed(self, call: Call, method: str) -> None:
        """A list, says the tool server on the stream of a call. Who listens hears of it there; a
        legacy agent that does not, on the call's own.
        """
        visit = call.subject.visit
        mine = [one for one in self._all() if owner(one.visit) == owner(visit)]
        if method == TOOLS:
            self.views.list_changed(visit, None if mine or call.route.modern else call.stream)
        elif mine:
            self.views.other_changed(visit, method, lambda: self._tell(owner(visit), method))
        elif not call.route.modern:
            tell = partial(call.stream.push, notification(method, {}))
            self.views.other_changed(visit, method, tell)

    # --- what ends them -------------------------------------------------------------------------

    def policy_changed(self) -> None:
        """Another snapshot: who may not be here any more goes, and the rest look again."""
        snapshot = self._snapshot()
        for feed in self._all():
            visit = renewed(feed.visit, snapshot)
            if visit is None:
                feed.end()
            else:
                feed.visit = visit
        self.views.policy_changed()

    def revoked(self, tenant: str, agents: frozenset[str], sessions: frozenset[str]) -> None:
        for feed in self._all():
            if concerns(feed.visit.caller, tenant, agents, sessions):
                feed.end()

    def session_ended(self, session_id: str) -> None:
        self._subscriptions.forget(session_id)
        for feed in self._of_session(session_id):
            feed.end()

    def close(self) -> None:
        """The process ends."""
        self._closed = True
        for feed in self._all():
            feed.end()

    def touch(self) -> None:
        """A session with an open stream is not idle."""
        for feed in self._all():
            if feed.session is not None:
                self._sessions.touch(feed.visit, feed.session)

    @contextmanager
    def _place(self, feed: Feed) -> Iterator[None]:
        caller = feed.visit.caller
        mine = self._open.setdefault((caller.tenant, caller.agent), set())
        if len(mine) >= PER_AGENT or self._closed:
            if not mine:
                del self._open[caller.tenant, caller.agent]
            raise Refused(local.failed("capacity" if self._closed else "rate_limited"))
        mine.add(feed)
        feed.stream.when_gone = feed.end
        left_s = caller.expires_at_s - self._clock.now_ns() / 1e9
        timer = asyncio.get_running_loop().call_later(max(left_s, 0), feed.end)
        try:
            yield
        finally:
            timer.cancel()
            feed.stream.when_gone = None
            self._questions.over(feed.place.id)
            feed.left.set()
            mine.discard(feed)
            if not mine:
                self._open.pop((caller.tenant, caller.agent), None)

    # --- what feeds them ------------------------------------------------------------------------

    async def _fed(self, feed: Feed, work: Coroutine[Any, Any, None]) -> None:
        """Until it ends."""
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(work)
            await feed.ended.wait()
            feeding.cancel()

    async def _feed(self, feed: Feed, backend: Backend, facts: Facts, event: str) -> None:
        """1. what the agent missed  2. its own session at a legacy server  3. else what is shared
        with others  4. and resources, which are not.
        """
        if TOOLS in feed.wanted.lists and await self.views.missed(feed.visit):  # 1
            feed.push(TOOLS, {})
        upstream = local.upstream_session(feed.session)
        if upstream is not None:  # 2
            listening = Listening(last_event_id=event)
            source = Source(
                backend=backend, visit=feed.visit, listening=listening, session=upstream
            )
            try:
                await source.run(lambda heard: self._hear(feed, heard), lambda: self._missed(feed))
            except SessionGone:
                if feed.session is not None:
                    self._sessions.end(feed.visit, feed.session)
                feed.end()
            return
        async with AsyncExitStack() as stack:
            key, listening = shared(feed.visit, facts)
            source = Source(backend=backend, visit=feed.visit, listening=listening)
            await stack.enter_async_context(  # 3
                self._sources.joined(
                    key,
                    source,
                    lambda heard: self._hear(feed, heard),
                    lambda: self._missed(feed),
                )
            )
            await self._resources(feed, backend, facts)  # 4

    async def _resources(self, feed: Feed, backend: Backend, facts: Facts) -> None:
        """As its set of them changes. At a legacy server they come on the shared stream."""
        uris = feed.wanted.uris
        while True:
            uris.changed.clear()
            async with asyncio.TaskGroup() as group:
                listens = None
                if facts.modern and uris.all:
                    listening = listening_for({"resourceSubscriptions": sorted(uris.all)}, facts)
                    source = Source(backend=backend, visit=feed.visit, listening=listening)
                    listens = group.create_task(
                        source.run(lambda heard: self._hear(feed, heard), lambda: None)
                    )
                await uris.changed.wait()
                if listens is not None:
                    listens.cancel()

    def _hear(self, feed: Feed, heard: Heard) -> None:
        method = heard.method
        if heard.id is not None or method == CANCELLED:
            self._questions.ask(feed.place, heard)
        elif method == TOOLS:
            self.views.list_changed(feed.visit)
        elif method in feed.wanted.lists:
            everywhere = partial(self._tell, owner(feed.visit), method)
            here = partial(feed.push, method, {})
            self.views.other_changed(feed.visit, method, everywhere if method == PROMPTS else here)
        elif method == UPDATED:
            self._updated(feed, heard)
        elif feed.session is not None and method in _OF_A_SESSION:
            feed.push(method, heard.params, self._sealed(feed, heard))
        elif method != ACKNOWLEDGED:
            self._dropped.value += 1

    def _updated(self, feed: Feed, heard: Heard) -> None:
        """Only of what the agent was allowed, under the policy of today."""
        uri = heard.params.get("uri")
        if type(uri) is not str or uri not in feed.wanted.uris.all:
            self._dropped.value += 1
            return
        made = {"uri": uri}
        if type(heard.params.get("title")) is str:
            made["title"] = heard.params["title"]
        event_id = self._sealed(feed, heard)
        self._subscriptions.still(
            feed.visit, feed.wanted.uris, uri, lambda: feed.push(UPDATED, made, event_id)
        )

    def _let_go(self, feed: Feed, backend: Backend, facts: Facts) -> None:
        """A legacy server is told which resources nobody hears of any more on the agent's pooled
        session.
        """
        if facts.modern:
            return
        here = [one for one in self._all() if owner(one.visit) == owner(feed.visit)]
        heard_of = {uri for one in here if one is not feed for uri in one.wanted.uris.all}

        async def tell() -> None:
            for uri in feed.wanted.uris.all.keys() - heard_of:
                request = Request(method=UNSUBSCRIBE, params={"uri": uri}, timeout_s=PROBE_S)
                with contextlib.suppress(UpstreamFailed):
                    await backend.ask(feed.visit, request)

        if feed.wanted.uris.all:
            self._spawn("unsubscribe", tell)

    def _missed(self, feed: Feed) -> None:
        """A stream to the server broke off: lists may have changed meanwhile."""
        if TOOLS in feed.wanted.lists:
            self.views.list_changed(feed.visit)

    def _tell(self, whose: Owner, method: str) -> None:
        for feed in self._open.get(whose[:2], ()):
            if feed.visit.slug == whose[2] and method in feed.wanted.lists:
                feed.push(method, {})

    def _all(self) -> list[Feed]:
        return [feed for feeds in self._open.values() for feed in feeds]

    def _of_session(self, session_id: str) -> list[Feed]:
        return [feed for feed in self._all() if feed.session and feed.session.id == session_id]

    # --- where a legacy stream broke off --------------------------------------------------------

    def paused(self, call: Call, retry_ms: int) -> None:
        """The server ended a call's stream early: the agent's ends, too, if it knows how to come
        back.
        """
        session = call.session
        if session is None or session.version not in RESUMING:
            return
        tail = self._tails.begin()
        event_id = self._seal(call.subject.visit, session, tails.place(tail, 0))
        call.stream.pause(tail, b"id: %s\nretry: %d\ndata: \n\n" % (event_id.encode(), retry_ms))

    async def _rest(
        self, visit: Visit, session: Session, stream: Stream, tail: Tail, number: int
    ) -> Answer:
        """What was said since, and the answer."""
        nothing = Wanted(lists=frozenset(), uris=self._subscriptions.of(session))
        feed = Feed(visit=visit, stream=stream, session=session, wanted=nothing)

        async def deliver() -> None:
            said = number
            while True:
                tail.news.clear()
                for at, message in tail.after(said):
                    stream.push(message, self._seal(visit, session, tails.place(tail, at)))
                    said = at
                if tail.ended:
                    feed.end()
                    return
                await tail.news.wait()

        with self._place(feed):
            await stream.open()
            await self._fed(feed, deliver())
        return answers.SILENT

    def _sealed(self, feed: Feed, heard: Heard) -> str:
        """The server's event id in ours; a long one cannot be resumed at."""
        if feed.session is None or not 0 < len(heard.event_id) <= MAX_EVENT_ID:
            return ""
        return self._seal(feed.visit, feed.session, f"upstream:{heard.event_id}")

    def _seal(self, visit: Visit, session: Session, place: str) -> str:
        return self._seals.seal("event", (*holder(visit), session.id), place.encode())

    def _resumed(
        self, visit: Visit, session: Session, last_event_id: str
    ) -> tuple[str, tuple[Tail, int] | None]:
        """The server's event id, or a place in what is kept here."""
        if not last_event_id:
            return "", None
        try:
            whose = (*holder(visit), session.id)
            place = self._seals.open("event", whose, last_event_id).decode()
            return place.partition(":")[2], self._tails.find(place)
        except (Unsealed, ValueError):
            raise Refused(answers.bad_request("unknown Last-Event-ID")) from None


def pending(answer: Answer) -> bool:
    """Whether a refusal is one that a person may still lift."""
    error = messages.decode(answer.body).get("error") if answer.body else None
    return type(error) is dict and error.get("code") == answers.CODES["approval_pending"]


def renewed(visit: Visit, snapshot: Snapshot) -> Visit | None:
    """The same visit by another snapshot; None where it would be turned away."""
    caller = visit.caller
    tenant = snapshot.tenants.get(caller.tenant)
    agent = tenant.agents.get(caller.agent) if tenant else None
    server = tenant.servers.get(visit.slug) if tenant else None
    if tenant is None or agent is None or server is None or visit.slug not in agent.servers:
        return None
    if caller.session in tenant.revoked_sessions:
        return None
    made = replace(visit, tenant=tenant, agent=agent, server=server, revision=snapshot.revision)
    return made if made.let_in else None


def shared(visit: Visit, facts: Facts) -> tuple[tuple[str, ...], Listening]:
    """What several streams hear alike, and under which name: of a modern HTTP server whatever it
    lists; else the agent's own child, or its pooled session.
    """
    place = (visit.caller.tenant, visit.slug)
    if not facts.modern:
        return (*place, visit.caller.agent, "session"), Listening()
    wanted = dict.fromkeys(LISTS.values(), True)
    listening = listening_for(wanted, facts)
    of_its_own = visit.server.transport == "stdio" or visit.server.credential.kind == (
        "token_exchange"
    )
    return (*place, visit.caller.agent if of_its_own else "", "lists"), listening


def listening_for(notifications: dict[str, Any], facts: Facts) -> Listening:
    params = {"notifications": notifications, "_meta": modern_meta(facts.version)}
    return Listening(params=params)
