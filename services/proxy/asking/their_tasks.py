"""Tasks of tool servers (mcp.md 8), for agents that poll: the extension, where a server is granted
it and the agent declares it.

Decides what an agent may carry of a task, and when a poll asks the authorizer again: after anything
changed since it last said yes. What an agent answers to a task's question is decided like a call.
What of an approval became a task is approval_tasks.py's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.telemetry.logging import Log
from services.proxy import answers, bridge, encodings, governed, local, messages, records
from services.proxy.answers import Answer, Rejection
from services.proxy.asking import grants
from services.proxy.asking.rounds import MAX_REQUESTS, REQUESTS, screened_all, told
from services.proxy.backends.upstream import Backends, Request, UpstreamFailed
from services.proxy.bridge import TASKS, Untranslatable
from services.proxy.calls import Recorder, Visit
from services.proxy.catalog import Catalog
from services.proxy.continuing import Carried, TheirTask
from services.proxy.governed import RESPONSES, STATE, TOOL, Call, Incoming, Question
from services.proxy.holding import Holds
from services.proxy.local import Refused
from services.proxy.messages import Message

GET: Final = "tasks/get"
UPDATE: Final = "tasks/update"
CANCEL: Final = "tasks/cancel"
STATUSES: Final = frozenset({"working", "input_required", "completed", "failed", "cancelled"})
LONGEST_MS: Final = 24 * 3600 * 1000
MAX_ID: Final = 2048
POLL_S: Final = 30.0
#: Tasks whose last news are remembered; of others the authorizer is asked again.
REMEMBERED: Final = 10_000

Govern = Callable[[Incoming, Question], Awaitable[Answer]]


@dataclass(slots=True)
class _Known:
    """What was last true of a task: its status, and until what news it may be asked for."""

    status: str
    revision: str
    mark: int
    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Poll:
    visit: Visit
    message: Message
    task: TheirTask

    @property
    def sealed(self) -> str:
        return str(self.message.params["taskId"])


class TheirTasks:
    """One per worker."""

    def __init__(
        self,
        *,
        carried: Carried,
        catalog: Catalog,
        backends: Backends,
        holds: Holds,
        recorder: Recorder,
        govern: Govern,
        clock: Clock,
        log: Log,
    ) -> None:
        self._carried = carried
        self._catalog = catalog
        self._backends = backends
        self._holds = holds
        self._recorder = recorder
        self._govern = govern
        self._clock = clock
        self._log = log
        self._known: dict[str, _Known] = {}

    def created(self, call: Call, found: dict[str, Any], since: int) -> dict[str, Any]:
        """A call that became a task, as the agent is told of it; `since` is the last news (Holds)
        from before it was decided. Raises Untranslatable.
        """
        if call.asked.method != TOOL:
            raise Untranslatable("upstream_protocol")
        if TASKS not in told(call).get("extensions", {}):
            raise Untranslatable("capability_not_granted")
        theirs, status = found.get("taskId"), found.get("status")
        if type(theirs) is not str or not 1 <= len(theirs) <= MAX_ID or not _is_status(status):
            raise Untranslatable("upstream_protocol")
        now_ms, ttl_ms = self._carried.now_ms(), _ttl(found)
        task = TheirTask(
            call.subject.id,
            call.asked.tool,
            call.subject.arguments_digest,
            theirs,
            now_ms + ttl_ms,
        )
        visit = call.subject.visit
        self._remember(task, _Known(status, visit.revision, since, task.until_ms))
        made = bridge.unmarked(found)
        for name in (STATE, REQUESTS):
            made.pop(name, None)
        return {**made, "taskId": self._carried.seal_task(visit, task), "ttlMs": ttl_ms}

    async def answer(self, incoming: Incoming, task: TheirTask) -> Answer:
        """`tasks/get` and `tasks/cancel`. Raises Refused."""
        visit, message = incoming.visit, incoming.message
        self._granted(visit)
        poll = _Poll(visit=visit, message=message, task=task)
        if message.method == GET and not self._fresh(poll):
            return await self._anew(incoming, poll)
        request = Request(
            method=message.method,
            params=await self._params(poll),
            name=task.theirs,
            timeout_s=POLL_S,
        )
        try:
            reply = await self._backends.of(visit.server).ask(visit, request)
        except UpstreamFailed as failure:
            raise Refused(local.failed(failure.reason)) from None
        if reply.result is None:
            return local.relay_error(message, reply.error or {}, messages.INTERNAL_ERROR)
        if message.method == CANCEL:
            return answers.result(message.id, b'{"resultType":"complete"}')
        try:
            state = self.state(poll, reply.result)
        except Untranslatable as odd:
            raise Refused(local.failed(odd.reason)) from None
        await self._noted(poll, state["status"])
        return answers.result(message.id, messages.encode(state))

    async def allow(self, incoming: Incoming, task: TheirTask) -> None:
        """Its agent may ask for it now. Raises Refused."""
        self._granted(incoming.visit)
        poll = _Poll(visit=incoming.visit, message=incoming.message, task=task)
        if not self._fresh(poll):
            await self._asked_anew(incoming, poll)

    async def news(
        self, incoming: Incoming, task: TheirTask, found: dict[str, Any]
    ) -> dict[str, Any] | None:
        """What its server says of it unasked, as a poll would tell; where something changed since
        it could last be asked for, a poll does. None: nothing that can be told. Raises Refused.
        """
        self._granted(incoming.visit)
        poll = _Poll(visit=incoming.visit, message=incoming.message, task=task)
        if not self._fresh(poll):
            return await self._asked_anew(incoming, poll)
        try:
            state = self.state(poll, found)
        except Untranslatable:
            return None
        await self._noted(poll, state["status"])
        return state

    def update(self, incoming: Incoming, task: TheirTask) -> Question:
        """What an agent answers to a task's question. Raises Refused."""
        self._granted(incoming.visit)
        params = incoming.message.params
        if type(params.get(RESPONSES)) is not dict or STATE in params:
            raise Refused(answers.bad_params(f"{RESPONSES} must be an object, and stand alone"))
        given = {name: value for name, value in params.items() if name != "_meta"}
        meta = bridge.own_meta(params)
        return governed.about_task(UPDATE, {**given, "taskId": task.theirs}, task, meta=meta)

    def shown(self, call: Call, found: dict[str, Any], since: int) -> dict[str, Any]:
        """The result of a decided request about a task. Raises Untranslatable."""
        task = call.asked.task
        if task is None or call.asked.method == UPDATE:
            return {"resultType": bridge.COMPLETE}
        visit = call.subject.visit
        state = self.state(_Poll(visit=visit, message=call.message, task=task), found)
        known = _Known(state["status"], visit.revision, since, task.until_ms)
        self._remember(task, known)
        return state

    def state(self, poll: _Poll, found: dict[str, Any]) -> dict[str, Any]:
        """A task as its agent sees it. Raises Untranslatable."""
        if not _is_status(found.get("status")):
            raise Untranslatable("upstream_protocol")
        made = bridge.unmarked(found)
        made.pop(STATE, None)
        if REQUESTS in made:
            capabilities = grants.granted(
                encodings.declared_by(poll.message.params), poll.visit.server.grants
            )
            given = made[REQUESTS]
            if type(given) is not dict or len(given) > MAX_REQUESTS:
                raise Untranslatable("upstream_protocol")
            made[REQUESTS] = screened_all(given, capabilities, poll.visit.server.grants)
        if type(made.get("result")) is dict:
            made["result"] = bridge.unmarked(made["result"])
        if type(made.get("error")) is dict:
            made["error"] = answers.theirs(made["error"], messages.INTERNAL_ERROR)
        return {**made, "taskId": poll.sealed, "ttlMs": _ttl(found), "resultType": bridge.COMPLETE}

    def sweep(self) -> None:
        now_ms = self._carried.now_ms()
        self._known = {one: known for one, known in self._known.items() if known.until_ms > now_ms}

    # --- whether it may be asked for ------------------------------------------------------------

    def _granted(self, visit: Visit) -> None:
        """A server that lost the extension has no tasks any more. Raises Refused."""
        if TASKS not in visit.server.grants.extensions:
            raise not_found()

    def _fresh(self, poll: _Poll) -> bool:
        """Nothing changed since it was last allowed to be asked for."""
        known = self._known.get(poll.task.id)
        if known is None or known.revision != poll.visit.revision:
            return False
        return not self._holds.changed(poll.visit.caller, poll.task.id, known.mark)

    async def _anew(self, incoming: Incoming, poll: _Poll) -> Answer:
        """1. the agent may still see the tool  2. the authorizer, as for any call. Raises Refused,
        as if there were no such task.
        """
        visit = poll.visit
        try:
            backend = self._backends.of(visit.server)
            view = await self._catalog.view(visit, await self._catalog.listing(visit, backend))  # 1
        except UpstreamFailed as failure:
            raise Refused(local.failed(failure.reason)) from None
        except BehavryError:
            raise Refused(local.failed("policy_unavailable")) from None
        if poll.task.tool not in view.names:
            raise not_found()
        arguments = {"taskId": poll.task.theirs}
        return await self._govern(incoming, governed.about_task(GET, arguments, poll.task))  # 2

    async def _asked_anew(self, incoming: Incoming, poll: _Poll) -> dict[str, Any]:
        """The state that its server tells then. Raises Refused."""
        answer = await self._anew(incoming, poll)
        said = messages.decode(answer.body) if answer.body else {}
        if type(said.get("result")) is not dict:
            raise not_found()
        found: dict[str, Any] = said["result"]
        return found

    async def _params(self, poll: _Poll) -> dict[str, Any]:
        visit, params = poll.visit, poll.message.params
        try:
            facts = await self._backends.of(visit.server).facts(visit)
        except UpstreamFailed as failure:
            raise Refused(local.failed(failure.reason)) from None
        capabilities = grants.granted(encodings.declared_by(params), visit.server.grants)
        decided = {"taskId": poll.task.theirs}
        return bridge.outgoing(params, facts, decided=decided, told=capabilities)

    # --- what is remembered ---------------------------------------------------------------------

    def _remember(self, task: TheirTask, known: _Known) -> None:
        if len(self._known) >= REMEMBERED:
            self._known.pop(next(iter(self._known)))
        self._known[task.id] = known

    async def _noted(self, poll: _Poll, status: str) -> None:
        """A record for each change of its status; polls that tell nothing new leave none."""
        known = self._known.get(poll.task.id)
        if known is None or known.status == status:
            return
        known.status = status
        record = records.task_changed(
            poll.visit, task_id=poll.task.id, tool=poll.task.tool, status=status, clock=self._clock
        )
        try:
            await self._recorder.put(record)
        except BehavryError as failure:
            self._log.error("not_recorded", reason=failure.code)


def missing_extension() -> Refused:
    return Refused(
        Rejection(
            status=400,
            code=answers.MISSING_CAPABILITY,
            message="Missing required client capability",
            reason="invalid_params",
            data={"requiredCapabilities": {"extensions": {TASKS: {}}}},
        )
    )


def not_found() -> Refused:
    return Refused(answers.bad_params("Task not found"))


def _is_status(status: Any) -> TypeGuard[str]:
    return type(status) is str and status in STATUSES


def _ttl(found: Mapping[str, Any]) -> int:
    given = found.get("ttlMs")
    return min(given, LONGEST_MS) if type(given) is int and given >= 0 else LONGEST_MS
