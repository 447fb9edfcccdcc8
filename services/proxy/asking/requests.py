"""Requests of tool servers to legacy agents: relayed on an open stream, under ids of our own.

Decides which of them an agent gets to see, and to which of them an answer belongs: one answer each,
from the session that was asked, as long as somebody waits for it; where another process does, the
answer is carried to it. Whether the answer may go up is decided like a call (`govern`); what is
refused is told to the server, and recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from uuid import uuid4

from msgspec.structs import replace

from services.common.clock import Clock
from services.common.errors import BehavryError
from services.common.telemetry.counters import Counters
from services.common.telemetry.logging import Log
from services.proxy import answers, governed, local, messages, records
from services.proxy.answers import Answer
from services.proxy.asking import grants
from services.proxy.asking.nobody import Nobody
from services.proxy.asking.screening import Unwanted, screened
from services.proxy.backends.upstream import Backends, Heard, UpstreamFailed
from services.proxy.calls import Recorder, Spawn, Stream, Visit
from services.proxy.continuing import Carried, Posed, Shown
from services.proxy.governed import Call, Incoming, Question
from services.proxy.local import Refused
from services.proxy.messages import Message
from services.proxy.replicas.handover import Handover
from services.proxy.replicas.post import NoWord
from services.proxy.seals import Unsealed
from services.proxy.sessions import Session

#: Open at once on one stream (mcp.md 11).
MAX_OPEN: Final = 8
#: Of one stream, refusals beyond these are counted and not recorded.
MAX_RECORDED: Final = 16
#: And beyond these the server is not even told.
MAX_REFUSED: Final = 256
CANCELLED: Final = "notifications/cancelled"

Govern = Callable[[Incoming, Question], Awaitable[Answer]]


class Approvals(Protocol):
    """Where answers to questions of our own go."""

    async def answered(self, visit: Visit, message: Message, shown: Shown) -> Answer: ...


class Unanswered(Exception):
    """What a waiting call gets instead of an answer. `reason` is an ErrorReason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Place:
    """Where an agent is asked: the stream of one request, or one beside any."""

    id: str
    visit: Visit
    session: Session | None
    stream: Stream


@dataclass(slots=True, kw_only=True, eq=False)
class _Asked:
    """One question that waits for its answer. `answer` is the call's that waits, else the tool
    server does, and knows the question by `upstream_id`.
    """

    place: Place
    method: str
    sealed: str
    upstream_id: int | str | None = None
    answer: asyncio.Future[dict[str, Any]] | None = None
    #: Somebody has been told how it ended.
    told: bool = False


@dataclass(slots=True, eq=False)
class _Open:
    """Of one place: what waits, by our keys; how much was refused."""

    asked: dict[str, _Asked] = field(default_factory=dict)
    refused: int = 0


