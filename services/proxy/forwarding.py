"""From an Allow to the tool server and back: the steps of `govern` after the intent is durable.

Decides nothing about whether a call may run. Guards that every intent gets its outcome, and that an
agent reads an answer in its own dialect.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.outbox.digests import Digester
from services.common.outbox.record import Record
from services.common.telemetry.logging import Log
from services.proxy import answers, bridge, encodings, headers, local, messages, records
from services.proxy.answers import Answer
from services.proxy.asking.requests import Questions, Unanswered
from services.proxy.asking.rounds import Asks, Rounds, told
from services.proxy.asking.their_tasks import TheirTasks
from services.proxy.backends.upstream import Reply, Request, SessionGone, UpstreamFailed
from services.proxy.bridge import Facts, Untranslatable
from services.proxy.calls import Recorder
from services.proxy.governed import SUBSCRIBE, Call, Question
from services.proxy.sessions import Sessions
from services.proxy.streams.abandoning import Abandonments, GivenUp
from services.proxy.streams.relay import Relays
from services.proxy.streams.subscriptions import Subscriptions


class _Outcome(msgspec.Struct, frozen=True):
    """How the run ended. `encoded` is a result for the agent, `answer` something else for it, and
    `asks` what a legacy agent has to be asked before there is either.
    """

    status: str
    error: str
    status_code: int | None = None
    encoded: bytes = b""
    answer: Answer | None = None
    asks: Asks | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarding:
    recorder: Recorder
    sessions: Sessions
    rounds: Rounds
    questions: Questions
    tasks: TheirTasks
    relays: Relays
    given_up: Abandonments
    subscriptions: Subscriptions
    digester: Digester
    clock: Clock
    log: Log

    async def run(self, call: Call, since: int) -> tuple[Answer | None, Question | None]:
        """1. the tool server  2. its answer in the agent's dialect  3. the outcome's record,
        whatever happens  4. the answer; or, where the tool server needs to know more first, the
        question with what the agent said to that: it is decided anew. `since` is the mark from
        before the decision.
        """
        outcome = _Outcome("indeterminate", "internal")
        sent_ns = self.clock.monotonic_ns()
        try:
            outcome = await self._forward(call, since)  # 1, 2
        finally:
            now_ns = self.clock.monotonic_ns()
            self.questions.over(call.subject.id)
            record = self._record(call, outcome, upstream_ns=now_ns - sent_ns, now_ns=now_ns)
            try:
                await self.recorder.put(record, durable=False)  # 3
            except BehavryError as failure:
                self.log.error("outcome_not_recorded", reason=failure.code)
        if outcome.asks is not None:  # 4
            return await self._more(call, outcome.asks)
        if outcome.answer is not None:
            return outcome.answer, None
        if outcome.encoded:
            return answers.result(call.message.id, outcome.encoded), None
        return encodings.failure(call, outcome.error), None

    async def _forward(self, call: Call, since: int) -> _Outcome:
        asked, facts, backend = call.asked, call.live.facts, call.live.backend
        if facts is None or backend is None:
            return _Outcome("upstream_error", "upstream_unreachable")
        try:
            if asked.deliver is not None:
                await asked.deliver()
                return _Outcome("ok", "", answer=answers.ACCEPTED)
            if asked.method == SUBSCRIBE and facts.modern:  # it is told by who listens
                await self.subscriptions.subscribed(call)
                return _Outcome("ok", "", encoded=b"{}")
            with self.given_up.around(call.stream, call.session, call.message.id):
                reply = await backend.ask(
                    call.subject.visit,
                    _request(call, facts),
                    local.upstream_session(call.session),
                    self.relays.of(call).hear,
                )
            outcome = self._translated(call, reply, facts, since)
            if asked.method == SUBSCRIBE and outcome.encoded:
                await self.subscriptions.subscribed(call)
            return outcome
        except GivenUp:
            return _Outcome("cancelled", "", answer=answers.SILENT)
        except SessionGone:
            if call.session is not None:
                await self.sessions.end(call.subject.visit, call.session)
            gone = answers.rejected(call.message.id, local.failed("unknown_session"))
            return _Outcome("upstream_error", "unknown_session", status_code=404, answer=gone)
        except UpstreamFailed as failure:
            status = "indeterminate" if failure.ran is None else "upstream_error"
            if failure.reason == "inbound_blocked":
                status = "blocked"
            return _Outcome(status, failure.reason, status_code=failure.status)
        except Untranslatable as odd:
            return _Outcome("upstream_error", odd.reason)

    def _translated(self, call: Call, reply: Reply, facts: Facts, since: int) -> _Outcome:
        method, modern = call.asked.method, call.route.modern
        if reply.result is None:
            error = dict(reply.error or {})
            self.rounds.sent_elsewhere(call, error)
            error["code"] = bridge.error_code(error["code"], method, facts, to_modern=modern)
            relayed = local.relay_error(call.message, error, messages.INTERNAL_ERROR)
            if modern and error["code"] == answers.MISSING_CAPABILITY:
                relayed = replace(relayed, status=400)
            return _Outcome("tool_error", str(error["code"]), reply.status, answer=relayed)
        match bridge.kind(reply.result, facts):
            case bridge.INPUT_REQUIRED if modern:
                encoded = messages.encode(self.rounds.relayed(call, reply.result))
                return _Outcome("ok", bridge.INPUT_REQUIRED, reply.status, encoded)
            case bridge.INPUT_REQUIRED:
                asks = self.rounds.asks(call, reply.result)
                return _Outcome("ok", bridge.INPUT_REQUIRED, reply.status, asks=asks)
            case bridge.TASK:
                result = self.tasks.created(call, reply.result, since)
            case _ if call.asked.task is not None:
                result = self.tasks.shown(call, reply.result, since)
            case _:
                result = bridge.result(reply.result, method, facts, to_modern=modern)
        failed = call.asked.is_tool and result.get("isError") is True
        encoded = messages.encode(result)
        return _Outcome("tool_error" if failed else "ok", "", reply.status, encoded)

    async def _more(self, call: Call, asks: Asks) -> tuple[Answer | None, Question | None]:
        try:
            with self.given_up.around(call.stream, call.session, call.message.id):
                return None, await self.rounds.ask(call, asks)
        except GivenUp:
            return answers.SILENT, None
        except Unanswered as silence:
            return encodings.failure(call, silence.reason), None

    def _record(self, call: Call, outcome: _Outcome, *, upstream_ns: int, now_ns: int) -> Record:
        total_ns, decision_ns = now_ns - call.began_ns, call.decided_ns - call.began_ns
        tenant = call.subject.visit.caller.tenant
        encoded = outcome.encoded
        return records.outcome(
            call.subject,
            status=outcome.status,
            clock=self.clock,
            error=outcome.error or None,
            upstream_status=outcome.status_code,
            result_digest=self.digester.make(tenant, "result", encoded) if encoded else None,
            result_size=len(encoded),
            latency_us={
                "overhead": (total_ns - decision_ns - upstream_ns) // 1000,
                "decision": decision_ns // 1000,
                "engine": call.decision.engine_us,
                "upstream": upstream_ns // 1000,
                "total": total_ns // 1000,
            },
        )


def _request(call: Call, facts: Facts) -> Request:
    """What was decided, and of the rest what may go with it."""
    asked, tool = call.asked, call.live.tool
    approved = call.decision.escalation is not None
    params = bridge.outgoing(
        call.message.params,
        facts,
        decided=asked.params(),
        meta={} if approved else asked.meta,  # who approved a call did not see it
        told=told(call),
        level="" if call.session is None else call.session.level,
    )
    extra = tuple(headers.param_headers(tool.params, asked.arguments)) if tool else ()
    if not approved:  # who approved a call did not see these
        extra += call.live.passed
    return Request(
        method=asked.method,
        params=params,
        name=asked.name,
        headers=extra,
        progress=encodings.progress_token(call.message.params),
        traceparent=call.subject.traceparent,
    )
