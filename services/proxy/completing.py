"""`completion/complete`: values that the agent's user may mean (mcp.md 4, class scan).

Nothing runs, so that nobody is asked; what an agent has typed leaves the plane all the same, so
that the outcome is recorded, with a digest of what was asked and not a word of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.ids import RequestId, uuid7
from services.common.outbox.digests import Digester
from services.common.telemetry.logging import Log
from services.proxy import answers, bridge, messages, records
from services.proxy.answers import Answer
from services.proxy.backends.upstream import Backend, Reply, Request, Session, UpstreamFailed
from services.proxy.bridge import Facts, Untranslatable
from services.proxy.calls import Recorder, Visit
from services.proxy.eras import Route
from services.proxy.messages import Message
from services.proxy.pages import NAME
from services.proxy.records import Subject

METHOD: Final = "completion/complete"
TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Completed:
    status: str
    error: str = ""
    upstream_status: int | None = None
    encoded: bytes = b""
    #: The tool server's own error.
    refused: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completing:
    recorder: Recorder
    digester: Digester
    clock: Clock
    log: Log

    async def answer(
        self,
        visit: Visit,
        message: Message,
        route: Route,
        backend: Backend,
        session: Session | None,
    ) -> Answer:
        """1. what is asked, well-formed  2. the tool server  3. the outcome's record, whatever
        happens  4. the answer. Raises UpstreamFailed, Untranslatable.
        """
        facts = await backend.facts(visit)
        meta = bridge.own_meta(message.params)
        params = bridge.outgoing(message.params, facts, meta=meta)  # 1
        request = Request(method=METHOD, params=params, timeout_s=TIMEOUT_S)
        began_ns = self.clock.monotonic_ns()
        done = _Completed("indeterminate", "internal")
        try:
            reply = await backend.ask(visit, request, session)  # 2
            done = _read(reply, facts, modern=route.modern)
        except UpstreamFailed as failure:
            done = _Completed("upstream_error", failure.reason, failure.status)
            raise
        except Untranslatable as odd:
            done = _Completed("upstream_error", odd.reason)
            raise
        finally:
            await self._record(visit, message, done, self.clock.monotonic_ns() - began_ns)  # 3
        if done.refused is not None:  # 4
            told = answers.theirs(done.refused, messages.INTERNAL_ERROR)
            return answers.error(message.id, told["code"], told["message"], data=told.get("data"))
        return answers.result(message.id, done.encoded)

    async def _record(self, visit: Visit, message: Message, done: _Completed, took_ns: int) -> None:
        tenant = visit.caller.tenant
        asked = messages.encode(message.params, sort=True)
        subject = Subject(
            visit=visit,
            id=RequestId(uuid7(self.clock.now_ns())),
            method=METHOD,
            arguments_digest=self.digester.make(tenant, "arguments", asked),
            arguments_size=len(asked),
        )
        digest = self.digester.make(tenant, "result", done.encoded) if done.encoded else None
        record = records.completed(
            subject,
            status=done.status,
            error=done.error or None,
            upstream_status=done.upstream_status,
            result_digest=digest,
            result_size=len(done.encoded),
            took_us=took_ns // 1000,
            clock=self.clock,
        )
        try:
            await self.recorder.put(record, durable=False)
        except BehavryError as failure:
            self.log.error("outcome_not_recorded", reason=failure.code)


def well_formed(params: dict[str, Any]) -> bool:
    """A prompt that agents may see, or a resource; and what is typed so far."""
    ref, argument = params.get("ref"), params.get("argument")
    if type(ref) is not dict or type(argument) is not dict:
        return False
    if type(argument.get("name")) is not str or type(argument.get("value")) is not str:
        return False
    match ref.get("type"):
        case "ref/prompt":
            name = ref.get("name")
            return type(name) is str and NAME.fullmatch(name) is not None
        case "ref/resource":
            return type(ref.get("uri")) is str
        case _:
            return False


def _read(reply: Reply, facts: Facts, *, modern: bool) -> _Completed:
    """Raises Untranslatable."""
    if reply.result is None:
        error = dict(reply.error or {})
        error["code"] = bridge.error_code(error["code"], METHOD, facts, to_modern=modern)
        return _Completed("tool_error", str(error["code"]), reply.status, refused=error)
    result = bridge.result(reply.result, METHOD, facts, to_modern=modern)
    return _Completed("ok", "", reply.status, messages.encode(result))
