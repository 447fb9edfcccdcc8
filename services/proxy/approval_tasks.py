"""Calls that wait for a person as tasks (mcp.md 8), for agents that poll instead of waiting.

Decides what each poll is told, and when one leads to asking again: after something changed. A
task's arguments are in the memory of the process that it began in and nowhere else: a poll that
reaches another one is carried there, unless the result waits already where all can find it. Where
arguments are lost, the agent is told to call again, and the approval serves that call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from msgspec.structs import replace

from services.common.clock import rfc3339
from services.proxy import answers, bridge, encodings, messages
from services.proxy.answers import Answer
from services.proxy.asking.nobody import Nobody
from services.proxy.asking.their_tasks import TheirTasks, missing_extension, not_found
from services.proxy.calls import Spawn, Visit
from services.proxy.continuing import Carried, Task, TheirTask
from services.proxy.governed import Call, Incoming, Question
from services.proxy.local import Refused
from services.proxy.messages import Message
from services.proxy.replicas.handover import Handover
from services.proxy.replicas.post import NoWord, Post
from services.proxy.seals import Unsealed
from services.proxy.sessions import holder
from services.proxy.waiting import Wait, Waits, waited_for

METHODS: Final = frozenset({"tasks/get", "tasks/cancel"})
PER_AGENT: Final = 64
#: Bytes of them that are kept for one agent, all its tasks together.
MAX_ARGUMENTS: Final = 4 * 1024 * 1024
POLL_MS: Final = 5000
MAX_RESULT: Final = 1024 * 1024
KEPT_MS: Final = 600_000
LONGEST_MS: Final = 24 * 3600 * 1000
#: A poll that started the run waits so long for a quick tool.
QUICK_S: Final = 2.0
_MS: Final = 1_000_000

#: What `next` answers a poll: it goes on waiting.
WAITING: Final = answers.ACCEPTED

Govern = Callable[[Incoming, Question, Wait], Awaitable[Answer]]


@dataclass(slots=True, kw_only=True, eq=False)
class TaskWait(Wait):
    """From the call that became a task to the end of what is kept of it."""

    desk: Tasks
    asked: Question
    #: Bytes of its arguments.
    size: int
    task: Task | None = None
    id: str = ""
    #: What came later than this leads to asking again.
    since: int = 0
    changed_ms: int = 0
    running: asyncio.Task[None] | None = None
    #: The members `status` and what comes with it, once it ended.
    ended: dict[str, Any] | None = None

    async def next(self, call: Call, since: int) -> Answer | None:
        self.call, self.escalation_id = call, waited_for(call).id
        self.recorded.add(self.escalation_id)
        if not self.unanswered:  # else the next poll asks again
            self.since = since
        return self.desk.created(self, call) if self.task is None else WAITING

    async def settled(self) -> None:
        """The next poll tells."""


class Tasks:
    """One per worker."""

    def __init__(
        self,
        *,
        waits: Waits,
        carried: Carried,
        theirs: TheirTasks,
        govern: Govern,
        spawn: Spawn,
        handover: Handover,
        post: Post,
    ) -> None:
        self._handover = handover
        self._post = post
        self._waits = waits
        self._theirs = theirs
        self._carried = carried
        self._govern = govern
        self._spawn = spawn
        self._kept: dict[str, TaskWait] = {}
        #: Ended and forgotten: nobody is told to call again.
        self._over: dict[str, int] = {}

    def begin(self, incoming: Incoming, asked: Question) -> Wait | None:
        """None: with arguments of this size the agent would have too many."""
        size = len(asked.canonical)
        caller = incoming.visit.caller
        mine, bytes_kept = 0, size
        for one in self._kept.values():
            other = one.incoming.visit.caller
            if (other.tenant, other.agent) == (caller.tenant, caller.agent):
                mine += 1
                bytes_kept += one.size
        if mine >= PER_AGENT or bytes_kept > MAX_ARGUMENTS:
            return None
        kept = {name: value for name, value in incoming.headers.items() if name[:4] == b"mcp-"}
        # Nothing of the request is kept but what is asked for: no credential, no connection.
        lean = replace(incoming, headers=kept, stream=Nobody())
        return TaskWait(incoming=lean, desk=self, asked=asked, size=size)

    def created(self, wait: TaskWait, call: Call) -> Answer:
        """The task, instead of a result."""
        escalation, now_ms = waited_for(call), self._carried.now_ms()
        until_ms = min(escalation.decide_by_ms + KEPT_MS, now_ms + LONGEST_MS)
        task = Task(
            call.subject.id,
            call.asked.tool,
            call.subject.arguments_digest,
            "approval",
            escalation.id,
            now_ms,
            until_ms,
            self._post.me,
        )
        wait.task, wait.changed_ms = task, now_ms
        wait.id = self._carried.seal_task(call.subject.visit, task)
        self._kept[task.id] = wait
        made = {**self._state(task, wait.id, wait, {"status": "working"}), "resultType": "task"}
        made["_meta"] = {
            answers.DECISION_META: encodings.data(call, "intercept", "approval_pending")
        }
        return answers.result(call.message.id, messages.encode(made))

    async def answer(self, incoming: Incoming) -> Answer:
        """`tasks/get` and `tasks/cancel`, of tool servers' tasks too. Raises Refused."""
        visit, message = incoming.visit, incoming.message
        task = self._open(visit, message)
        if isinstance(task, TheirTask):
            return await self._theirs.answer(incoming, task)
        wait = self._kept.get(task.id)
        if wait is None and task.at not in {"", self._post.me}:
            answer = await self._elsewhere(incoming, task)
            if answer is not None:
                return answer
        return await self._answer(incoming, task, wait)

    async def handed(self, incoming: Incoming) -> Answer | None:
        """A request that reached another process, about a task that began here. Raises Refused."""
        task = self._open(incoming.visit, incoming.message)
        wait = self._kept.get(task.id)
        if isinstance(task, TheirTask) or wait is None:
            return None
        return await self._answer(incoming, task, wait)

    async def _elsewhere(self, incoming: Incoming, task: Task) -> Answer | None:
        """1. a result that waits for whoever asks  2. the process that has the arguments. None:
        neither is there. Raises Refused.
        """
        visit, message = incoming.visit, incoming.message
        if message.method == "tasks/get":
            for found in await self._post.get(holder(visit), _place(task)):  # 1
                return answers.result(message.id, found)
        try:
            return await self._handover.to(task.at, "task", incoming)  # 2
        except NoWord:  # it works on it
            if message.method != "tasks/get":
                return None
            sealed = str(message.params["taskId"])
            made = self._told(task, sealed, None, {"status": "working"})
            return answers.result(message.id, made)

    async def _answer(self, incoming: Incoming, task: Task, wait: TaskWait | None) -> Answer:
        visit, message = incoming.visit, incoming.message
        if message.method == "tasks/cancel":
            await self._cancel(visit, task, wait)
            return answers.result(message.id, b'{"resultType":"complete"}')
        if wait is None:
            ended = _lost(task, visit)
        else:
            await self._poll(visit, wait)
            ended = wait.ended or {"status": "working"}
        made = self._told(task, str(message.params["taskId"]), wait, ended)
        return answers.result(message.id, made)

    def update(self, incoming: Incoming) -> Question:
        """`tasks/update`: an approval is nobody's to answer here. Raises Refused."""
        task = self._open(incoming.visit, incoming.message)
        if not isinstance(task, TheirTask):
            raise not_found()
        return self._theirs.update(incoming, task)

    def sweep(self) -> None:
        """Forgets what nobody may ask for any more, and results after 10 minutes."""
        self._theirs.sweep()
        now_ms = self._carried.now_ms()
        for task_id, wait in list(self._kept.items()):
            until_ms = wait.task.until_ms if wait.task is not None else 0
            if wait.ended is not None:
                until_ms = min(until_ms, wait.changed_ms + KEPT_MS)
            if until_ms < now_ms and wait.running is None:
                del self._kept[task_id]
                self._over[task_id] = now_ms + LONGEST_MS
        self._over = {one: until for one, until in self._over.items() if until > now_ms}

    def _open(self, visit: Visit, message: Message) -> Task | TheirTask:
        """1. the extension is declared  2. a task of this agent's at this server, not too old."""
        if not bridge.knows_tasks(encodings.declared_by(message.params)):  # 1
            raise missing_extension()
        try:
            task = self._carried.open_task(visit, str(message.params.get("taskId", "")))  # 2
        except Unsealed:
            raise not_found() from None
        if task.id in self._over:
            raise not_found()
        return task

    async def _poll(self, visit: Visit, wait: TaskWait) -> None:
        holds = self._waits.holds
        if wait.ended is None and wait.running is None:
            if not holds.changed(visit.caller, wait.escalation_id, wait.since):
                return
            wait.running = self._spawn("approval task", lambda: self._run(visit, wait))
        if wait.running is not None:
            await asyncio.wait({wait.running}, timeout=QUICK_S)

    async def _cancel(self, visit: Visit, task: Task, wait: TaskWait | None) -> None:
        """What runs already is not stopped; what waits is denied, and recorded so."""
        if wait is None:
            await self._waits.give_up(visit, task.escalation)
        elif wait.ended is None and wait.running is None:
            wait.declined = True
            wait.running = self._spawn("approval task", lambda: self._run(visit, wait))
            await self._waits.give_up(visit, wait.escalation_id)
            if wait.running is not None:
                await asyncio.wait({wait.running}, timeout=QUICK_S)

    async def _run(self, visit: Visit, wait: TaskWait) -> None:
        """Asks again, and runs what is allowed; whoever polled may be gone meanwhile."""
        first = wait.incoming.visit
        visit = replace(
            visit,
            requester_id=first.requester_id,
            delegation=first.delegation,
            workflow=first.workflow,
        )
        answer = answers.internal_error()
        try:
            answer = await self._govern(replace(wait.incoming, visit=visit), wait.asked, wait)
        except Refused as refused:
            answer = answers.rejected(None, refused.why)
        finally:
            wait.running = None
            if answer is not WAITING:
                wait.ended = _ended(wait, answer)
                wait.changed_ms = self._carried.now_ms()
        if wait.ended is not None and wait.task is not None:
            made = self._told(wait.task, wait.id, wait, wait.ended)
            await self._post.put(holder(visit), _place(wait.task), made, ttl_s=KEPT_MS // 1000)

    def _told(self, task: Task, sealed: str, wait: TaskWait | None, ended: dict[str, Any]) -> bytes:
        made = {**self._state(task, sealed, wait, ended), "resultType": "complete"}
        return messages.encode(made)

    def _state(
        self, task: Task, sealed: str, wait: TaskWait | None, ended: dict[str, Any]
    ) -> dict[str, Any]:
        changed_ms = wait.changed_ms if wait is not None else task.created_ms
        until_ms = task.until_ms - KEPT_MS
        if wait is not None and wait.ended is not None:
            until_ms = min(task.until_ms, wait.changed_ms + KEPT_MS)
        return {
            "taskId": sealed,
            "createdAt": rfc3339(task.created_ms * _MS),
            "lastUpdatedAt": rfc3339(changed_ms * _MS),
            "ttlMs": max(0, until_ms - task.created_ms),
            "pollIntervalMs": POLL_MS,
            **ended,
        }


def _place(task: Task) -> str:
    return f"task:{task.id}"


def _ended(wait: TaskWait, answer: Answer) -> dict[str, Any]:
    if wait.declined:
        return {"status": "cancelled", "statusMessage": "escalation_cancelled"}
    if len(answer.body) > MAX_RESULT and wait.call is not None:
        answer = encodings.failure(wait.call, "capacity")  # it ran, and cannot be kept
    said = messages.decode(answer.body)
    if "result" in said:
        return {"status": "completed", "result": said["result"]}
    return {"status": "failed", "error": said["error"]}


def _lost(task: Task, visit: Visit) -> dict[str, Any]:
    data = answers.decision_data(
        verdict="intercept",
        reason="call_again",
        decision_id=task.id,
        revision=visit.revision,
        escalation_id=task.escalation,
    )
    text = "This call can no longer be run: call again with the same arguments."
    return {"status": "completed", "result": answers.tool_error(text, data, modern=True)}
