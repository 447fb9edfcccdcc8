"""The authorizer's gRPC face: translates, batches what waits, and decides nothing itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from behavry.authorizer.v1 import authorizer_pb2 as wire
from behavry.authorizer.v1 import authorizer_pb2_grpc
from behavry.control.v1 import plane_link_pb2
from services.authorizer import asks, decision, snapshots
from services.authorizer.active import ActivePolicy
from services.authorizer.bundles import VerifiedBundle
from services.authorizer.context_gate import gate, reaches
from services.authorizer.decide_streams import (
    DecideStream,
    DecideStreams,
    News,
    RightsEnded,
    TicketChanged,
)
from services.authorizer.decision import Result
from services.authorizer.envelope import EnvelopeInvalid
from services.authorizer.escalations import Escalations
from services.authorizer.judging import Judged, Judging
from services.authorizer.jwks_feed import JwksFeed
from services.authorizer.link import PlaneLink
from services.authorizer.plane_state import Tenant
from services.authorizer.staleness import Freshness
from services.authorizer.tickets.protocol import StoreUnavailable
from services.common.errors import BehavryError
from services.common.ids import AgentId, SessionId, TenantId, is_uuid
from services.common.supervisor import Supervisor
from services.common.telemetry.counters import Counters

_RESULTS: Final = {
    Result.ALLOW: wire.DECISION_RESULT_ALLOW,
    Result.DENY: wire.DECISION_RESULT_DENY,
    Result.INTERCEPT: wire.DECISION_RESULT_INTERCEPT,
}
#: Asks of one stream that may wait at once; more are denied `capacity` at once.
MAX_PENDING: Final = 2_048
#: Below this no decision is started: the caller would not hear it.
MIN_BUDGET_S: Final = 0.005


class AuthorizerServicer(authorizer_pb2_grpc.AuthorizerServiceServicer):
    def __init__(
        self,
        *,
        judging: Judging,
        active: ActivePolicy,
        escalations: Escalations,
        streams: DecideStreams[wire.Verdict],
        link: PlaneLink,
        supervisor: Supervisor,
        counters: Counters,
    ) -> None:
        self._judging = judging
        self._escalations = escalations
        self._streams = streams
        self._active = active
        self._link = link
        self._supervisor = supervisor
        self._asked = counters.counter("authorizer.asks")

    async def Decide(
        self, request_iterator: AsyncIterator[wire.DecideRequest], context: Any
    ) -> AsyncIterator[wire.DecideResponse]:
        answers = self._streams.opened()
        reader = self._supervisor.once(
            "decide_reader", lambda: self._read(request_iterator, answers)
        )
        try:
            async for ready in answers:
                yield _response(ready)
        finally:
            self._streams.closed(answers)
            reader.cancel()

    async def View(self, request: wire.ViewRequest, context: Any) -> wire.ViewResponse:
        bundle, tenant = self._active.bundle, self._active.tenant(request.tenant_id)
        if bundle is None:
            raise BehavryError("POLICY_MISSING", "this data plane has no policy yet")
        response = wire.ViewResponse(revision=_revision(bundle, tenant, self._active.age()))
        agent = tenant.agents.get(request.agent_id) if tenant else None
        server = tenant.servers.get(request.server) if tenant else None
        revoked = self._active.revocations.agent(request.tenant_id, request.agent_id)
        stopped = self._active.kill_switch.stops.stopped(
            request.tenant_id, tenant, request.agent_id, request.server
        )
        if tenant is None or agent is None or server is None or revoked or stopped:
            return response
        permissions = tenant.permissions(agent)
        if agent.status != "active" or not reaches(permissions, server.domain):
            return response
        table = tenant.tools.get(request.server, {})
        response.visible.extend(
            offered.name
            for offered in request.tools
            if not gate(
                server=server,
                tool=table.get(offered.name),
                offered_hash=offered.schema_hash,
                permissions=permissions,
            ).refusal
        )
        return response

    async def ReportTools(
        self, request: wire.ReportToolsRequest, context: Any
    ) -> wire.ReportToolsResponse:
        tenant = self._active.tenant(request.tenant_id)
        table = tenant.tools.get(request.server, {}) if tenant else {}
        news = [
            plane_link_pb2.SeenTool(
                name=tool.name, schema_hash=tool.schema_hash, definition=tool.definition
            )
            for tool in request.tools
            if tool.name not in table or table[tool.name].schema_hash != tool.schema_hash
        ]
        self._link.tools_seen(request.tenant_id, request.server, news)
        return wire.ReportToolsResponse()

    async def CancelEscalation(
        self, request: wire.CancelEscalationRequest, context: Any
    ) -> wire.CancelEscalationResponse:
        ids = (request.tenant_id, request.agent_id, request.escalation_id)
        if not all(map(is_uuid, ids)):
            return wire.CancelEscalationResponse()
        try:
            state = await self._escalations.cancel(
                TenantId(request.tenant_id), AgentId(request.agent_id), request.escalation_id
            )
        except StoreUnavailable as away:
            raise BehavryError("ESCALATION_UNAVAILABLE", "no ticket can be changed now") from away
        return wire.CancelEscalationResponse(state=state)

    async def _read(
        self, requests: AsyncIterator[wire.DecideRequest], answers: DecideStream[wire.Verdict]
    ) -> None:
        """Ends with the stream; asks still under way end with it, for nobody would hear them."""
        running: dict[int, asyncio.Task[None]] = {}
        try:
            async for request in requests:
                match request.WhichOneof("message"):
                    case "asks":
                        for ask in request.asks.asks:
                            self._start(ask, answers, running)
                    case "cancel":
                        if task := running.get(request.cancel.id):
                            task.cancel()
                    case _:
                        continue
        finally:
            answers.end()
            for task in running.values():
                task.cancel()

    def _start(
        self,
        ask: wire.Ask,
        answers: DecideStream[wire.Verdict],
        running: dict[int, asyncio.Task[None]],
    ) -> None:
        self._asked.value += 1
        if len(running) >= MAX_PENDING:
            answers.put(_verdict(ask, _refused(decision.deny("capacity"), self._active), ""))
            return
        # A failure of one ask is logged there and costs that ask its answer: the proxy denies it.
        task = self._supervisor.once("decide", lambda: self._answer(ask, answers))
        running[ask.id] = task
        task.add_done_callback(lambda _: running.pop(ask.id, None))

    async def _answer(self, ask: wire.Ask, answers: DecideStream[wire.Verdict]) -> None:
        now_s = asyncio.get_running_loop().time()
        try:
            caller = _caller(ask.caller)
            question = asks.decode(ask.request, ask.features, ask.findings, ask.arguments_json)
        except EnvelopeInvalid:
            refused = _refused(decision.deny("input_invalid"), self._active)
            answers.put(_verdict(ask, refused, _digest_of(ask)))
            return
        digest = question.request.arguments_digest
        budget_s = ask.budget_ms / 1000
        if budget_s < MIN_BUDGET_S:
            refused = _refused(decision.deny("engine_timeout"), self._active)
            answers.put(_verdict(ask, refused, digest))
            return
        judged = await self._judging.judge(
            question,
            caller,
            deadline_s=now_s + budget_s,
            now_s=now_s,
            continues=ask.escalation_id if is_uuid(ask.escalation_id) else "",
        )
        answers.put(_verdict(ask, judged, digest))


class SnapshotServicer(authorizer_pb2_grpc.SnapshotServiceServicer):
    def __init__(self, *, active: ActivePolicy, jwks: JwksFeed) -> None:
        self._active = active
        self._jwks = jwks

    async def Watch(
        self, request: wire.WatchRequest, context: Any
    ) -> AsyncIterator[wire.WatchResponse]:
        make = {"proxy": self._proxy_part, "jwks": self._jwks_part}.get(request.part)
        if make is None:
            raise BehavryError("NOT_FOUND", "there is no snapshot part of that name")
        known, sent = -1, b""
        while True:
            known = await self._active.next_version(known)
            revision, part = make()
            if part and part != sent:
                sent = part
                yield wire.WatchResponse(revision=revision, snapshot=part)

    def _proxy_part(self) -> tuple[str, bytes]:
        bundle = self._active.bundle
        if bundle is None:
            return "", b""
        part = snapshots.proxy_part(
            bundle.state,
            bundle.revision,
            snapshots.Ended(
                revocations=self._active.revocations,
                stops=self._active.kill_switch.stops,
                now_s=self._active.clock.now_ns() // 1_000_000_000,
            ),
        )
        return bundle.revision, part

    def _jwks_part(self) -> tuple[str, bytes]:
        return "jwks", self._jwks.part


def _response(ready: News | list[wire.Verdict]) -> wire.DecideResponse:
    match ready:
        case TicketChanged():
            changed = wire.TicketChanged(
                tenant_id=ready.tenant, escalation_id=ready.escalation, state=ready.state
            )
            return wire.DecideResponse(ticket_changed=changed)
        case RightsEnded():
            revoked = wire.Revoked(
                tenant_id=ready.tenant, agent_ids=ready.agents, session_ids=ready.sessions
            )
            return wire.DecideResponse(revoked=revoked)
        case _:
            return wire.DecideResponse(verdicts=wire.Verdicts(verdicts=ready))


def _caller(caller: wire.Caller) -> asks.Caller:
    """Raises EnvelopeInvalid where an identity is not one."""
    if not is_uuid(caller.agent_id) or not is_uuid(caller.tenant_id):
        raise EnvelopeInvalid("caller")
    if caller.transport not in {"http", "stdio"} or not caller.session_id:
        raise EnvelopeInvalid("caller")
    if caller.requester_id and len(caller.requester_id) > 128:
        raise EnvelopeInvalid("requester")
    return asks.Caller(
        tenant=TenantId(caller.tenant_id),
        agent=AgentId(caller.agent_id),
        session=SessionId(caller.session_id),
        transport="http" if caller.transport == "http" else "stdio",
        requester_id=caller.requester_id,
        requester_channel=caller.requester_channel,
        issued_at_s=caller.issued_at,
        delegation_presented=caller.delegation_presented,
        workflow_presented=caller.workflow_presented,
    )


def _digest_of(ask: wire.Ask) -> str:
    """The digest that a malformed ask named, if it can be read at all."""
    try:
        request = msgspec.json.decode(ask.request)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    digest = request.get("arguments_digest") if isinstance(request, dict) else None
    return digest if isinstance(digest, str) else ""


def _refused(verdict: decision.Verdict, active: ActivePolicy) -> Judged:
    return Judged(verdict, b"", active.bundle, None, active.age())


def _verdict(ask: wire.Ask, judged: Judged, digest: str) -> wire.Verdict:
    verdict = judged.verdict
    return wire.Verdict(
        id=ask.id,
        arguments_digest=digest,
        decision=wire.Decision(
            result=_RESULTS[verdict.result],
            reason_code=verdict.reason_code,
            reason=verdict.reason,
            codes=verdict.codes,
            policies=verdict.policies,
            obligations=verdict.obligations,
            shadow=verdict.shadow,
            engine=verdict.engine,
            engine_us=verdict.engine_us,
            action=verdict.action,
            category=verdict.category,
            retry_after_ms=verdict.retry_after_ms,
            escalation=_escalation(verdict.escalation),
        ),
        revision=_revision(judged.bundle, judged.tenant, judged.age),
        envelope=judged.envelope,
    )


def _escalation(escalation: decision.Escalation | None) -> wire.Escalation | None:
    if escalation is None:
        return None
    return wire.Escalation(
        id=escalation.id,
        state=escalation.state,
        decide_by_ms=escalation.decide_by_ms,
        execute_by_ms=escalation.execute_by_ms,
        codes=escalation.codes,
    )


def _revision(
    bundle: VerifiedBundle | None, tenant: Tenant | None, age: Freshness
) -> wire.Revision:
    if bundle is None:
        return wire.Revision(policy_state="missing")
    return wire.Revision(
        bundle_serial=bundle.serial,
        bundle_digest=bundle.digest,
        policy_revision=tenant.policy_revision if tenant else "",
        policy_state=age.state,
        bundle_age_s=age.age_s,
    )
