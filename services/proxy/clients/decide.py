"""The `Decide` stream (core.md 6): one per worker, what waits goes out together.

Decides nothing itself: whatever is not a well-formed answer to exactly the question asked, in time,
is a denial. The caller's own timer says when its time is up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final, assert_never

import grpc
import msgspec

from behavry.authorizer.v1 import authorizer_pb2, authorizer_pb2_grpc
from services.common.errors import BehavryError
from services.common.ids import is_uuid
from services.common.rpc.client import Link
from services.common.rpc.errors import known
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log
from services.proxy.calls import (
    Ask,
    Caller,
    Decision,
    Escalation,
    Offered,
    Result,
    Revision,
    Visit,
    denied,
)
from services.proxy.holding import Holds

MAX_BATCH: Final = 64
MAX_CALLERS: Final = 4096
MAX_BATCH_BYTES: Final = 1024 * 1024
VIEW_S: Final = 2.0
FIRST_DELAY_S: Final = 0.05
LONGEST_DELAY_S: Final = 1.0
#: Findings of no scan: scanning is not part of this version, and policies can tell.
NO_FINDINGS: Final = (
    b'{"items":[],"max_severity":null,"tags":[],"content_risk":0,"scan":"none","overflow":false}'
)
_RESULTS: Final = {
    authorizer_pb2.DECISION_RESULT_ALLOW: Result.ALLOW,
    authorizer_pb2.DECISION_RESULT_DENY: Result.DENY,
    authorizer_pb2.DECISION_RESULT_INTERCEPT: Result.INTERCEPT,
}
#: One that cannot be named: nothing can wait for it or have used it up.
UNUSABLE: Final = Escalation(id="", state="")
_UNAVAILABLE: Final = "policy_unavailable"
_list: Final = msgspec.json.Decoder(list[Any])


class _Pending:
    __slots__ = ("ask", "digest", "id", "waiter")

    def __init__(self, id: int, ask: Ask, waiter: asyncio.Future[Decision]) -> None:
        self.id = id
        self.ask = ask
        self.digest = ask.arguments_digest
        self.waiter = waiter


class _Stream:
    """One connection's worth of questions: when it breaks, all of them are denied."""

    def __init__(self) -> None:
        self.waiting: dict[int, _Pending] = {}

    def settle(self, verdict: authorizer_pb2.Verdict) -> None:
        pending = self.waiting.pop(verdict.id, None)
        if pending is None or pending.waiter.done():
            return  # late, twice or never asked
        pending.waiter.set_result(read(verdict, pending.digest))

    def break_off(self) -> None:
        waiting, self.waiting = self.waiting, {}
        for pending in waiting.values():
            if not pending.waiter.done():
                pending.waiter.set_result(denied(_UNAVAILABLE))


