"""One request of an agent, from its credential to its answer. The file to read first.

`serve` is the ladder of mcp.md 1.3 from authentication on, `govern` the way of everything that runs
something. Both are numbered; no step is skipped and none changes places. What each step decides
stands in the module that it calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

import msgspec

from services.common.clock import Clock
from services.common.ids import AgentId, TenantId
from services.common.outbox.digests import Digester
from services.common.telemetry.counters import Counter, Counters
from services.common.telemetry.logging import Log
from services.common.telemetry.otel import CallSpans
from services.proxy import (
    answers,
    approval_tasks,
    encodings,
    eras,
    governed,
    headers,
    local,
    messages,
)
from services.proxy.answers import Answer, Rejection
from services.proxy.asking.their_tasks import UPDATE
from services.proxy.backends.upstream import Backends
from services.proxy.calls import (
    Caller,
    Decider,
    Recorder,
    Result,
    Spawn,
    Stream,
    Visit,
)
from services.proxy.catalog import Catalog
from services.proxy.continuing import Carried
from services.proxy.encodings import Row
from services.proxy.eras import Route
from services.proxy.failures import Failures
from services.proxy.governed import Incoming, Question
from services.proxy.identity import ControlAway, Identity, Unauthenticated
from services.proxy.judging import enforce
from services.proxy.local import Refused
from services.proxy.messages import Kind, Malformed, Message
from services.proxy.refusals import unavailable
from services.proxy.replicas.post import Post
from services.proxy.seals import Seals, Unsealed
from services.proxy.sessions import Session, Sessions
from services.proxy.snapshot import EMPTY, Snapshot
from services.proxy.steps import Steps, made
from services.proxy.waiting import Wait, Waits

AT_ONCE: Final = 64


class TooLarge(Exception):
    """The body is over the cap."""


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A request that passed the checks of its transport."""

    verb: str
    server: str
    resource: str
    metadata_url: str
    discovering: bool
    credential: bytes | None
    #: More than one credential, or one where none belongs.
    ambiguous: bool
    headers: Mapping[bytes, bytes]
    raw_headers: Sequence[tuple[bytes, bytes]]
    client_ip: str
    read: Callable[[], Awaitable[bytes]]
    stream: Stream