class Questions:
    """One per worker."""

    def __init__(
        self,
        *,
        approvals: Approvals,
        carried: Carried,
        backends: Backends,
        recorder: Recorder,
        govern: Govern,
        spawn: Spawn,
        handover: Handover,
        me: str,
        counters: Counters,
        clock: Clock,
        log: Log,
    ) -> None:
        self._approvals = approvals
        self._handover = handover
        self._me = me
        self._carried = carried
        self._backends = backends
        self._recorder = recorder
        self._govern = govern
        self._spawn = spawn
        self._clock = clock
        self._log = log
        self._relayed = counters.counter("proxy.asked.relayed")
        self._refused = counters.counter("proxy.asked.refused")
        self._places: dict[str, _Open] = {}
        self._keys: dict[str, _Asked] = {}

    # --- from the tool server -------------------------------------------------------------------

    def heard(self, call: Call, heard: Heard) -> None:
        """What a legacy tool server asks, or takes back, while it works on a call."""
        self.ask(place_of(call), heard)

    def ask(self, place: Place, heard: Heard) -> None:
        """Relayed, or refused; neither is waited for."""
        if heard.id is None:
            if heard.method == CANCELLED:
                self._withdraw(place, heard.params)
            return
        told = _told(place)
        try:
            params = screened(heard.method, heard.params, told, place.visit.server.grants)
            self._pose(place, heard.method, params, upstream_id=heard.id)
        except Unwanted as unwanted:
            self._refuse(place, heard, unwanted.reason)

    def over(self, place_id: str) -> None:
        """Nobody waits for answers there any more."""
        if self._places:
            gone = self._places.pop(place_id, None)
            for key in gone.asked if gone is not None else ():
                del self._keys[key]

    # --- to and from the agent ------------------------------------------------------------------

    def pose(
        self, place: Place, method: str, params: dict[str, Any]
    ) -> asyncio.Future[dict[str, Any]]:
        """The same for a call that waits here; `params` are screened. The future's result has one
        member, `result` or `error`, or it raises Unanswered. Raises Unwanted.
        """
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pose(place, method, params, answer=answer)
        return answer

    async def answered(self, incoming: Incoming) -> Answer:
        """1. the id is one of ours, for this session  2. somebody waits, here or in another process
        3. accepted; what is decided about it the agent is not told, the protocol has no form for
        that. Raises Refused.
        """
        opened = self._opened(incoming)  # 1
        if isinstance(opened, Shown):
            return await self._approvals.answered(incoming.visit, incoming.message, opened)
        if opened.key not in self._keys and opened.at not in {"", self._me}:  # 2
            try:
                answer = await self._handover.to(opened.at, "answer", incoming)
            except NoWord:
                answer = None
            if answer is None:
                raise _unasked()
            return answer
        return self._take(incoming, opened)

    async def handed(self, incoming: Incoming) -> Answer:
        """What reached another process, which looked at it like this one does. Raises Refused."""
        opened = self._opened(incoming)
        if isinstance(opened, Shown):
            raise _unasked()
        return self._take(incoming, opened)

    def _opened(self, incoming: Incoming) -> Shown | Posed:
        session, message = incoming.session, incoming.message
        try:
            if session is None or type(message.id) is not str:
                raise Unsealed
            return self._carried.open_request(incoming.visit, session, message.id)
        except Unsealed:
            raise _unasked() from None

    def _take(self, incoming: Incoming, opened: Posed) -> Answer:
        asked, message = self._keys.get(opened.key), incoming.message
        if asked is None:
            raise _unasked()
        if message.result is None and message.error is None:
            raise Refused(answers.bad_request("a result or an error must be an object"))
        self._forget(opened.key, asked)
        self._spawn("answer", lambda: self._decide(asked, incoming))  # 3
        return answers.ACCEPTED

    async def _decide(self, asked: _Asked, incoming: Incoming) -> None:
        """What the agent answered goes up if it is allowed, and else that there is no answer."""

        async def deliver(answer: dict[str, Any]) -> None:
            asked.told = True
            await self._tell(asked, answer)

        question = governed.answer(asked.method, incoming.message, deliver)
        try:
            await self._govern(replace(incoming, headers={}, stream=Nobody()), question)
        finally:
            if not asked.told:
                asked.told = True
                await self._tell(asked, None)

    async def _tell(self, asked: _Asked, answer: dict[str, Any] | None) -> None:
        """Raises UpstreamFailed, but for an answer that is none."""
        if asked.answer is not None:
            if asked.answer.done():
                return
            if answer is None:
                asked.answer.set_exception(Unanswered("policy"))
            else:
                asked.answer.set_result(answer)
            return
        if answer is not None:
            await self._send(asked.place, {"id": asked.upstream_id, **answer})
            return
        error = {"code": answers.POLICY, "message": "no answer"}
        try:
            await self._send(asked.place, {"id": asked.upstream_id, "error": error})
        except UpstreamFailed as failure:
            self._log.info("no_answer_not_told", reason=failure.reason)

    async def _send(self, place: Place, message: dict[str, Any]) -> None:
        backend = self._backends.of(place.visit.server)
        upstream = local.upstream_session(place.session)
        await backend.tell(place.visit, {"jsonrpc": "2.0", **message}, upstream)

    # --- what is open ---------------------------------------------------------------------------

    def _pose(
        self,
        place: Place,
        method: str,
        params: dict[str, Any],
        *,
        upstream_id: int | str | None = None,
        answer: asyncio.Future[dict[str, Any]] | None = None,
    ) -> None:
        opened = self._places.setdefault(place.id, _Open())
        if place.session is None or len(opened.asked) >= MAX_OPEN:
            raise Unwanted("capacity")
        key = uuid4().hex
        sealed = self._carried.seal_posed(place.visit, place.session, key, self._me)
        asked = _Asked(
            place=place, method=method, sealed=sealed, upstream_id=upstream_id, answer=answer
        )
        opened.asked[key] = self._keys[key] = asked
        self._relayed.value += 1
        request = {"jsonrpc": "2.0", "id": sealed, "method": method, "params": params}
        place.stream.push(messages.encode(request))

    def _withdraw(self, place: Place, params: dict[str, Any]) -> None:
        """The tool server takes a request back; the agent knows it by another id."""
        given, opened = params.get("requestId"), self._places.get(place.id)
        for key, asked in list(opened.asked.items()) if opened is not None else ():
            if asked.answer is None and asked.upstream_id == given:
                self._forget(key, asked)
                named = {"requestId": asked.sealed}
                if type(params.get("reason")) is str:
                    named["reason"] = params["reason"]
                place.stream.push(answers.notification(CANCELLED, named))

    def _forget(self, key: str, asked: _Asked) -> None:
        self._keys.pop(key, None)
        opened = self._places.get(asked.place.id)
        if opened is not None:
            opened.asked.pop(key, None)

    # --- refusals -------------------------------------------------------------------------------

    def _refuse(self, place: Place, heard: Heard, reason: str) -> None:
        self._refused.value += 1
        opened = self._places.setdefault(place.id, _Open())
        opened.refused += 1
        if opened.refused > MAX_REFUSED:
            return
        recorded = opened.refused <= MAX_RECORDED

        async def refuse() -> None:
            if recorded:
                await self.refused(place.visit, heard.method, reason)
            error = {"code": messages.METHOD_NOT_FOUND, "message": "not supported"}
            try:
                await self._send(place, {"id": heard.id, "error": error})
            except UpstreamFailed as failure:
                self._log.info("refusal_not_told", reason=failure.reason)

        self._spawn("refuse server request", refuse)

    async def refused(self, visit: Visit, method: str, reason: str) -> None:
        """The record of something that a tool server may not ask."""
        record = records.rejected(
            visit,
            method=method,
            code=messages.METHOD_NOT_FOUND,
            reason=reason,
            clock=self._clock,
        )
        try:
            await self._recorder.put(record)
        except BehavryError as failure:
            self._log.error("not_recorded", reason=failure.code)


def place_of(call: Call) -> Place:
    subject = call.subject
    return Place(id=subject.id, visit=subject.visit, session=call.session, stream=call.stream)


def _unasked() -> Refused:
    return Refused(answers.bad_request("nothing was asked"))


def _told(place: Place) -> dict[str, Any]:
    """A modern agent's capabilities are of its request, and no legacy server is told of them."""
    declared = place.session.capabilities if place.session is not None else {}
    return grants.granted(declared, place.visit.server.grants)
