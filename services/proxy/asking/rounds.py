"""Calls that a modern tool server answers with a question of its own (`input_required`).

Decides what of it the agent gets to see, and what a retry is: the same request, answered, under a
state of ours around the server's. Each retry is a new decision about everything that goes up; a
legacy agent, which cannot retry, is asked on its open stream, and its answers make the retry.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from services.common.outbox.digests import Digester
from services.proxy import answers, bridge, encodings, messages
from services.proxy.asking import grants
from services.proxy.asking.nobody import Nobody
from services.proxy.asking.requests import Questions, Unanswered, place_of
from services.proxy.asking.screening import Unwanted, screened, url
from services.proxy.bridge import Untranslatable
from services.proxy.continuing import RELAYED_S, Carried, Relayed, Round
from services.proxy.governed import METHODS, RESPONSES, STATE, Call, Incoming, Question
from services.proxy.local import Refused
from services.proxy.seals import MAX_STATE, Unsealed
from services.proxy.snapshot import Grants

REQUESTS: Final = "inputRequests"
MAX_REQUESTS: Final = 8
#: Of one call of a legacy agent; a modern one counts its own.
MAX_TURNS: Final = 10
#: How long an agent's user may take.
ANSWER_S: Final = 600.0
ELICITATION_REQUIRED: Final = -32042


@dataclass(frozen=True, slots=True)
class Asks:
    """What a tool server wants to know, by its own names for it."""

    requests: dict[str, dict[str, Any]]
    state: str | None


@dataclass(frozen=True, slots=True)
class Rounds:
    """One per worker."""

    questions: Questions
    carried: Carried
    digester: Digester

    def continued(self, incoming: Incoming, asked: Question) -> tuple[Question, Round | None]:
        """What a retry asks: 1. answers are an object  2. without a state they are a part of the
        request like any other  3. a state of ours, for this agent and server  4. about this very
        request; for an approval, waiting.py compares. Raises Refused.
        """
        params, visit = incoming.message.params, incoming.visit
        responses = params.get(RESPONSES)
        if RESPONSES in params and type(responses) is not dict:  # 1
            raise Refused(answers.bad_params(f"{RESPONSES} must be an object"))
        if STATE not in params:  # 2
            return asked.answering(responses, None, turn=0), None
        try:
            state = self.carried.open_state(visit, str(params[STATE]))  # 3
        except Unsealed:
            raise Refused(answers.bad_params("requestState is not usable: call anew")) from None
        if isinstance(state, Round):
            if not state.answers:
                return asked, state
            earlier = messages.decode(state.answers)
            return asked.answering(earlier, state.state, turn=state.turn), state
        digest = self.digester.make(visit.caller.tenant, "arguments", asked.unanswered)
        if (state.method, state.tool, state.digest) != (asked.method, asked.tool, digest):  # 4
            raise Refused(answers.bad_params("requestState belongs to another request"))
        return asked.answering(responses, state.state, turn=state.turn), None

    def relayed(self, call: Call, found: dict[str, Any]) -> dict[str, Any]:
        """The result for a modern agent. Raises Untranslatable."""
        asks = self.asks(call, found)
        visit, asked = call.subject.visit, call.asked
        state = Relayed(
            asked.method,
            asked.tool,
            self.digester.make(visit.caller.tenant, "arguments", asked.unanswered),
            asked.turn + 1,
            asks.state,
            self.carried.now_ms() + RELAYED_S * 1000,
        )
        sealed = self.carried.seal_state(visit, state)
        if len(sealed) > MAX_STATE:
            raise Untranslatable("upstream_protocol")
        made = bridge.unmarked(found)
        if asks.requests:
            made[REQUESTS] = asks.requests
        made[STATE] = sealed
        return made

    def asks(self, call: Call, found: dict[str, Any]) -> Asks:
        """1. well-formed, not too much  2. each is granted. Raises Untranslatable."""
        given, state = found.get(REQUESTS, {}), found.get(STATE)
        if call.asked.method not in METHODS:
            raise Untranslatable("upstream_protocol")
        if type(given) is not dict or len(given) > MAX_REQUESTS:  # 1
            raise Untranslatable("upstream_protocol")
        if (state is not None and type(state) is not str) or (not given and state is None):
            raise Untranslatable("upstream_protocol")
        if not call.route.modern and call.asked.turn >= MAX_TURNS:
            raise Untranslatable("upstream_protocol")
        granted = call.subject.visit.server.grants
        return Asks(screened_all(given, told(call), granted), state)  # 2

    async def ask(self, call: Call, asks: Asks) -> Question:
        """On the open stream of a legacy agent; the question, answered. Raises Unanswered."""
        place, loop = place_of(call), asyncio.get_running_loop()
        until_s = loop.time() + ANSWER_S
        posed: dict[str, asyncio.Future[dict[str, Any]]] = {}
        responses: dict[str, Any] = {}
        try:
            for name, one in asks.requests.items():
                posed[name] = self.questions.pose(place, one["method"], _identified(one["params"]))
            for name, answer in posed.items():
                async with asyncio.timeout_at(until_s):
                    responses[name] = _response(asks.requests[name]["method"], await answer)
        except TimeoutError:
            raise Unanswered("call_again") from None
        except Unwanted as unwanted:
            raise Unanswered(unwanted.reason) from None
        finally:
            self.questions.over(place.id)
            for answer in posed.values():
                answer.cancel()
        return call.asked.answering(responses, asks.state, turn=call.asked.turn + 1)

    def sent_elsewhere(self, call: Call, error: dict[str, Any]) -> None:
        """An error by which a legacy server sends the user to a URL first is a question too. Raises
        Untranslatable.
        """
        if error.get("code") != ELICITATION_REQUIRED:
            return
        data = error.get("data")
        given = data.get("elicitations") if type(data) is dict else None
        capabilities = told(call)
        for one in given if type(given) is list else [None]:
            if type(one) is not dict or "url" not in capabilities.get("elicitation", {}):
                raise Untranslatable("capability_not_granted")
            try:
                url(one.get("url"), call.subject.visit.server.grants)
            except Unwanted as unwanted:
                raise Untranslatable(unwanted.reason) from None


def screened_all(
    given: dict[str, Any], capabilities: dict[str, Any], granted: Grants
) -> dict[str, dict[str, Any]]:
    """Questions as an agent may be shown them. Raises Untranslatable."""
    made: dict[str, dict[str, Any]] = {}
    for name, one in given.items():
        if type(one) is not dict or type(one.get("method")) is not str:
            raise Untranslatable("upstream_protocol")
        try:
            params = screened(one["method"], one.get("params", {}), capabilities, granted)
        except Unwanted as unwanted:
            raise Untranslatable(unwanted.reason) from None
        made[name] = {**one, "params": params}
    return made


def told(call: Call) -> dict[str, Any]:
    """The agent's capabilities that this server may know of. Nobody can be asked anything where the
    request was answered already.
    """
    if isinstance(call.stream, Nobody):
        return {}
    if call.route.modern:
        declared = encodings.declared_by(call.message.params)
    else:
        declared = call.session.capabilities if call.session is not None else {}
    return grants.granted(declared, call.subject.visit.server.grants)


def _identified(params: dict[str, Any]) -> dict[str, Any]:
    """Legacy agents tell one page from another by an id, which a modern server does not give."""
    if params.get("mode") != "url" or "elicitationId" in params:
        return params
    return {**params, "elicitationId": uuid4().hex}


def _response(method: str, answer: dict[str, Any]) -> Any:
    """A retry has no form for an error; a user who cannot be asked did not choose. Raises
    Unanswered.
    """
    if "result" in answer:
        return answer["result"]
    if method == grants.ELICIT:
        return {"action": "cancel"}
    raise Unanswered("capability_not_granted")
