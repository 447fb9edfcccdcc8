"""Calls that wait for a person: how long, what their agents are told meanwhile, what the end is.

Nothing here lets a call run. A wait ends in an answer, or in "ask again", and then the authorizer
decides anew; an agent's own `accept` shortens nothing but the wait.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import Struct

from services.common.errors import BehavryError
from services.common.telemetry.logging import Log
from services.proxy import answers, encodings
from services.proxy.answers import Answer
from services.proxy.calls import Escalation, Escalations, Result, Visit
from services.proxy.continuing import Carried, Round, Shown
from services.proxy.encodings import Row
from services.proxy.governed import RESPONSES, Call, Incoming, Question
from services.proxy.holding import Holds, Woken
from services.proxy.local import Refused
from services.proxy.messages import Message
from services.proxy.replicas.post import Post

MAX_ROUNDS: Final = 10
PROGRESS_S: Final = 15
#: The reason of a denial that nobody spoke; what waits is asked about again after so long.
UNANSWERED: Final = "policy_unavailable"
AGAIN_S: Final = 1.0
#: What proxies tell each other.
DECLINED: Final = "declined"


class _Declined(Struct, frozen=True, array_like=True):
    """What an agent's user did not want to look at, told to whoever holds the call."""

    tenant: str
    agent: str
    escalation: str


_declined: Final = msgspec.msgpack.Decoder(_Declined)


@dataclass(slots=True, kw_only=True, eq=False)
class Wait(ABC):
    """One request's wait, over all its asks."""

    incoming: Incoming
    #: The escalation that it waits for, or continues.
    escalation_id: str = ""
    #: The agent's side gave it up.
    declined: bool = False
    #: What was intercepted last.
    call: Call | None = None
    #: Escalations that its records tell of.
    recorded: set[str] = field(default_factory=set)
    #: The last ask was not answered.
    unanswered: bool = False

    def waits_on(self, call: Call) -> Call:
        """An ask that nobody answered changes nothing for what waits already: neither does it run,
        nor is it denied.
        """
        silent = call.decision.reason_code == UNANSWERED and call.decision.result is Result.DENY
        self.unanswered = silent and self.call is not None
        return self.call if self.unanswered and self.call is not None else call

    @abstractmethod
    async def next(self, call: Call, since: int) -> Answer | None:
        """After an Intercept. None: ask again. `since` is the mark from before the ask."""

    @abstractmethod
    async def settled(self) -> None:
        """It was decided."""


@dataclass(slots=True, kw_only=True, eq=False)
class OpenWait(Wait):
    """The request stays open while it waits."""

    desk: Waits
    row: Row
    until_s: float
    #: How often the agent was shown the page in an answer.
    shown: int = 0

    async def next(self, call: Call, since: int) -> Answer | None:
        escalation = waited_for(call)
        other = escalation.id != self.escalation_id
        self.call, self.escalation_id = call, escalation.id
        self.recorded.add(escalation.id)
        left_s = self.until_s - asyncio.get_running_loop().time()
        if left_s <= 0 or (other and self.row is Row.INPUT_REQUIRED):  # the page comes first
            return self._ended(call)
        await self.incoming.stream.open()
        if other and self.row is Row.PUSHED:
            await self.incoming.stream.send(self.desk.pushed(self, call))
        woken = await self._wait(since, min(left_s, AGAIN_S) if self.unanswered else left_s)
        again = woken is Woken.CHANGED or (woken is Woken.OVER and self.unanswered)
        return None if again else self._ended(call)

    async def settled(self) -> None:
        self.desk.ended(self)
        if self.row is Row.PUSHED and self.escalation_id:
            await self.incoming.stream.send(encodings.elicited(self.escalation_id))

    async def _wait(self, since: int, seconds: float) -> Woken:
        incoming = self.incoming
        session, request_id = incoming.session, incoming.message.id
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(self._tell())
            woken = await self.desk.holds.wait(
                incoming.visit.caller,
                self.escalation_id,
                since=since,
                seconds=seconds,
                request=(session.id, request_id) if session and request_id is not None else None,
                gone=incoming.stream.gone,
            )
            telling.cancel()
        return woken

    async def _tell(self) -> None:
        """Progress, if the agent asked for it."""
        token = encodings.progress_token(self.incoming.message.params)
        total_s = int(self.desk.hold_s)
        loop = asyncio.get_running_loop()
        while token is not None:
            done_s = round(max(0.0, self.desk.hold_s - (self.until_s - loop.time())), 3)
            await self.incoming.stream.send(encodings.progress(token, done_s, total_s))
            await asyncio.sleep(PROGRESS_S)

    def _ended(self, call: Call) -> Answer:
        self.desk.ended(self)
        if self.row is not Row.INPUT_REQUIRED or self.shown >= MAX_ROUNDS:
            return encodings.pending(call)
        return self.desk.input_required(call, self.shown + 1)


