"""What an agent's open stream is fed by: its own session at a legacy tool server, what it shares
with others at a modern one, its resources (mcp.md 7).

Decides what of all that passes. Whether the stream may be open at all is feeds.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final
from uuid import uuid4

from services.common.telemetry.counters import Counter
from services.proxy import answers, local
from services.proxy.asking.requests import Place, Questions
from services.proxy.backends.upstream import (
    PROBE_S,
    Backend,
    Heard,
    Listening,
    Request,
    SessionGone,
    UpstreamFailed,
)
from services.proxy.bridge import TASKS, Facts, modern_meta
from services.proxy.calls import Spawn, Stream, Visit
from services.proxy.sessions import Session, Sessions
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
from services.proxy.streams.subscriptions import UNSUBSCRIBE, Subscriptions, Wanted
from services.proxy.streams.tails import Resuming
from services.proxy.streams.task_news import CHANGED, MEMBER, TaskNews
from services.proxy.streams.views import PROMPTS, TOOLS, Owner, Views, owner

SUBSCRIPTION_META: Final = "io.modelcontextprotocol/subscriptionId"
ACKNOWLEDGED: Final = "notifications/subscriptions/acknowledged"
NOTHING: Final[Mapping[str, Any]] = {}
#: What an agent that hears of tasks has declared.
ABLE: Final[Mapping[str, Any]] = {"extensions": {TASKS: {}}}
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
    #: Where the agent is asked what a server asks beside any call: only where it asks nobody else.
    place: Place = field(init=False)
    #: What feeds it is this agent's alone.
    own: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    #: Nothing of it is left.
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.place = Place(id=uuid4().hex, visit=self.visit, session=None, stream=self.stream)

    def push(self, method: str, params: Mapping[str, Any], event_id: str = "") -> None:
        if self.id is not None:
            params = {**params, "_meta": {SUBSCRIPTION_META: self.id}}
            self.stream.push(answers.notification(method, params), event_id)
        else:
            self.stream.push(notification(method, params), event_id)

    def owned(self) -> None:
        self.own = True
        self.place = replace(self.place, session=self.session)

    def end(self) -> None:
        self.ended.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeding:
    """One per worker. `tell` reaches all streams of an agent at a server."""

    sessions: Sessions
    subscriptions: Subscriptions
    resuming: Resuming
    questions: Questions
    tasks: TaskNews
    sources: Sources
    views: Views
    tell: Callable[[Owner, str], None]
    dropped: Counter
    spawn: Spawn

    async def feed(self, feed: Feed, backend: Backend, facts: Facts, event: str) -> None:
        """1. what the agent missed  2. its own session at a legacy server  3. else what is shared
        with others  4. and resources and tasks, which are not.
        """
        if TOOLS in feed.wanted.lists and await self.views.missed(feed.visit):  # 1
            feed.push(TOOLS, {})
        upstream = local.upstream_session(feed.session)
        if upstream is not None:  # 2
            if feed.visit.server.share == "agent":
                feed.owned()
            listening = Listening(last_event_id=event)
            source = Source(
                backend=backend, visit=feed.visit, listening=listening, session=upstream
            )
            try:
                await source.run(partial(self._hear, feed), partial(self._missed, feed))
            except SessionGone:
                if feed.session is not None:
                    await self.sessions.end(feed.visit, feed.session)
                feed.end()
            return
        key, listening = shared(feed.visit, facts)
        source = Source(backend=backend, visit=feed.visit, listening=listening)
        hear, missed = partial(self._hear, feed), partial(self._missed, feed)
        async with self.sources.joined(key, source, hear, missed):  # 3
            await self._its_own(feed, backend, facts)  # 4

    async def _its_own(self, feed: Feed, backend: Backend, facts: Facts) -> None:
        """Resources and tasks, as its set of them changes. At a legacy server resources come on the
        shared stream.
        """
        uris, tasks = feed.wanted.uris, feed.wanted.tasks
        while True:
            uris.changed.clear()
            async with asyncio.TaskGroup() as group:
                listens = None
                if facts.modern and (uris.all or tasks.all):
                    named = {"resourceSubscriptions": sorted(uris.all), MEMBER: sorted(tasks.all)}
                    asked = {member: ids for member, ids in named.items() if ids}
                    listening = listening_for(asked, facts, told=ABLE if tasks.all else {})
                    source = Source(backend=backend, visit=feed.visit, listening=listening)
                    listens = group.create_task(source.run(partial(self._hear, feed), lambda: None))
                await uris.changed.wait()
                if listens is not None:
                    listens.cancel()

    def _hear(self, feed: Feed, heard: Heard) -> None:
        method = heard.method
        if heard.id is not None or method == CANCELLED:
            self.questions.ask(feed.place, heard)
        elif method == TOOLS:
            self.views.list_changed(feed.visit)
        elif method in feed.wanted.lists:
            everywhere = partial(self.tell, owner(feed.visit), method)
            here = partial(feed.push, method, {})
            self.views.other_changed(feed.visit, method, everywhere if method == PROMPTS else here)
        elif method == UPDATED:
            self._updated(feed, heard)
        elif method == CHANGED:
            tell, tasks = partial(feed.push, CHANGED), feed.wanted.tasks
            if not self.tasks.heard(tasks, lambda: feed.visit, heard.params, tell):
                self.dropped.value += 1
        elif feed.own and method in _OF_A_SESSION:
            feed.push(method, heard.params, self._sealed(feed, heard))
        elif method == ACKNOWLEDGED:  # what changed before that, nobody said
            self._missed(feed)
        else:
            self.dropped.value += 1

    def _updated(self, feed: Feed, heard: Heard) -> None:
        """Only of what the agent was allowed, under the policy of today."""
        uri = heard.params.get("uri")
        if type(uri) is not str or uri not in feed.wanted.uris.all:
            self.dropped.value += 1
            return
        made = {"uri": uri}
        if type(heard.params.get("title")) is str:
            made["title"] = heard.params["title"]
        event_id = self._sealed(feed, heard)
        self.subscriptions.still(
            feed.visit, feed.wanted.uris, uri, lambda: feed.push(UPDATED, made, event_id)
        )

    def let_go(self, feed: Feed, backend: Backend, facts: Facts, others: Sequence[Feed]) -> None:
        """A legacy server is told which resources nobody hears of any more on the agent's pooled
        session.
        """
        if facts.modern:
            return
        heard_of = {uri for one in others if one is not feed for uri in one.wanted.uris.all}

        async def tell() -> None:
            for uri in feed.wanted.uris.all.keys() - heard_of:
                request = Request(method=UNSUBSCRIBE, params={"uri": uri}, timeout_s=PROBE_S)
                with contextlib.suppress(UpstreamFailed):
                    await backend.ask(feed.visit, request)

        if feed.wanted.uris.all:
            self.spawn("unsubscribe", tell)

    def _missed(self, feed: Feed) -> None:
        """A stream to the server broke off: lists may have changed meanwhile."""
        if TOOLS in feed.wanted.lists:
            self.views.list_changed(feed.visit)

    def _sealed(self, feed: Feed, heard: Heard) -> str:
        if feed.session is None or not feed.own:
            return ""
        return self.resuming.event_id(feed.visit, feed.session, heard)


def shared(visit: Visit, facts: Facts) -> tuple[tuple[str, ...], Listening]:
    """What several streams hear alike, and under which name: of a modern HTTP server whatever it
    lists; else the agent's own child, or its pooled session.
    """
    place = (visit.caller.tenant, visit.slug)
    if not facts.modern:
        return (*place, visit.caller.agent, "session"), Listening()
    wanted = dict.fromkeys(LISTS.values(), True)
    listening = listening_for(wanted, facts)
    server = visit.server
    child = server.transport == "stdio" and server.share == "agent"
    of_its_own = child or server.credential.kind == "token_exchange"
    return (*place, visit.caller.agent if of_its_own else "", "lists"), listening


def listening_for(
    notifications: dict[str, Any], facts: Facts, *, told: Mapping[str, Any] = NOTHING
) -> Listening:
    """`told`: of the agent's capabilities, what it takes."""
    params = {"notifications": notifications, "_meta": modern_meta(facts.version, told=told)}
    return Listening(params=params)
