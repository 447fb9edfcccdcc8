"""The host's face to workers: Streamable HTTP, in the era of the child that is asked (mcp.md 10.1).

Turns requests into what stdio.py does for a proxy's own children, and what children say into
events. It speaks a legacy child's dialect as well as a modern one's: a modern face would leave no
way for what a legacy child asks. Who asks is believed: workers alone can open the socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, Final, TypeVar

from services.common.telemetry.logging import Log, describe
from services.proxy import answers, messages
from services.proxy.answers import UNSUPPORTED_VERSION, Answer
from services.proxy.backends import host_wire
from services.proxy.backends.conversation import LISTEN
from services.proxy.backends.stdio import StdioBackend
from services.proxy.backends.upstream import (
    Hear,
    Heard,
    Listening,
    Request,
    Session,
    UpstreamFailed,
)
from services.proxy.bridge import Facts
from services.proxy.calls import Visit
from services.proxy.eras import MODERN, SERVER_META
from services.proxy.pipeline import TooLarge
from services.proxy.transports.listener import ABORT
from services.proxy.transports.reply import Disconnected, Receive, Reply, Send, send_answer

#: A worker sends what it took from an agent, written anew.
MAX_BODY: Final = 32 * 1024 * 1024
#: A child was told by us already, and a request that is given up shows by its stream's end.
_OURS: Final = frozenset({"notifications/initialized", "notifications/cancelled"})
#: What is asked on the way to a call: nothing that a child says by itself belongs to it.
_QUIET: Final = frozenset({
    "completion/complete", "logging/setLevel", "ping", "prompts/list", "resources/list",
    "resources/templates/list", "resources/unsubscribe", "tasks/cancel", "tasks/get", "tasks/list",
    "tasks/result", "tools/list",
})  # fmt: skip
_REFUSED: Final = Answer(400, b"{}")
_DONE: Final = Answer(200, b"", ())

Scope = dict[str, Any]
T = TypeVar("T")


class Door:
    """The ASGI application."""

    def __init__(self, stdio: StdioBackend, log: Log) -> None:
        self._stdio = stdio
        self._log = log
        self._listening: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        """Streams without an end end now."""
        for task in list(self._listening):
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The outermost handler: a worker whose request fails here has no answer to use."""
        if scope["type"] != "http":
            return
        reply = Reply(receive, send, scope.get(ABORT, _nothing))
        reply.headed = True  # what fails says so in a header, however late
        try:
            await reply.give(self._answer(scope["method"], dict(scope["headers"]), reply))
        except Disconnected:
            return
        except Exception as failure:  # the outermost middleware's own handler
            self._log.error("request_failed", error=describe(failure))
            await send_answer(send, Answer(500, b"{}"))

    async def _answer(self, verb: str, sent: Mapping[bytes, bytes], reply: Reply) -> Answer:
        try:
            visit = host_wire.read_visit(sent.get(host_wire.VISIT, b""))
            session = _session(sent)
            body = await reply.read(MAX_BODY)
            message = messages.decode(body) if verb == "POST" else None
        except (host_wire.Garbled, TooLarge, messages.Malformed):
            return _REFUSED
        try:
            if verb == "GET":
                await self._listen(visit, Listening(), session, reply)
                return _DONE
            if type(message) is not dict:
                return _DONE if verb == "DELETE" else _REFUSED  # the child is the agent's
            if "method" not in message or "id" not in message:
                return await self._told(visit, message, session)
            modern = sent.get(b"mcp-protocol-version", b"").decode("latin-1") in MODERN
            return await self._asked(visit, message, session, reply, modern=modern)
        except UpstreamFailed as failure:
            header = (host_wire.FAILED.encode(), host_wire.failure_header(failure))
            # In the middle of a stream there is no place for a header: it ends without an answer.
            return Answer(503, b"", (header,))

    # --- messages -------------------------------------------------------------------------------

    async def _told(self, visit: Visit, message: dict[str, Any], session: Session | None) -> Answer:
        """A notification, or an answer to what the child asked."""
        if message.get("method") not in _OURS:
            del message["jsonrpc"]
            await self._stdio.tell(visit, message, session)
        return answers.ACCEPTED

    async def _asked(
        self,
        visit: Visit,
        message: dict[str, Any],
        session: Session | None,
        reply: Reply,
        *,
        modern: bool,
    ) -> Answer:
        number, method, params = message["id"], message["method"], message.get("params", {})
        if method == "ping":
            return answers.result(number, b"{}")
        if method == "initialize":
            return await self._opened(visit, number, params)
        facts = await self._stdio.facts(visit)
        if method == "server/discover":
            return _discovered(number, facts)
        if facts.modern is not modern:  # it is another program now
            return _other_era(number)
        if method == LISTEN:
            await self._listen(visit, Listening(params=params), session, reply)
            return answers.result(number, b"{}")
        token = (params.get("_meta") or {}).get("progressToken")
        request = Request(method=method, params=params, progress=token)
        hear = None if method in _QUIET else _hears(reply)
        asking = self._stdio.ask(visit, request, session, hear)
        answered = await _until_gone(asking, reply)
        if answered is None:
            return _DONE
        if answered.result is not None:
            return answers.result(number, messages.encode(answered.result))
        encoded = messages.encode({"jsonrpc": "2.0", "id": number, "error": answered.error})
        return Answer(200, encoded)

    async def _opened(self, visit: Visit, number: Any, params: dict[str, Any]) -> Answer:
        """A conversation of the agent's own with a legacy child."""
        session = await self._stdio.open(visit, params["capabilities"])
        if session is None:
            return _other_era(number)
        facts = await self._stdio.facts(visit)
        made = {
            "protocolVersion": facts.version,
            "capabilities": facts.capabilities,
            "serverInfo": facts.server_info,
            **({} if facts.instructions is None else {"instructions": facts.instructions}),
        }
        answer = answers.result(number, messages.encode(made))
        known_by = host_wire.session_id(session.id).encode("ascii")
        return Answer(answer.status, answer.body, ((b"mcp-session-id", known_by),))

    async def _listen(
        self, visit: Visit, listening: Listening, session: Session | None, reply: Reply
    ) -> None:
        """Until the child or the worker ends it, or the host does."""
        reply.headed = False  # it becomes a stream even if nothing is said
        hearing = self._stdio.listen(visit, listening, _hears(reply), session)
        await _until_gone(hearing, reply, known=self._listening)
        await reply.open()