@dataclass(slots=True, kw_only=True)
class Pipeline:
    identity: Identity
    decider: Decider
    recorder: Recorder
    backends: Backends
    catalog: Catalog
    sessions: Sessions
    seals: Seals
    carried: Carried
    waits: Waits
    post: Post
    spawn: Spawn
    digester: Digester
    failures: Failures
    counters: Counters
    clock: Clock
    log: Log
    spans: CallSpans | None = None
    snapshot: Snapshot = EMPTY
    _running: dict[tuple[TenantId, AgentId], int] = field(default_factory=dict)
    steps: Steps = field(init=False)
    _calls: Counter = field(init=False)
    _allowed: Counter = field(init=False)
    _denied: Counter = field(init=False)
    _held: Counter = field(init=False)

    def __post_init__(self) -> None:
        self.steps = made(self, lambda: self.snapshot)
        self._calls = self.counters.counter("proxy.calls")
        self._allowed = self.counters.counter("proxy.allowed")
        self._denied = self.counters.counter("proxy.denied")
        self._held = self.counters.counter("proxy.held")

    async def serve(self, arrival: Arrival) -> Answer:
        """1. the credential  2. server and agent  3. one of 64 places; without one, 64 more are
        read as far as 7: each is told by its id, and what is no request is taken  4. the body
        5. the message  6. its era and session  7. headers agree  8. the method.
        """
        try:
            caller = await self._authenticate(arrival)  # 1
        except Unauthenticated as failure:
            return self._turned_back(arrival, failure)
        except ControlAway:
            return unavailable("control_unavailable")
        try:
            visit = self._visit(arrival, caller)  # 2
        except Refused as refused:
            return await self.steps.refusals.turn_away(
                caller,
                refused.why,
                snapshot=self.snapshot,
                server=arrival.server,
                client_ip=arrival.client_ip,
            )
        owner = (caller.tenant, caller.agent)
        running = self._running.get(owner, 0)
        over = running - self.steps.feeds.of(*owner) - AT_ONCE if running >= AT_ONCE else -1
        if over >= AT_ONCE or (over >= 0 and arrival.verb != "POST"):  # 3
            return await self.steps.refusals.reject(visit, None, "", local.failed("rate_limited"))
        self._running[owner] = running + 1
        try:
            return await self._admitted(arrival, visit, crowded=over >= 0)
        finally:
            if self._running[owner] == 1:
                del self._running[owner]
            else:
                self._running[owner] -= 1

    async def _admitted(self, arrival: Arrival, visit: Visit, *, crowded: bool) -> Answer:
        message: Message | None = None
        try:
            if arrival.verb != "POST":
                return await self._in_session(arrival, visit)
            before = self.snapshot
            body = await arrival.read()  # 4
            if self.snapshot is not before:  # it took its time, and rights may have ended
                self._still(arrival, visit.caller)
                visit = self._visit(arrival, visit.caller)
            message = messages.parse(body)  # 5
            route, session = await self._route(arrival, visit, message)  # 6
            if route.modern and message.kind is Kind.REQUEST:
                self._agree(arrival, message)  # 7
            if crowded and message.kind is Kind.REQUEST:
                return await self._crowded_out(visit, message, route)
            return await self._dispatch(arrival, visit, message, route, session)  # 8
        except Unauthenticated as failure:
            return self._turned_back(arrival, failure)
        except TooLarge:
            why = Rejection(status=413, code=messages.INVALID_REQUEST, message="body too large",
                            reason="body_too_large")  # fmt: skip
            return await self.steps.refusals.reject(visit, None, "", why)
        except Malformed as bad:
            return await self.steps.refusals.reject(visit, bad.id, "", answers.malformed(bad))
        except Refused as refused:
            given, method = (message.id, message.method) if message else (None, "")
            return await self.steps.refusals.reject(visit, given, method, refused.why)

    async def _crowded_out(self, visit: Visit, message: Message, route: Route) -> Answer:
        """Raises Refused, but where a tool's result is due."""
        why = local.failed("rate_limited")
        if message.method != governed.TOOL:
            raise Refused(why)
        await self.steps.refusals.reject(visit, message.id, message.method, why)
        data = answers.decision_data(
            verdict="deny", reason=why.reason, decision_id="", revision=visit.revision
        )
        text = f"Denied: {why.reason}."
        return answers.refusal(message.id, tool=True, text=text, data=data, modern=route.modern)

    async def govern(
        self, incoming: Incoming, asked: Question | None = None, wait: Wait | None = None
    ) -> Answer:
        """1. the question, and what it continues  2. the live definition  3. features, and the ask
        4. enforce: nothing but Allow runs  5. the record, durable  6. a denial leaves
        7. an intercepted call waits for a person, and begins again at 2 or leaves unrun
        8. the tool server  9. its answer in the agent's dialect  10. the outcome's record
        11. the answer leaves; where the tool server asked for more and the agent answered here, it
        begins again at 2 with that.
        """
        asked = asked or self._question(incoming)  # 1
        if asked.continues:
            asked, wait = await self._continued(incoming, asked)
        while True:
            since = self.waits.holds.mark()
            digest = self._digest(incoming, asked)
            call, span = await self.steps.judging.decide(incoming, asked, digest, wait)  # 2, 3
            if wait is not None:
                call = wait.waits_on(call)
            result, refusal = enforce(call.decision)  # 4
            lost = await self.steps.judging.record(call, result, refusal, wait)  # 5
            if lost:
                result, refusal = Result.DENY, refusal or lost
            if wait is not None and result is not Result.INTERCEPT:
                await wait.settled()
            answer: Answer | None
            match result:
                case Result.DENY:  # 6
                    self._denied.value += 1
                    answer = encodings.denial(call, refusal)
                case Result.INTERCEPT:  # 7
                    self._held.value += wait is None
                    wait = wait or self._begin(incoming, asked)
                    answer = await wait.next(call, since)
                case Result.ALLOW:
                    self._allowed.value += 1
                    answer, more = await self.steps.forwarding.run(call, since)  # 8-11
                    if more is not None:
                        asked, wait = more, None
                case _:
                    assert_never(result)
            if span is not None:
                span.end(
                    decision=result.value,
                    reason=refusal or call.decision.reason_code,
                    revision=call.decision.revision.policy_revision,
                )
            if answer is not None:
                return answer

    # --- steps of serve -------------------------------------------------------------------------

    async def _authenticate(self, arrival: Arrival) -> Caller:
        if arrival.ambiguous:
            raise Unauthenticated("ambiguous_credentials")
        if arrival.credential is None:
            raise Unauthenticated("no_credential", presented=False)
        caller = self.identity.recall(arrival.credential, arrival.resource)
        if caller is None:
            caller = await self.identity.prove(arrival.credential, arrival.resource)
        self._still(arrival, caller)
        return caller

    def _still(self, arrival: Arrival, caller: Caller) -> None:
        """Raises Unauthenticated where the session was revoked."""
        tenant = self.snapshot.tenants.get(caller.tenant)
        if tenant is None or caller.session not in tenant.revoked_sessions:
            return
        agent = tenant.agents.get(caller.agent)
        if agent is not None and not agent.active:
            return  # known and not let in: refused by name further on, and recorded so
        if arrival.credential is not None:
            self.identity.forget(arrival.credential)
        raise Unauthenticated("session_revoked", claimed=caller.tenant)

    def _turned_back(self, arrival: Arrival, failure: Unauthenticated) -> Answer:
        return self.steps.refusals.unauthenticated(
            failure,
            snapshot=self.snapshot,
            server=arrival.server,
            client_ip=arrival.client_ip,
            metadata_url=arrival.metadata_url if arrival.discovering else "",
        )

    def _visit(self, arrival: Arrival, caller: Caller) -> Visit:
        """Unknown server and server not granted to this agent read alike."""
        snapshot = self.snapshot
        tenant = snapshot.tenants.get(caller.tenant)
        agent = tenant.agents.get(caller.agent) if tenant else None
        found = tenant.find(arrival.server) if tenant else None
        if tenant is None or agent is None or found is None or found[0] not in agent.servers:
            raise Refused(
                Rejection(
                    status=404,
                    code=answers.CODES["unknown_server"],
                    message="unknown server",
                    reason="unknown_server",
                )
            )
        sent = arrival.headers
        return Visit(
            caller=caller,
            tenant=tenant,
            agent=agent,
            slug=found[0],
            server=found[1],
            revision=snapshot.revision,
            client_ip=arrival.client_ip,
            requester_id=sent.get(b"x-requester-id", b"").decode("latin-1")[:128],
            delegation=b"x-delegation-token" in sent,
            workflow=b"x-workflow-session" in sent,
        )

    async def _route(
        self, arrival: Arrival, visit: Visit, message: Message
    ) -> tuple[Route, Session | None]:
        sent = arrival.headers
        version, sealed = sent.get(b"mcp-protocol-version"), sent.get(b"mcp-session-id")
        if headers.doubled(arrival.raw_headers):
            raise Refused(headers.mismatch("an Mcp header came twice"))
        route = eras.route(
            version.decode("latin-1") if version is not None else None,
            sealed.decode("latin-1") if sealed is not None else None,
            message,
        )
        if isinstance(route, Rejection):
            raise Refused(route)
        if not route.in_session:
            return route, None
        session = await self._session(visit, sealed)
        settled = eras.settle(route, session.version)
        if isinstance(settled, Rejection):
            raise Refused(settled)
        return settled, session

    async def _session(self, visit: Visit, sealed: bytes | None) -> Session:
        try:
            return await self.sessions.find(visit, (sealed or b"").decode("latin-1"))
        except Unsealed:
            raise Refused(local.failed("unknown_session")) from None

    def _agree(self, arrival: Arrival, message: Message) -> None:
        mismatch = headers.agree(arrival.headers, message)
        if mismatch is not None:
            raise Refused(mismatch)

    async def _dispatch(
        self,
        arrival: Arrival,
        visit: Visit,
        message: Message,
        route: Route,
        session: Session | None,
    ) -> Answer:
        if message.kind is Kind.NOTIFICATION:
            return await self.steps.noting.noted(visit, message, session)
        arrival.stream.headed = route.opening
        method, modern = message.method, route.modern
        tasks = modern and method in approval_tasks.METHODS
        if tasks or message.kind is Kind.RESPONSE or method in governed.methods(modern=modern):
            incoming = Incoming(
                visit=visit,
                message=message,
                route=route,
                session=session,
                headers=arrival.headers,
                stream=arrival.stream,
            )
            if tasks:
                if not visit.let_in:
                    raise Refused(local.failed("agent_suspended"))
                return await self.steps.tasks.answer(incoming)
            if message.kind is Kind.RESPONSE:
                return await self.steps.questions.answered(incoming)
            if method == governed.SUBSCRIBE and session is not None:
                self.steps.subscriptions.admit(session, message.params)
            self._calls.value += 1
            return await self.govern(incoming)
        listens = self.steps.feeds.knows(method, modern=modern)
        if not (listens or self.steps.local.knows(method, route)):
            raise Refused(local.not_found(message, route))
        if not visit.let_in:
            raise Refused(local.failed("agent_suspended"))
        if listens:
            return await self.steps.feeds.answer(visit, message, route, session, arrival.stream)
        return await self.steps.local.answer(visit, message, route, session)

    async def _in_session(self, arrival: Arrival, visit: Visit) -> Answer:
        """A legacy session's GET, or its end."""
        sent = arrival.headers
        session = await self._session(visit, sent.get(b"mcp-session-id"))
        if arrival.verb == "GET":
            if not visit.let_in:
                raise Refused(local.failed("agent_suspended"))
            last = sent.get(b"last-event-id", b"").decode("latin-1")
            return await self.steps.feeds.get(visit, session, arrival.stream, last)
        await self.sessions.end(visit, session)
        upstream = local.upstream_session(session)
        if upstream is not None:
            await self.backends.of(visit.server).close(visit, upstream)
        return Answer(204, b"", ())

    # --- steps of govern ------------------------------------------------------------------------

    def _question(self, incoming: Incoming) -> Question:
        if incoming.message.method == UPDATE:
            return self.steps.tasks.update(incoming)
        asked = governed.question(incoming.message, modern=incoming.route.modern)
        if isinstance(asked, Rejection):
            raise Refused(asked)
        return asked

    async def _continued(self, incoming: Incoming, asked: Question) -> tuple[Question, Wait | None]:
        """What a retry asks, and the wait that goes on with it."""
        asked, state = self.steps.rounds.continued(incoming, asked)
        if state is None:
            return asked, None
        digest = self._digest(incoming, asked)
        return asked, await self.waits.resumed(incoming, asked, digest, state)

    def _digest(self, incoming: Incoming, asked: Question) -> str:
        return self.digester.make(incoming.visit.caller.tenant, "arguments", asked.canonical)

    def _begin(self, incoming: Incoming, asked: Question) -> Wait:
        """The wait of a call that nobody waits for yet."""
        row = encodings.row(incoming, asked)
        task = self.steps.tasks.begin(incoming, asked) if row is Row.TASK else None
        return task or self.waits.begin(incoming, row)
