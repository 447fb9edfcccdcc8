"""What is decided of a call, and what the chain says of it: steps 2, 3 and 5 of `govern`.

Decides nothing by itself: it brings what is true now (server, tool, agent) before the authorizer
and keeps its word. Without an answer, or without a tool to ask about, there is a denial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from msgspec.structs import replace

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import RequestId, uuid7
from services.common.outbox.digests import Digester
from services.common.telemetry.logging import Log
from services.common.telemetry.otel import CallSpan, CallSpans
from services.proxy import governed, headers, messages, records
from services.proxy.answers import Rejection
from services.proxy.backends.upstream import Backends, UpstreamFailed
from services.proxy.calls import (
    Ask,
    Decider,
    Decision,
    Escalation,
    Recorder,
    Result,
    Visit,
    denied,
)
from services.proxy.catalog import Catalog
from services.proxy.governed import Call, Incoming, Live, Question
from services.proxy.local import Refused
from services.proxy.pages import NAME
from services.proxy.records import Subject
from services.proxy.snapshot import Snapshot
from services.proxy.waiting import Wait

_TYPES: Final = {
    Result.ALLOW: "call.intent",
    Result.DENY: "call.denied",
    Result.INTERCEPT: "call.held",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    decider: Decider
    recorder: Recorder
    backends: Backends
    catalog: Catalog
    snapshot: Callable[[], Snapshot]
    digester: Digester
    spans: CallSpans | None
    clock: Clock
    log: Log

    async def decide(
        self, incoming: Incoming, asked: Question, digest: str, wait: Wait | None
    ) -> tuple[Call, CallSpan | None]:
        """A decision by what is true now; of an earlier ask nothing stays but what is asked for."""
        began_ns = self.clock.monotonic_ns()
        fresh = wait is None and not asked.turn
        now = incoming.visit if fresh else incoming.visit.renewed(self.snapshot())
        visit = now or incoming.visit
        live = await self._live(incoming, now, asked)
        request_id = RequestId(uuid7(self.clock.now_ns()))
        schema_hash = live.tool.schema_hash if live.tool else None
        ask, resource = governed.ask(
            visit,
            asked,
            id=request_id,
            digest=digest,
            schema_hash=schema_hash,
            escalation_id=wait.escalation_id if wait is not None else "",
            passed=live.passed,
        )
        decision = await self._decide(ask, asked, live, wait)
        span: CallSpan | None = None
        if self.spans is not None:
            # A tool is named only if it exists: any other name is the agent's own text.
            tool = asked.tool if live.tool else "_OTHER" if asked.is_tool else ""
            started_ns = self.clock.now_ns() - (self.clock.monotonic_ns() - began_ns)
            params = incoming.message.params
            span = self.spans.begin(asked.method, tool, params, started_ns=started_ns)
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
                beside=self._beside(visit, asked, live),
                trace_id=span.trace_id if span is not None else None,
                traceparent=span.traceparent if span is not None else "",
            ),
            decision=decision,
            message=incoming.message,
            route=incoming.route,
            asked=asked,
            session=incoming.session,
            stream=incoming.stream,
            live=live,
            began_ns=began_ns,
            decided_ns=self.clock.monotonic_ns(),
        )
        return call, span

    async def _live(self, incoming: Incoming, visit: Visit | None, asked: Question) -> Live:
        """The server and the tool as they are offered now."""
        if visit is None:
            return Live(failure="unknown_server")
        if not visit.let_in:
            return Live()  # nobody asks a tool server on behalf of such an agent
        try:
            backend = self.backends.of(visit.server)
            if not asked.is_tool:
                facts = await backend.facts(visit)
                return Live(backend=backend, facts=facts, passed=_passed(incoming, asked, ()))
            listing = await self.catalog.listing(visit, backend)
            tool = listing.tools.get(asked.tool)
            if tool is None and NAME.fullmatch(asked.tool):
                tool = await self.catalog.find(visit, backend, asked.tool)
        except UpstreamFailed as failure:
            return Live(failure=failure.reason)
        try:
            passed = () if tool is None else _passed(incoming, asked, tool.params)
        except Refused:
            try:
                view = await self.catalog.view(visit, listing)
            except BehavryError:
                return Live(failure="policy_unavailable")
            if asked.tool in view.names:
                raise
            return Live(failure="tool_hidden")  # what its headers should be is not told either
        return Live(backend=backend, facts=listing.facts, tool=tool, passed=passed)

    async def _decide(self, ask: Ask, asked: Question, live: Live, wait: Wait | None) -> Decision:
        if wait is not None and wait.declined:
            given_up = Escalation(id=wait.escalation_id, state="cancelled")
            return denied("escalation_cancelled", escalation=given_up)
        if live.failure:
            return denied(live.failure)  # nobody can say which tool this would be
        if asked.is_tool and NAME.fullmatch(asked.tool) is None:
            return denied("tool_hidden")  # no table can hold such a name
        return await self.decider.decide(ask)

    def _beside(
        self, visit: Visit, asked: Question, live: Live
    ) -> tuple[tuple[str, str, int], ...]:
        """Digests of what goes up beside what is asked for."""
        said = {"meta": asked.meta, "headers": dict(live.passed)}
        encoded = [(name, messages.encode(one, sort=True)) for name, one in said.items() if one]
        make, tenant = self.digester.make, visit.caller.tenant
        return tuple((name, make(tenant, name, one), len(one)) for name, one in encoded)

    async def record(self, call: Call, result: Result, refusal: str, wait: Wait | None) -> str:
        """Durable when this returns; a wait once for each escalation. A reason, if it could not be:
        then nothing may run, and nobody is told to wait.
        """
        decision = call.decision
        waiting = decision.escalation if result is Result.INTERCEPT else None
        if waiting is not None and wait is not None and waiting.id in wait.recorded:
            return ""
        if refusal and refusal not in decision.codes:
            decision = replace(decision, codes=(*decision.codes, refusal))
        record, parts = records.decided(
            call.subject,
            decision,
            type=_TYPES[result],
            reason=refusal or decision.reason_code,
            clock=self.clock,
        )
        try:
            await self.recorder.put(record, parts=parts)
        except BehavryError as failure:
            self.log.error("not_recorded", reason=failure.code)
            return "audit_unavailable"
        return ""


def _passed(
    incoming: Incoming, asked: Question, expected: Sequence[headers.ParamHeader]
) -> tuple[tuple[str, str], ...]:
    """The agent's `Mcp-Param` headers beside those that repeat an argument. Raises Refused where
    they do not agree.
    """
    if not incoming.route.modern:
        return ()
    found = headers.agree_params(expected, incoming.headers, asked.arguments)
    if isinstance(found, Rejection):
        raise Refused(found)
    return found


def enforce(decision: Decision) -> tuple[Result, str]:
    """What is done, and the reason of a refusal: only an Allow runs, and only an Intercept that
    names what it waits for waits.
    """
    match decision.result:
        case Result.ALLOW:
            return Result.ALLOW, ""
        case Result.DENY:
            return Result.DENY, decision.reason_code or "policy"
        case Result.INTERCEPT if decision.escalation is None:
            return Result.DENY, "escalation_unavailable"
        case Result.INTERCEPT:
            return Result.INTERCEPT, ""
        case _:
            assert_never(decision.result)