class DecideClient:
    """`run` keeps the stream open; `decide` may be called before it is."""

    def __init__(
        self,
        link: Link,
        *,
        worker: str,
        timeout_ms: int,
        holds: Holds,
        counters: Counters,
        log: Log,
    ) -> None:
        self._link = link
        self._stub = authorizer_pb2_grpc.AuthorizerServiceStub(link.channel)
        self._worker = worker
        self._timeout_ms = timeout_ms
        self._holds = holds
        self._log = log
        self._last_id = 0
        self._queue: deque[_Pending] = deque()
        self._cancels: list[int] = []
        self._callers: dict[tuple[Caller, str, bool, bool], authorizer_pb2.Caller] = {}
        self._news = asyncio.Event()
        self._asks = counters.counter("proxy.decide.asks")
        self._messages = counters.counter("proxy.decide.messages")
        self._timeouts = counters.counter("proxy.decide.timeouts")
        self._streams = counters.counter("proxy.decide.streams")
        self.connected = asyncio.Event()

    async def decide(self, ask: Ask) -> Decision:
        """Never raises, never takes longer than the budget: no answer is a denial."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Decision] = loop.create_future()
        self._last_id += 1
        self._asks.value += 1
        pending = _Pending(self._last_id, ask, waiter)
        self._queue.append(pending)
        self._news.set()
        timer = loop.call_later(self._timeout_ms / 1000, self._expire, pending)
        try:
            return await waiter
        finally:
            timer.cancel()

    async def view(self, visit: Visit, tools: tuple[Offered, ...]) -> frozenset[str]:
        """Raises BehavryError."""
        request = authorizer_pb2.ViewRequest(
            tenant_id=visit.caller.tenant,
            agent_id=visit.caller.agent,
            session_id=visit.caller.session,
            server=visit.slug,
            tools=[
                authorizer_pb2.OfferedTool(name=tool.name, schema_hash=tool.schema_hash)
                for tool in tools
            ],
        )
        try:
            answer = await self._stub.View(request, timeout=VIEW_S, metadata=self._link.metadata())
        except (grpc.aio.AioRpcError, OSError) as failure:
            if isinstance(failure, OSError):
                raise BehavryError("POLICY_UNAVAILABLE", "no token to call with") from None
            raise known(failure) from None
        return frozenset(answer.visible)

    async def report(self, tenant: str, server: str, tools: list[tuple[str, str, bytes]]) -> None:
        """Tells which tools a server offers. Raises BehavryError."""
        request = authorizer_pb2.ReportToolsRequest(
            tenant_id=tenant,
            server=server,
            tools=[
                authorizer_pb2.ReportedTool(name=name, schema_hash=digest, definition=definition)
                for name, digest, definition in tools
            ],
        )
        try:
            await self._stub.ReportTools(request, timeout=VIEW_S, metadata=self._link.metadata())
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from None

    async def cancel(self, visit: Visit, escalation_id: str) -> str:
        """The state that it has now, empty if there is none. Raises BehavryError."""
        request = authorizer_pb2.CancelEscalationRequest(
            tenant_id=visit.caller.tenant,
            agent_id=visit.caller.agent,
            escalation_id=escalation_id,
        )
        try:
            answer = await self._stub.CancelEscalation(
                request, timeout=VIEW_S, metadata=self._link.metadata()
            )
        except grpc.aio.AioRpcError as failure:
            raise known(failure) from None
        except OSError:
            raise BehavryError("POLICY_UNAVAILABLE", "no token to call with") from None
        return str(answer.state)

    async def run(self) -> None:
        """Opens the stream, and again when it ended, as long as the process lives."""
        delay_s = FIRST_DELAY_S
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._serve()
            except* (grpc.aio.AioRpcError, OSError) as failures:
                failure = failures.exceptions[0]
                code = failure.code().name if isinstance(failure, grpc.aio.AioRpcError) else "token"
                self._log.warning("decide_stream_ended", code=code)
            if asyncio.get_running_loop().time() - began > LONGEST_DELAY_S:
                delay_s = FIRST_DELAY_S
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)

    async def _serve(self) -> None:
        """One stream until it ends or the authorizer drains."""
        stream = _Stream()
        call = self._stub.Decide(metadata=self._link.metadata(), wait_for_ready=True)
        try:
            hello = authorizer_pb2.Hello(worker=self._worker)
            await call.write(authorizer_pb2.DecideRequest(hello=hello))
            self._streams.value += 1
            self.connected.set()
            self._holds.reconnected()
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(self._write(call, stream))
                await self._read(call, stream)
                writing.cancel()
        finally:
            self.connected.clear()
            stream.break_off()
            call.cancel()

    async def _read(self, call: Any, stream: _Stream) -> None:
        async for response in _responses(call):
            if response.HasField("verdicts"):
                for verdict in response.verdicts.verdicts:
                    stream.settle(verdict)
            elif response.HasField("ticket_changed"):
                changed = response.ticket_changed
                self._holds.ticket_changed(changed.tenant_id, changed.escalation_id)
            elif response.HasField("revoked"):
                revoked = response.revoked
                self._holds.revoked(
                    revoked.tenant_id, frozenset(revoked.agent_ids), frozenset(revoked.session_ids)
                )
            elif response.HasField("drain") and not stream.waiting:
                return
        # A stream that ends without an error is an authorizer that went away in peace.

    async def _write(self, call: Any, stream: _Stream) -> None:
        """Sends whatever waits the moment the last write returned; never waits for more."""
        while True:
            await self._news.wait()
            batch = self._take()
            if batch:
                message = authorizer_pb2.DecideRequest()
                for one in batch:
                    self._encode(one, message.asks.asks.add())
                stream.waiting.update((one.id, one) for one in batch)
                self._messages.value += 1
                try:
                    await call.write(message)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    call.cancel()  # the reader hears of it and breaks off
                    return
            for expired in self._cancels:
                stream.waiting.pop(expired, None)
            self._cancels.clear()
            if not self._queue:
                self._news.clear()

    def _take(self) -> list[_Pending]:
        batch: list[_Pending] = []
        size = 0
        while self._queue and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES // 2:
            pending = self._queue.popleft()
            if pending.waiter.done():
                continue
            batch.append(pending)
            size += len(pending.ask.arguments) + len(pending.ask.features) + 1024
        return batch

    def _encode(self, pending: _Pending, into: authorizer_pb2.Ask) -> None:
        ask = pending.ask
        into.id = pending.id
        into.budget_ms = self._timeout_ms
        into.caller.CopyFrom(self._caller(ask.visit))
        into.request = ask.request
        into.features = ask.features
        into.findings = NO_FINDINGS
        into.arguments_json = ask.arguments
        if ask.escalation_id:
            into.escalation_id = ask.escalation_id

    def _caller(self, visit: Visit) -> authorizer_pb2.Caller:
        """Made once per token and form: the next call of a session says the same."""
        key = (visit.caller, visit.requester_id, visit.delegation, visit.workflow)
        made = self._callers.get(key)
        if made is None:
            if len(self._callers) >= MAX_CALLERS:
                self._callers.clear()
            caller = visit.caller
            made = self._callers[key] = authorizer_pb2.Caller(
                tenant_id=caller.tenant,
                agent_id=caller.agent,
                session_id=caller.session,
                transport="http",
                requester_id=visit.requester_id,
                requester_channel="header" if visit.requester_id else "",
                issued_at=caller.issued_at_s,
                delegation_presented=visit.delegation,
                workflow_presented=visit.workflow,
                identity="token",
            )
        return made

    def _expire(self, pending: _Pending) -> None:
        if not pending.waiter.done():
            self._timeouts.value += 1
            self._cancels.append(pending.id)
            pending.waiter.set_result(denied(_UNAVAILABLE))
        while self._queue and self._queue[0].waiter.done():  # no stream to take them
            self._queue.popleft()


async def _responses(call: Any) -> AsyncIterator[authorizer_pb2.DecideResponse]:
    while (response := await call.read()) is not grpc.aio.EOF:
        yield response


def read(verdict: authorizer_pb2.Verdict, arguments_digest: str) -> Decision:
    """1. about these arguments  2. a known result  3. nothing that we cannot do  4. what waits can
    be waited for, what is allowed by a person was used up. Else a denial.
    """
    if verdict.arguments_digest != arguments_digest:  # 1
        return denied(_UNAVAILABLE)
    said = verdict.decision
    result = _RESULTS.get(said.result)
    if result is None:  # 2
        return denied("engine_invalid")
    try:
        obligations = _list.decode(said.obligations) if said.obligations else []
        shadow = _list.decode(said.shadow) if said.shadow else []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return denied("engine_invalid")
    code = said.reason_code
    codes = tuple(said.codes)
    if obligations and result is Result.ALLOW:  # 3: this version can honour none of them
        result, code, codes = Result.DENY, "obligation_unknown", (*codes, "obligation_unknown")
    escalation = _escalation(said)  # 4
    if result is Result.INTERCEPT and not _waits(escalation):
        result, code = Result.DENY, "escalation_unavailable"
        codes, escalation = (*codes, code), None
    if result is Result.ALLOW and not _used_up(escalation):
        return denied("engine_invalid")
    match result:
        case Result.ALLOW:
            usable = bool(verdict.envelope)
        case Result.DENY | Result.INTERCEPT:
            usable = bool(code)
        case _:
            assert_never(result)
    if not usable:
        return denied("engine_invalid")
    revision = verdict.revision
    return Decision(
        result=result,
        reason_code=code,
        reason=said.reason[:256],
        codes=codes or ((code,) if code else ()),
        policies=tuple(said.policies),
        obligations=tuple(obligations),
        shadow=tuple(shadow),
        engine=said.engine,
        engine_us=said.engine_us,
        action=said.action,
        category=said.category,
        revision=Revision(
            bundle_serial=revision.bundle_serial,
            bundle_digest=revision.bundle_digest,
            policy_revision=revision.policy_revision,
            policy_state=revision.policy_state,
            bundle_age_s=revision.bundle_age_s,
        ),
        envelope=verdict.envelope,
        escalation=escalation if escalation is not UNUSABLE else None,
        retry_after_ms=said.retry_after_ms,
    )


def _escalation(said: authorizer_pb2.Decision) -> Escalation | None:
    if not said.HasField("escalation"):
        return None
    found = said.escalation
    if not is_uuid(found.id):
        return UNUSABLE
    return Escalation(
        id=found.id,
        state=found.state,
        decide_by_ms=found.decide_by_ms,
        codes=tuple(found.codes),
    )


def _waits(escalation: Escalation | None) -> bool:
    """Whether there is a ticket that somebody can decide on."""
    return escalation is not None and escalation.state == "pending" and escalation.decide_by_ms > 0


def _used_up(escalation: Escalation | None) -> bool:
    """Whether an Allow needed nobody, or somebody's approval that is spent by now."""
    return escalation is None or escalation.state == "consumed"
