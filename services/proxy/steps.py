"""What the pipeline's steps are done by, put together once per worker. Decides nothing: several of
them let a call go through the pipeline again, and so are made from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from services.common.clock import Clock
from services.common.outbox.digests import Digester
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log
from services.common.telemetry.otel import CallSpans
from services.proxy.answers import Answer
from services.proxy.approval_tasks import Tasks
from services.proxy.asking.requests import Questions
from services.proxy.asking.rounds import Rounds
from services.proxy.asking.their_tasks import TheirTasks
from services.proxy.backends.upstream import Backends
from services.proxy.calls import Decider, Recorder, Spawn
from services.proxy.catalog import Catalog
from services.proxy.completing import Completing
from services.proxy.continuing import Carried
from services.proxy.failures import Failures
from services.proxy.forwarding import Forwarding
from services.proxy.governed import Incoming, Question
from services.proxy.judging import Judging
from services.proxy.local import Local
from services.proxy.refusals import Refusals
from services.proxy.replicas.handover import Handover
from services.proxy.replicas.post import Post
from services.proxy.seals import Seals
from services.proxy.sessions import Sessions
from services.proxy.snapshot import Snapshot
from services.proxy.streams.abandoning import Abandonments
from services.proxy.streams.feeds import Feeds
from services.proxy.streams.noting import Noting
from services.proxy.streams.relay import Relays
from services.proxy.streams.subscriptions import Subscriptions
from services.proxy.streams.tails import Resuming
from services.proxy.streams.task_news import TaskNews
from services.proxy.waiting import Wait, Waits


class Parts(Protocol):
    """What the pipeline was given, and the way through it."""

    decider: Decider
    recorder: Recorder
    backends: Backends
    catalog: Catalog
    sessions: Sessions
    seals: Seals
    carried: Carried
    waits: Waits
    post: Post
    digester: Digester
    failures: Failures
    counters: Counters
    clock: Clock
    log: Log
    spans: CallSpans | None

    @property
    def spawn(self) -> Spawn: ...

    async def govern(
        self, incoming: Incoming, asked: Question | None = None, wait: Wait | None = None
    ) -> Answer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    local: Local
    tasks: Tasks
    refusals: Refusals
    judging: Judging
    questions: Questions
    rounds: Rounds
    subscriptions: Subscriptions
    feeds: Feeds
    noting: Noting
    forwarding: Forwarding


def made(parts: Parts, snapshot: Callable[[], Snapshot]) -> Steps:
    given_up, resuming = Abandonments(), Resuming(parts.seals, parts.post)
    handover = Handover(parts.post, snapshot)
    dropped = parts.counters.counter("proxy.upstream.dropped")
    theirs = TheirTasks(
        carried=parts.carried,
        catalog=parts.catalog,
        backends=parts.backends,
        holds=parts.waits.holds,
        recorder=parts.recorder,
        govern=parts.govern,
        clock=parts.clock,
        log=parts.log,
    )
    questions = Questions(
        approvals=parts.waits,
        carried=parts.carried,
        backends=parts.backends,
        recorder=parts.recorder,
        govern=parts.govern,
        spawn=parts.spawn,
        handover=handover,
        me=parts.post.me,
        counters=parts.counters,
        clock=parts.clock,
        log=parts.log,
    )
    handover.serving("answer", questions.handed)
    rounds = Rounds(questions, parts.carried, parts.digester)
    subscriptions = Subscriptions(parts.govern, parts.spawn, parts.post)
    feeds = Feeds(
        catalog=parts.catalog,
        backends=parts.backends,
        sessions=parts.sessions,
        subscriptions=subscriptions,
        questions=questions,
        tasks=TaskNews(carried=parts.carried, theirs=theirs, spawn=parts.spawn),
        resuming=resuming,
        post=parts.post,
        snapshot=snapshot,
        dropped=dropped,
        spawn=parts.spawn,
        clock=parts.clock,
    )
    relays = Relays(
        asked=questions.heard, changed=feeds.changed, paused=resuming.paused, dropped=dropped
    )
    tasks = Tasks(
        waits=parts.waits,
        carried=parts.carried,
        theirs=theirs,
        govern=parts.govern,
        spawn=parts.spawn,
        handover=handover,
        post=parts.post,
    )
    handover.serving("task", tasks.handed)
    return Steps(
        local=Local(
            catalog=parts.catalog,
            sessions=parts.sessions,
            seals=parts.seals,
            completing=Completing(
                recorder=parts.recorder, digester=parts.digester, clock=parts.clock, log=parts.log
            ),
            backend=lambda visit: parts.backends.of(visit.server),
        ),
        tasks=tasks,
        refusals=Refusals(
            recorder=parts.recorder,
            failures=parts.failures,
            counters=parts.counters,
            clock=parts.clock,
            log=parts.log,
        ),
        judging=Judging(
            decider=parts.decider,
            recorder=parts.recorder,
            backends=parts.backends,
            catalog=parts.catalog,
            snapshot=snapshot,
            digester=parts.digester,
            spans=parts.spans,
            clock=parts.clock,
            log=parts.log,
        ),
        questions=questions,
        rounds=rounds,
        subscriptions=subscriptions,
        feeds=feeds,
        noting=Noting(
            holds=parts.waits.holds, given_up=given_up, backends=parts.backends, post=parts.post
        ),
        forwarding=Forwarding(
            recorder=parts.recorder,
            sessions=parts.sessions,
            rounds=rounds,
            questions=questions,
            tasks=theirs,
            relays=relays,
            given_up=given_up,
            subscriptions=subscriptions,
            digester=parts.digester,
            clock=parts.clock,
            log=parts.log,
        ),
    )
