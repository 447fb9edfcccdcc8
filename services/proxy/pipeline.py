"""One request of an agent, from its credential to its answer. The file to read first.

`serve` is the ladder of mcp.md 1.3 from authentication on, `govern` the way of everything that runs
something. Both are numbered; no step is skipped and none changes places. What each step decides
stands in the module that it calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import AgentId, RequestId, TenantId, uuid7
from services.common.outbox.digests import Digester
from services.common.telemetry.counters import Counter, Counters
from services.common.telemetry.logging import Log
from services.common.telemetry.otel import CallSpan, CallSpans
from services.proxy import answers, encodings, eras, governed, headers, local, messages, records
from services.proxy.answers import Answer, Rejection
from services.proxy.backends.upstream import Backends, UpstreamFailed
from services.proxy.calls import Ask, Caller, Decider, Decision, Recorder, Result, Visit, denied
from services.proxy.catalog import NAME, Catalog
from services.proxy.eras import Route
from services.proxy.failures import Failures
from services.proxy.forwarding import Forwarding
from services.proxy.governed import Call, Live, Question
from services.proxy.identity import ControlAway, Identity, Unauthenticated
from services.proxy.local import Local, Refused
from services.proxy.messages import Kind, Malformed, Message
from services.proxy.records import Subject
from services.proxy.refusals import Refusals, unavailable
from services.proxy.seals import Seals, Unsealed
from services.proxy.sessions import Session, Sessions
from services.proxy.snapshot import EMPTY, Snapshot

AT_ONCE: Final = 64


class TooLarge(Exception):
    """The body is over the cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
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