class Waits:
    """One per worker."""

    def __init__(
        self,
        *,
        holds: Holds,
        escalations: Escalations,
        carried: Carried,
        post: Post,
        hold_s: float,
        page_url: str,
        log: Log,
    ) -> None:
        self.holds = holds
        self._post = post
        post.notes(DECLINED, self._hear_declined)
        self.hold_s = hold_s
        self._escalations = escalations
        self._carried = carried
        self._page_url = page_url
        self._log = log
        #: Those whose agents were asked on an open stream, by escalation.
        self._pushed: dict[str, set[OpenWait]] = {}

    def begin(self, incoming: Incoming, row: Row) -> Wait:
        """An agent that is shown the page in an answer does not wait for that answer."""
        hold_s = 0.0 if row is Row.INPUT_REQUIRED else self.hold_s
        return self._wait(incoming, row, hold_s)

    async def resumed(self, incoming: Incoming, asked: Question, digest: str, state: Round) -> Wait:
        """1. a state about this very request  2. an answer to what was asked for  3. declined:
        given up. Raises Refused.
        """
        params, visit = incoming.message.params, incoming.visit
        if (state.method, state.tool, state.digest) != (asked.method, asked.tool, digest):  # 1
            raise Refused(answers.bad_params("requestState belongs to another request"))
        action = _action(params.get(RESPONSES))  # 2
        wait = self._wait(incoming, Row.INPUT_REQUIRED, self.hold_s)
        wait.escalation_id, wait.shown = state.escalation, state.number
        if action != "accept":  # 3
            wait.declined = True
            await self.give_up(visit, state.escalation)
        return wait

    async def answered(self, visit: Visit, message: Message, shown: Shown) -> Answer:
        """A legacy agent's answer to an elicitation of ours: here, or from another process."""
        if (message.result or {}).get("action") in {"decline", "cancel"}:
            caller = visit.caller
            said = _Declined(caller.tenant, caller.agent, shown.escalation)
            self._decline(said)
            await self._post.tell(DECLINED, msgspec.msgpack.encode(said))
            await self.give_up(visit, shown.escalation)
            self.holds.ticket_changed(caller.tenant, shown.escalation)
        return answers.ACCEPTED

    async def _hear_declined(self, body: bytes) -> None:
        said = _declined.decode(body)
        if self._decline(said):
            self.holds.ticket_changed(said.tenant, said.escalation)

    def _decline(self, said: _Declined) -> bool:
        """Whether anybody waits for it here."""
        waiting = self._pushed.get(said.escalation, ())
        for wait in waiting:
            caller = wait.incoming.visit.caller
            if (caller.tenant, caller.agent) == (said.tenant, said.agent):
                wait.declined = True
        return bool(waiting)

    async def give_up(self, visit: Visit, escalation_id: str) -> None:
        """The call is denied even where the authorizer cannot be told: then the ticket runs out."""
        try:
            await self._escalations.cancel(visit, escalation_id)
        except BehavryError as failure:
            self._log.warning("escalation_not_cancelled", reason=failure.code)

    def input_required(self, call: Call, number: int) -> Answer:
        escalation = waited_for(call)
        state = Round(
            call.asked.method,
            call.asked.tool,
            call.subject.arguments_digest,
            number,
            escalation.id,
            escalation.decide_by_ms,
            *call.asked.answered(),
        )
        sealed = self._carried.seal_state(call.subject.visit, state)
        return encodings.input_required(call, self._page(escalation), sealed)

    def pushed(self, wait: OpenWait, call: Call) -> bytes:
        """The request that shows the page on the open stream; its answer is a request of its own,
        and may reach another worker.
        """
        escalation, session = waited_for(call), call.session
        self._pushed.setdefault(escalation.id, set()).add(wait)
        visit = call.subject.visit
        asked = self._carried.seal_shown(visit, session, escalation.id) if session else ""
        return encodings.elicitation(call, self._page(escalation), asked)

    def ended(self, wait: OpenWait) -> None:
        for escalation_id in wait.recorded & self._pushed.keys():
            self._pushed[escalation_id].discard(wait)
            if not self._pushed[escalation_id]:
                del self._pushed[escalation_id]

    def _wait(self, incoming: Incoming, row: Row, hold_s: float) -> OpenWait:
        until_s = asyncio.get_running_loop().time() + hold_s
        return OpenWait(incoming=incoming, desk=self, row=row, until_s=until_s)

    def _page(self, escalation: Escalation) -> str:
        return f"{self._page_url}/approve/{escalation.id}"


def waited_for(call: Call) -> Escalation:
    """No Intercept without one reaches a wait (clients/decide.py)."""
    found = call.decision.escalation
    if found is None:
        raise ValueError("an Intercept without an escalation")
    return found


def _action(responses: Any) -> str:
    """Raises Refused unless it answers the one thing that was asked for."""
    given = responses.get(encodings.APPROVAL) if type(responses) is dict else None
    action = given.get("action") if type(given) is dict else None
    if type(action) is not str or action not in encodings.ACTIONS or len(responses) != 1:
        raise Refused(answers.bad_params(f"{RESPONSES} must answer what was asked for"))
    return action