async def _until_gone(
    work: Coroutine[Any, Any, T], reply: Reply, *, known: set[asyncio.Task[Any]] | None = None
) -> T | None:
    """None where the worker does not wait for it any more: the child is told. Raises
    UpstreamFailed.
    """
    known = set() if known is None else known
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_kept(work))
        reply.when_gone = partial(_cancel, task)
        known.add(task)
        task.add_done_callback(known.discard)
        if reply.gone.is_set():
            task.cancel()
    if task.cancelled():
        return None
    outcome = task.result()
    if isinstance(outcome, UpstreamFailed):
        raise outcome
    return outcome


def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()


async def _kept(work: Coroutine[Any, Any, T]) -> T | UpstreamFailed:
    """A failure as a value: a group of tasks would wrap it."""
    try:
        return await work
    except UpstreamFailed as failure:
        return failure


def _hears(reply: Reply) -> Hear:
    def hear(heard: Heard) -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": heard.method, "params": heard.params}
        if heard.id is not None:
            message["id"] = heard.id
        reply.push(messages.encode(message))

    return hear


def _session(sent: Mapping[bytes, bytes]) -> Session | None:
    """Raises Garbled."""
    known_by = sent.get(b"mcp-session-id")
    if known_by is None:
        return None
    return Session(host_wire.read_session_id(known_by), "")


def _discovered(number: Any, facts: Facts) -> Answer:
    if not facts.modern:
        return answers.error(number, messages.METHOD_NOT_FOUND, "a legacy child")
    made = {
        "supportedVersions": [facts.version],
        "capabilities": facts.capabilities,
        "_meta": {SERVER_META: facts.server_info},
        **({} if facts.instructions is None else {"instructions": facts.instructions}),
    }
    return answers.result(number, messages.encode(made))


def _other_era(number: Any) -> Answer:
    """The worker meets the child anew."""
    return answers.error(number, UNSUPPORTED_VERSION, "a child of the other era")


def _nothing() -> None:
    """Where a connection cannot be ended by force."""
