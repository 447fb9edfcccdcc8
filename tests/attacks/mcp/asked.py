"""Agents that are asked something while they wait for an answer, and answer well or badly.

They make good calls; whatever a tool server does, each call gets one answer. What they are asked on
the way they answer in the end, but often first with something else; and beside it all they listen
to what servers tell.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from services.common.mcp_headers import encode
from tests.attacks.mcp import mutations
from tests.attacks.mcp.ground import SERVERS, Ground, message
from tests.attacks.mcp.mutations import EVERYTHING, META, Case, bent, tree_of
from tests.fakes import mcp_wire as wire
from tests.fakes.raw_http import Reply, connected, request

#: How often a modern agent goes on with what is asked of it.
RETRIES: Final = 3
_LISTEN: Final = {
    "toolsListChanged": True, "promptsListChanged": True, "resourcesListChanged": True,
    "resourceSubscriptions": ["file:///a"],
}  # fmt: skip


@dataclass(slots=True)
class Asked:
    """Callers that share the calls among them."""

    ground: Ground
    count: int
    answers: list[Any] = field(default_factory=list)
    #: What they were asked and told, beside their answers.
    seen: Counter[str] = field(default_factory=Counter)
    _next: int = 0
    _listened: bool = False

    async def caller(self) -> None:
        ground = self.ground
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(connected(ground.url))
            sessions = {
                server: await ground.session(http, server, EVERYTHING) for server in SERVERS
            }
            answering = _Answering(self, asyncio.Queue())
            beside = [asyncio.create_task(answering.run())]
            if not self._listened:  # an agent has sixteen streams, and some are to come back to
                self._listened = True
                beside += [
                    asyncio.create_task(self._listen(server, sessions[server]))
                    for server in SERVERS
                ]
            try:
                while self._next < self.count:
                    case = mutations.good(ground.seed, self._next, SERVERS)
                    self._next += 1
                    session = "" if case.modern else sessions[case.server]
                    hear = _Hearing(answering, case, session)
                    reply = await ground.ask(http, case, session, hear=hear.part)
                    reply = await self._rest(case, reply, hear, http)
                    self._one(case, reply)
                    if case.modern:
                        await self._retried(case, message(reply), session, http)
                        await self._polled(case, message(reply), http)
                    self.answers.append(message(reply))
                    if beside[0].done():
                        beside[0].result()  # what went wrong there
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)

    async def _rest(self, case: Case, reply: Reply, hear: _Hearing, http: Any) -> Reply:
        """A stream that ended early is taken up again where it ended."""
        ground = self.ground
        while (place := _left_at(reply)) is not None:
            self.seen["resumed"] += 1
            lines = [*ground.lines(session=hear.session), ("last-event-id", place)]
            sent = request(ground.where(case.server), lines, verb="GET")
            try:
                reply = await http.ask(sent, hear=hear.part)
            except TimeoutError:
                raise AssertionError(ground.named(case, "hangs where it broke off")) from None
        return reply

    def _one(self, case: Case, reply: Reply) -> None:
        answer = message(reply)
        named = self.ground.named(case, f"{reply.status} {reply.body!r:.2000}")
        assert reply.status in {200, 404}, named
        assert (case.number, "2.0") == (answer["id"], answer["jsonrpc"]), named
        assert ("result" in answer) != ("error" in answer), named

    async def _retried(self, case: Case, answer: Any, session: str, http: Any) -> None:
        """What a modern agent is asked is a part of the answer, and a retry answers it."""
        rng = random.Random(f"retry:{self.ground.seed}:{case.number}")
        for _ in range(RETRIES):
            match answer:
                case {"result": {"resultType": "input_required", "requestState": str(state)}}:
                    pass
                case _:
                    return
            self.seen["input_required"] += 1
            asked = answer["result"].get("inputRequests", {})
            tree = orjson.loads(case.body)
            tree["params"] |= {
                "inputResponses": {name: _content(rng) for name in asked},
                "requestState": state,
            }
            if rng.random() < 0.4:
                tree["params"][rng.choice(("inputResponses", "requestState", "arguments"))] = (
                    tree_of(rng, 2)
                )
            body = mutations.spelled(rng, tree, odd=True).encode("utf-8", "surrogatepass")
            reply = await self.ground.ask(http, replace(case, body=body), session)
            answer = message(reply)

    async def _polled(self, case: Case, answer: Any, http: Any) -> None:
        """What became a task is asked for, answered, given up."""
        rng = random.Random(f"poll:{self.ground.seed}:{case.number}")
        match answer:
            case {"result": {"resultType": "task", "taskId": str(task)}}:
                self.seen["task"] += 1
            case _:
                return
        given = orjson.loads(case.body)["params"]["_meta"]
        for method in ("tasks/get", "tasks/update", "tasks/get", "tasks/cancel", "tasks/get"):
            named = task if rng.random() < 0.9 else bent(rng, task.encode()).decode("latin-1")
            params: dict[str, Any] = {"taskId": named, "_meta": given}
            if method == "tasks/update":
                params["inputResponses"] = {"q0": _content(rng)}
            tree = {"jsonrpc": "2.0", "id": case.number, "method": method, "params": params}
            headers = mutations.routing(method, {"taskId": encode(named)})
            body = orjson.dumps(tree)
            reply = await self.ground.ask(http, replace(case, headers=headers, body=body), "")
            self._one(case, reply)

    async def _listen(self, server: str, session: str) -> None:
        """A GET stream and one of `subscriptions/listen`, until this is cancelled."""
        ground = self.ground
        params = {"notifications": _LISTEN, "_meta": META}
        body = {"jsonrpc": "2.0", "id": "l", "method": "subscriptions/listen", "params": params}
        modern = [("mcp-protocol-version", wire.MODERN), ("mcp-method", "subscriptions/listen")]
        where = ground.where(server)
        got = request(where, ground.lines(session=session), verb="GET")
        listened = request(where, [*ground.lines(), *modern], orjson.dumps(body))
        async with connected(ground.url) as one, connected(ground.url) as other:
            with suppress(TimeoutError):
                await asyncio.gather(
                    one.ask(got, timeout_s=3600, hear=self._told),
                    other.ask(listened, timeout_s=3600, hear=self._told),
                )

    def _told(self, part: bytes) -> None:
        self.seen["told"] += part.count(b"data: ")


def _left_at(reply: Reply) -> str | None:
    """The id of the last event, if nothing else is in it."""
    if not reply.headers.get("content-type", "").startswith("text/event-stream"):
        return None
    *_, last, _ = [b"", *reply.body.split(b"\n\n")]
    lines = last.split(b"\n")
    if b"data: " not in lines:
        return None
    return next(line.removeprefix(b"id: ").decode() for line in lines if line.startswith(b"id: "))


@dataclass(slots=True)
class _Hearing:
    """Of one call's answer stream: the questions in it."""

    answering: _Answering
    case: Case
    session: str
    _rest: bytes = b""

    def part(self, part: bytes) -> None:
        *events, self._rest = (self._rest + part).split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data: {"):
                    asked = orjson.loads(line.removeprefix(b"data: "))
                    if "method" in asked and "id" in asked:
                        question = (self.case, self.session, asked)
                        self.answering.questions.put_nowait(question)


@dataclass(slots=True)
class _Answering:
    """One after the other, on a connection of its own."""

    asked: Asked
    questions: asyncio.Queue[tuple[Case, str, dict[str, Any]]]

    async def run(self) -> None:
        ground = self.asked.ground
        async with connected(ground.url) as http:
            while True:
                case, session, question = await self.questions.get()
                self.asked.seen[question["method"]] += 1
                rng = random.Random(f"answer:{ground.seed}:{case.number}:{question['method']}")
                good = {"jsonrpc": "2.0", "id": question["id"], "result": _content(rng)}
                sent = [orjson.dumps(good)]
                if rng.random() < 0.5:
                    sent.insert(rng.choice((0, 1)), _bad(rng, good))
                for body in sent:
                    await ground.ask(http, replace(case, headers=(), body=body), session)


def _content(rng: random.Random) -> dict[str, Any]:
    return rng.choice((
        {"action": "accept", "content": {"a": "x"}},
        {"action": "accept", "content": {"a": "x", "b": 2**60}},
        {"action": "decline"},
        {"action": "cancel"},
        {"role": "assistant", "content": {"type": "text", "text": "t"}, "model": "m"},
        {"roots": []},
    ))  # fmt: skip


def _bad(rng: random.Random, good: dict[str, Any]) -> bytes:
    """Not the answer, or the answer not quite."""
    tree = dict(good)
    change = rng.choice((
        {"id": f"{good['id']}x"}, {"id": good["id"][:-2]}, {"id": 1}, {"id": ""},
        {"result": tree_of(rng, 2)}, {"result": None}, {"error": {"code": 1, "message": "no"}},
        {"error": None}, {"method": "tools/call"}, {"jsonrpc": "1.0"}, {},
    ))  # fmt: skip
    tree |= change
    text = mutations.spelled(rng, tree, odd=True).encode("utf-8", "surrogatepass")
    return bent(rng, text) if rng.random() < 0.3 else text