@dataclass(slots=True, kw_only=True)
class Pipeline:
    identity: Identity
    decider: Decider
    recorder: Recorder
    backends: Backends
    catalog: Catalog
    sessions: Sessions
    seals: Seals
    digester: Digester
    failures: Failures
    counters: Counters
    clock: Clock
    log: Log
    spans: CallSpans | None = None
    snapshot: Snapshot = EMPTY
    _running: dict[tuple[TenantId, AgentId], int] = field(default_factory=dict)
    _local: Local = field(init=False)
    _calls: Counter = field(init=False)
    _allowed: Counter = field(init=False)
    _denied: Counter = field(init=False)
    _refusals: Refusals = field(init=False)
    _forwarding: Forwarding = field(init=False)

    def __post_init__(self) -> None:
        self._local = Local(
            catalog=self.catalog,
            sessions=self.sessions,
            seals=self.seals,
            backend=lambda visit: self.backends.of(visit.server),
        )
        self._calls = self.counters.counter("proxy.calls")
        self._allowed = self.counters.counter("proxy.allowed")
        self._denied = self.counters.counter("proxy.denied")
        self._refusals = Refusals(
            recorder=self.recorder,
            failures=self.failures,
            counters=self.counters,
            clock=self.clock,
            log=self.log,
        )
        self._forwarding = Forwarding(
            recorder=self.recorder,
            sessions=self.sessions,
            digester=self.digester,
            clock=self.clock,
            log=self.log,
        )

    async def serve(self, arrival: Arrival) -> Answer:
        """1. the credential  2. server and agent  3. one of 64 places  4. the body
        5. the message  6. its era and session  7. headers agree  8. the method.
        """
        try:
            caller = await self._authenticate(arrival)  # 1
        except Unauthenticated as failure:
            return self._refusals.unauthenticated(
                failure,
                snapshot=self.snapshot,
                server=arrival.server,
                client_ip=arrival.client_ip,
                metadata_url=arrival.metadata_url if arrival.discovering else "",
            )
        except ControlAway:
            return unavailable("control_unavailable")
        try:
            visit = self._visit(arrival, caller)  # 2
        except Refused as refused:
            return await self._refusals.turn_away(
                caller,
                refused.why,
                snapshot=self.snapshot,
                server=arrival.server,
                client_ip=arrival.client_ip,
            )
        owner = (caller.tenant, caller.agent)
        running = self._running.get(owner, 0)
        if running >= AT_ONCE:  # 3
            return await self._refusals.reject(visit, None, "", local.failed("rate_limited"))
        self._running[owner] = running + 1
        try:
            return await self._admitted(arrival, visit)
        finally:
            if self._running[owner] == 1:
                del self._running[owner]
            else:
                self._running[owner] -= 1

    async def _admitted(self, arrival: Arrival, visit: Visit) -> Answer:
        message: Message | None = None
        try:
            if arrival.verb == "DELETE":
                return await self._end_session(arrival, visit)
            body = await arrival.read()  # 4
            message = messages.parse(body)  # 5
            route, session = self._route(arrival, visit, message)  # 6
            if route.modern and message.kind is Kind.REQUEST:
                self._agree(arrival, message)  # 7
            return await self._dispatch(arrival, visit, message, route, session)  # 8
        except TooLarge:
            why = Rejection(status=413, code=messages.INVALID_REQUEST, message="body too large",
                            reason="body_too_large")  # fmt: skip
            return await self._refusals.reject(visit, None, "", why)
        except Malformed as bad:
            return await self._refusals.reject(visit, bad.id, "", answers.malformed(bad))
        except Refused as refused:
            given, method = (message.id, message.method) if message else (None, "")
            return await self._refusals.reject(visit, given, method, refused.why)

    async def govern(
        self,
        arrival: Arrival,
        visit: Visit,
        message: Message,
        route: Route,
        session: Session | None,
    ) -> Answer:
        """1. the question  2. the live definition  3. features, and the ask  4. enforce: anything
        but Allow denies  5. the record, durable  6. a denial leaves  7. the tool server
        8. its answer in the agent's dialect  9. the outcome's record  10. the answer leaves.
        """
        began_ns = self.clock.monotonic_ns()
        self._calls.value += 1
        asked = governed.question(message)  # 1
        if isinstance(asked, Rejection):
            raise Refused(asked)
        live = await self._live(arrival, visit, asked, route)  # 2
        request_id = RequestId(uuid7(self.clock.now_ns()))
        digest = self.digester.make(visit.caller.tenant, "arguments", asked.canonical)
        schema_hash = live.tool.schema_hash if live.tool else None
        ask, resource = governed.ask(  # 3
            visit, asked, id=request_id, digest=digest, schema_hash=schema_hash
        )
        decision = await self._decide(ask, asked, live)
        spans = self.spans
        span = self._span(spans, asked, live, message, began_ns) if spans is not None else None
        call = Call(
            subject=Subject(
                visit=visit,
                id=request_id,
                method=asked.method,
                tool=asked.tool[:128],
                resource=resource,
                schema_hash=schema_hash,
                arguments_digest=digest,
                arguments_size=len(asked.canonical),
                trace_id=span.trace_id if span is not None else None,
            ),
            decision=decision,
            message=message,
            route=route,
            asked=asked,
            session=session,
            live=live,
            began_ns=began_ns,
            decided_ns=self.clock.monotonic_ns(),
        )
        refusal = enforce(decision)  # 4
        refusal = await self._record(call, refusal) or refusal  # 5
        if refusal:  # 6
            self._denied.value += 1
            answer = encodings.denial(call, refusal)
        else:
            self._allowed.value += 1
            answer = await self._forwarding.run(call)  # 7-10
        if span is not None:
            span.end(
                decision="deny" if refusal else "allow",
                reason=refusal or decision.reason_code,
                revision=decision.revision.policy_revision,
            )
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
        tenant = self.snapshot.tenants.get(caller.tenant)
        if tenant is not None and caller.session in tenant.revoked_sessions:
            agent = tenant.agents.get(caller.agent)
            if agent is not None and not agent.active:
                return caller  # known and not let in: refused by name further on, and recorded so
            self.identity.forget(arrival.credential)
            raise Unauthenticated("session_revoked", claimed=caller.tenant)
        return caller

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

    def _route(
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
        session = self._session(visit, sealed)
        settled = eras.settle(route, session.version)
        if isinstance(settled, Rejection):
            raise Refused(settled)
        return settled, session

    def _session(self, visit: Visit, sealed: bytes | None) -> Session:
        try:
            return self.sessions.find(visit, (sealed or b"").decode("latin-1"))
        except Unsealed:
            raise Refused(local.failed("unknown_session")) from None

    def _agree(self, arrival: Arrival, message: Message) -> None:
        if headers.too_many_params(arrival.raw_headers):
            raise Refused(
                Rejection(
                    status=431,
                    code=messages.INVALID_REQUEST,
                    message="too many Mcp-Param headers",
                    reason="headers_too_large",
                )
            )
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
            return answers.ACCEPTED  # none of them changes anything here
        if message.kind is Kind.RESPONSE:
            raise Refused(answers.bad_request("nothing was asked"))
        if message.method in governed.METHODS:
            return await self.govern(arrival, visit, message, route, session)
        if not self._local.knows(message.method, route):
            raise Refused(local.not_found(message, route))
        if not _let_in(visit):
            raise Refused(local.failed("agent_suspended"))
        return await self._local.answer(visit, message, route, session)

    async def _end_session(self, arrival: Arrival, visit: Visit) -> Answer:
        session = self._session(visit, arrival.headers.get(b"mcp-session-id"))
        self.sessions.end(visit, session)
        upstream = local.upstream_session(session)
        if upstream is not None:
            await self.backends.of(visit.server).close(visit, upstream)
        return Answer(204, b"", ())

    # --- steps of govern ------------------------------------------------------------------------

    async def _live(self, arrival: Arrival, visit: Visit, asked: Question, route: Route) -> Live:
        """The server and the tool as they are offered now."""
        if not _let_in(visit):
            return Live()  # nobody asks a tool server on behalf of such an agent
        try:
            backend = self.backends.of(visit.server)
            if not asked.is_tool:
                return Live(backend=backend, facts=await backend.facts(visit))
            listing = await self.catalog.listing(visit, backend)
            tool = listing.tools.get(asked.tool)
            if tool is None and NAME.fullmatch(asked.tool):
                tool = await self.catalog.find(visit, backend, asked.tool)
        except UpstreamFailed as failure:
            return Live(failure=failure.reason)
        if tool is not None and tool.params and route.modern:
            mismatch = headers.agree_params(tool.params, arrival.headers, asked.arguments)
            if mismatch is not None:
                raise Refused(mismatch)
        return Live(backend=backend, facts=listing.facts, tool=tool)

    async def _decide(self, ask: Ask, asked: Question, live: Live) -> Decision:
        if live.failure:
            return denied(live.failure)  # nobody can say which tool this would be
        if asked.is_tool and NAME.fullmatch(asked.tool) is None:
            return denied("tool_hidden")  # no table can hold such a name
        return await self.decider.decide(ask)

    def _span(
        self, spans: CallSpans, asked: Question, live: Live, message: Message, began_ns: int
    ) -> CallSpan:
        """Names a tool only if it exists: any other name is the agent's own text."""
        started_ns = self.clock.now_ns() - (self.clock.monotonic_ns() - began_ns)
        tool = asked.tool if live.tool else "_OTHER" if asked.is_tool else ""
        return spans.begin(asked.method, tool, message.params, started_ns=started_ns)

    async def _record(self, call: Call, refusal: str) -> str:
        """Durable when this returns. A reason, if it could not be: then nothing may run."""
        decision = call.decision
        if refusal and refusal not in decision.codes:
            decision = replace(decision, codes=(*decision.codes, refusal))
        record, parts = records.decided(
            call.subject,
            decision,
            type="call.denied" if refusal else "call.intent",
            reason=refusal or decision.reason_code,
            clock=self.clock,
        )
        try:
            await self.recorder.put(record, parts=parts)
        except BehavryError as failure:
            self.log.error("not_recorded", reason=failure.code)
            return refusal or "audit_unavailable"
        return ""


def enforce(decision: Decision) -> str:
    """The reason of the refusal; empty for Allow and for nothing else."""
    match decision.result:
        case Result.ALLOW:
            return ""
        case Result.DENY:
            return decision.reason_code or "policy"
        case Result.INTERCEPT:
            return "escalation_unavailable"  # nobody can be asked yet
        case _:
            assert_never(decision.result)


def _let_in(visit: Visit) -> bool:
    return visit.agent.active and visit.tenant.status == "active"
