"""Streams that agents keep open to hear of changes: GET of a legacy session, a modern agent's
`subscriptions/listen` (mcp.md 7).

Decides who may have one, how many, and when it ends: with its reader, its token, its rights, its
session or this process. What it is fed by is feeding.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

from services.common.clock import Clock
from services.common.ids import AgentId, TenantId
from services.common.telemetry.counters import Counter
from services.proxy import answers, local, messages
from services.proxy.answers import Answer
from services.proxy.asking.requests import Questions
from services.proxy.asking.their_tasks import not_found
from services.proxy.backends.upstream import PROBE_S, Backends, Request, UpstreamFailed
from services.proxy.calls import Spawn, Stream, Visit
from services.proxy.catalog import Catalog
from services.proxy.eras import Route
from services.proxy.governed import Call
from services.proxy.holding import concerns
from services.proxy.local import Refused
from services.proxy.messages import Message
from services.proxy.replicas.post import Post
from services.proxy.sessions import Session, Sessions
from services.proxy.snapshot import Snapshot
from services.proxy.streams.feeding import ACKNOWLEDGED, SUBSCRIPTION_META, Feed, Feeding
from services.proxy.streams.relay import LISTS, notification
from services.proxy.streams.sources import Sources
from services.proxy.streams.subscriptions import (
    LISTEN,
    MAX_URI,
    UNSUBSCRIBE,
    Subscriptions,
    Uris,
    asked_for,
    wanted,
)
from services.proxy.streams.tails import Rest, Resuming
from services.proxy.streams.task_news import TaskNews
from services.proxy.streams.views import TOOLS, Owner, Views, owner

PER_AGENT: Final = 16
#: What proxies tell each other.
LISTENS: Final = "listens"


class Feeds:
    """One per worker."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        backends: Backends,
        sessions: Sessions,
        subscriptions: Subscriptions,
        resuming: Resuming,
        questions: Questions,
        post: Post,
        tasks: TaskNews,
        snapshot: Callable[[], Snapshot],
        dropped: Counter,
        spawn: Spawn,
        clock: Clock,
    ) -> None:
        self._post = post
        post.notes(LISTENS, self._hear_listens)
        self._backends = backends
        self._sessions = sessions
        self._subscriptions = subscriptions
        self._resuming = resuming
        self._questions = questions
        self._tasks = tasks
        self._snapshot = snapshot
        self._clock = clock
        self._open: dict[tuple[TenantId, AgentId], set[Feed]] = {}
        self._closed = False
        self.views = Views(
            catalog=catalog,
            backends=backends,
            spawn=spawn,
            listening=lambda: [one.visit for one in self._all() if TOOLS in one.wanted.lists],
            tell=lambda whose: self._tell(whose, TOOLS),
        )
        self._feeding = Feeding(
            sessions=sessions,
            subscriptions=subscriptions,
            resuming=resuming,
            questions=questions,
            tasks=tasks,
            sources=Sources(spawn),
            views=self.views,
            tell=self._tell,
            dropped=dropped,
            spawn=spawn,
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
        """A legacy session's stream, one at a time: the newer takes the place of the older, however
        many come at once, and wherever that one is. Raises Refused.
        """
        event, tail = await self._resuming.found(visit, session, last_event_id)
        if tail is not None:
            return await self._rest(visit, session, stream, tail)
        await self._post.tell(LISTENS, session.id.encode())
        async with self._subscriptions.heard(visit, session) as uris:
            while older := self._heard_by(session):  # while one waits, another may have come
                for other in older:
                    other.end()
                    await other.left.wait()
            everything = wanted(frozenset(LISTS), uris)
            feed = Feed(visit=visit, stream=stream, session=session, wanted=everything)
            with self._place(feed):
                try:
                    backend = self._backends.of(visit.server)
                    facts = await backend.facts(visit)
                except UpstreamFailed as failure:
                    raise Refused(local.failed(failure.reason)) from None
                await stream.open()
                await self._fed(feed, self._feeding.feed(feed, backend, facts, event))
        return answers.SILENT

    async def _hear_listens(self, body: bytes) -> None:
        """A session's stream is open in another process."""
        for feed in self._of_session(body.decode()):
            if feed.wanted.lists:
                feed.end()

    async def _rest(self, visit: Visit, session: Session, stream: Stream, tail: Rest) -> Answer:
        """Of a call whose stream ended early: what was said since, and the answer."""
        nothing = wanted(frozenset(), Uris(Route("legacy", session.version), None))
        feed = Feed(visit=visit, stream=stream, session=session, wanted=nothing)

        async def deliver() -> None:
            async for message, event_id in tail:
                stream.push(message, event_id)
            feed.end()

        with self._place(feed):
            await stream.open()
            await self._fed(feed, deliver())
        return answers.SILENT

    async def listen(self, visit: Visit, message: Message, route: Route, stream: Stream) -> Answer:
        """A modern agent's. What it may not hear of is not acknowledged; where a person has to
        decide, or nothing remains, the refusal is the answer. Raises Refused, UpstreamFailed.
        """
        lists, asked = asked_for(message.params)
        named = message.id if message.id is not None else ""
        uris = Uris(route, None)
        feed = Feed(visit=visit, stream=stream, id=named, wanted=wanted(lists, uris))
        with self._place(feed):
            backend = self._backends.of(visit.server)
            facts = await backend.facts(visit)
            tasks = await self._tasks.watch(visit, message, feed.wanted.tasks)
            for uri in asked:
                refusal = await self._subscriptions.ask(visit, uri, uris, id=named)
                alone = not (lists or tasks or len(asked) > 1)
                if refusal is not None and (pending(refusal) or alone):
                    return refusal
            if tasks and not (lists or asked or feed.wanted.tasks.all):
                raise not_found()
            feed.wanted = feed.wanted.offered(facts)
            await stream.open()
            feed.push(ACKNOWLEDGED, {"notifications": feed.wanted.acknowledged()})
            try:
                await self._fed(feed, self._feeding.feed(feed, backend, facts, ""))
            finally:
                self._feeding.let_go(feed, backend, facts, self._of_owner(visit))
        ended = {"resultType": "complete", "_meta": {SUBSCRIPTION_META: named}}
        return answers.result(named, messages.encode(ended))

    async def unsubscribe(self, visit: Visit, message: Message, session: Session) -> Answer:
        """A legacy agent's. Raises Refused, UpstreamFailed."""
        uri = message.params.get("uri")
        if type(uri) is not str or not 1 <= len(uri) <= MAX_URI:
            raise Refused(answers.bad_params("uri must be a string"))
        await self._subscriptions.unsubscribed(visit, session, uri)
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
        mine = self._of_owner(visit)
        if method == TOOLS:
            self.views.list_changed(visit, None if mine or call.route.modern else call.stream)
        elif mine:
            self.views.other_changed(visit, method, lambda: self._tell(owner(visit), method))
        elif not call.route.modern:
            tell = partial(call.stream.push, notification(method, {}))
            self.views.other_changed(visit, method, tell, call.stream)

    # --- what ends them -------------------------------------------------------------------------

    def policy_changed(self) -> None:
        """Another snapshot: who may not be here any more goes, and the rest look again. A server
        whose entry changed is another server: who listens to it comes again.
        """
        snapshot = self._snapshot()
        for feed in self._all():
            visit = renewed(feed.visit, snapshot)
            if visit is None or visit.server != feed.visit.server:
                feed.end()
            else:
                feed.visit = visit
        self.views.policy_changed()

    def revoked(self, tenant: str, agents: frozenset[str], sessions: frozenset[str]) -> None:
        for feed in self._all():
            if concerns(feed.visit.caller, tenant, agents, sessions):
                feed.end()
        self.reconsider()

    def reconsider(self) -> None:
        """What was allowed is decided on again before it is heard of."""
        self._subscriptions.reconsider()
        for feed in self._all():
            feed.wanted.uris.reconsider()

    def session_ended(self, session_id: str) -> None:
        self._subscriptions.forget(session_id)
        for feed in self._of_session(session_id):
            feed.end()

    def close(self) -> None:
        """The process ends."""
        self._closed = True
        for feed in self._all():
            feed.end()

    async def touch(self) -> None:
        """A session with an open stream is not idle; one that ended elsewhere has none."""
        for feed in self._all():
            if feed.session is None:
                continue
            if await self._sessions.over(feed.visit, feed.session):
                feed.end()
            else:
                self._sessions.touch(feed.visit, feed.session)

    @contextmanager
    def _place(self, feed: Feed) -> Iterator[None]:
        now = renewed(feed.visit, self._snapshot())
        if now is None:  # its rights ended while it came in: nobody would end it later
            raise Refused(local.failed("agent_suspended"))
        feed.visit, caller = now, now.caller
        mine = self._open.setdefault((caller.tenant, caller.agent), set())
        if len(mine) >= PER_AGENT or self._closed:
            if not mine:
                del self._open[caller.tenant, caller.agent]
            why = local.failed("capacity" if self._closed else "rate_limited")
            raise Refused(why if feed.session is None else replace(why, status=429))
        mine.add(feed)
        feed.stream.when_gone = feed.end
        if feed.stream.gone.is_set():
            feed.end()
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

    async def _fed(self, feed: Feed, work: Coroutine[Any, Any, None]) -> None:
        """Until it ends."""
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(work)
            await feed.ended.wait()
            feeding.cancel()

    def _tell(self, whose: Owner, method: str) -> None:
        for feed in self._open.get(whose[:2], ()):
            if feed.visit.slug == whose[2] and method in feed.wanted.lists:
                feed.push(method, {})

    def _of_owner(self, visit: Visit) -> list[Feed]:
        mine = self._open.get((visit.caller.tenant, visit.caller.agent), ())
        return [one for one in mine if one.visit.slug == visit.slug]

    def _all(self) -> list[Feed]:
        return [feed for feeds in self._open.values() for feed in feeds]

    def _heard_by(self, session: Session) -> list[Feed]:
        """Not what it came back for: the rest of a call is a stream of its own."""
        return [one for one in self._of_session(session.id) if one.wanted.lists]

    def _of_session(self, session_id: str) -> list[Feed]:
        return [feed for feed in self._all() if feed.session and feed.session.id == session_id]


def pending(answer: Answer) -> bool:
    """Whether a refusal is one that a person may still lift."""
    error = messages.decode(answer.body).get("error") if answer.body else None
    return type(error) is dict and error.get("code") == answers.CODES["approval_pending"]


def renewed(visit: Visit, snapshot: Snapshot) -> Visit | None:
    """The same visit by another snapshot; None where it would be refused."""
    made = visit.renewed(snapshot)
    if made is None or not made.let_in or made.caller.session in made.tenant.revoked_sessions:
        return None
    return made
