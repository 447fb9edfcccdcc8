"""From a message to a question: what exactly would run, on what. Pure.

Decides which methods need a decision (mcp.md 4, class F), which bytes are their arguments, and what
of a request this version refuses because nobody could decide on it yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from orjson import Fragment

from services.common.ids import RequestId
from services.common.mcp_headers import decode
from services.proxy import bridge, features, messages
from services.proxy.answers import Rejection, bad_params
from services.proxy.backends.upstream import Backend
from services.proxy.bridge import Facts
from services.proxy.calls import Ask, Decision, Resource, Stream, Visit
from services.proxy.catalog import Tool
from services.proxy.continuing import TheirTask
from services.proxy.eras import Route
from services.proxy.messages import Message
from services.proxy.records import Subject
from services.proxy.sessions import Session

TOOL: Final = "tools/call"
#: Of a legacy agent; a modern one names resources in a listening request.
SUBSCRIBE: Final = "resources/subscribe"
METHODS: Final = frozenset({TOOL, "resources/read", "prompts/get"})
MODERN_METHODS: Final = METHODS | {"tasks/update"}
LEGACY_METHODS: Final = METHODS | {SUBSCRIBE}
MAX_ARGUMENTS: Final = 64 * 1024
MAX_URI: Final = 8 * 1024
#: Of answers, in the sealed state of an approval.
MAX_CARRIED: Final = 32 * 1024
#: How an agent of the modern era continues what waits for a person.
STATE: Final = "requestState"
RESPONSES: Final = "inputResponses"
#: The names under which policies find, in `features.keys`, that something stands beside arguments.
BESIDE: Final = "_beside"
META: Final = "_meta"
HEADERS: Final = "_headers"
#: Members of params with a rule of their own.
_ANSWERS: Final = frozenset({STATE, RESPONSES})
_APART: Final = _ANSWERS | {"_meta"}
_OF_A_TOOL: Final = _APART | {"name", "arguments"}

Deliver = Callable[[dict[str, Any]], Awaitable[None]]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What would run: `canonical` is digested, and `params` goes up, made of the same values."""

    method: str
    tool: str
    #: What `Mcp-Name` says upstream.
    name: str
    #: What policies read, as a tree and as bytes.
    arguments: dict[str, Any]
    encoded: bytes
    #: What else goes up: members of params that the protocol does not know, and answers.
    beside: dict[str, Any] = {}
    #: And of the agent's own `_meta`. Policies see it and the record has its digest, but it makes
    #: no other call of this one: some clients put a new number into each. No approval is about it.
    meta: dict[str, Any] = {}
    #: The arguments alone where nothing stands beside them; else both, in an array: no arguments
    #: are written as one, so that neither can be taken for the other.
    canonical: bytes
    #: The agent says that it continues something; what, is yet to be found out (asking/rounds.py).
    continues: bool = False
    #: How often the tool server was answered before it got this far.
    turn: int = 0
    #: Without any answers; empty where there are none.
    base: bytes = b""
    #: An answer goes back to who asked, and is no request of its own.
    deliver: Callable[[], Awaitable[None]] | None = None
    #: A tool server's task that it is about.
    task: TheirTask | None = None

    @property
    def is_tool(self) -> bool:
        return self.method == TOOL

    @property
    def unanswered(self) -> bytes:
        """What is the same however often the tool server asks for more."""
        return self.base or self.canonical

    def answering(
        self, responses: dict[str, Any] | None, state: str | None, *, turn: int
    ) -> Question:
        """The same question with answers to what the tool server asked for."""
        answered: dict[str, Any] = {}
        if responses is not None:
            answered[RESPONSES] = responses
        if state is not None:
            answered[STATE] = state
        beside = {name: v for name, v in self.beside.items() if name not in _ANSWERS} | answered
        return replace(
            self,
            beside=beside,
            canonical=canonical(self.arguments, beside) if beside else self.encoded,
            base=self.unanswered,
            turn=turn,
            continues=False,
        )

    def answered(self) -> tuple[bytes, str | None, int]:
        """What `answering` was given, to be carried by the agent; nothing where it was not."""
        if not self.base:
            return b"", None, 0
        given = messages.encode(self.beside.get(RESPONSES))
        return given, self.beside.get(STATE), self.turn

    @property
    def portable(self) -> bool:
        """Whether an agent could carry all that."""
        given, state, _ = self.answered()
        return len(given) + len(state or "") <= MAX_CARRIED

    def params(self) -> dict[str, Any]:
        """For the tool server, without `_meta`."""
        if self.is_tool:
            made: dict[str, Any] = {"name": self.tool, "arguments": Fragment(self.encoded)}
        else:
            made = {name: bridge.raw(value) for name, value in self.arguments.items()}
        for name, value in self.beside.items():
            made[name] = bridge.raw(value)
        return made

    def seen_beside(self, passed: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
        """What features are derived from beside the arguments: everything that goes up but a
        server's own state, under names that no argument has. `passed`: headers.
        """
        beside = {name: value for name, value in self.beside.items() if name != STATE}
        headers = {name: decode(value) for name, value in passed}
        seen: dict[str, Any] = {}
        for name, value in ((BESIDE, beside), (META, self.meta), (HEADERS, headers)):
            if value:
                shown = name
                while shown in self.arguments:
                    shown += "_"
                seen[shown] = value
        return seen


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """A governed request as it came; the same one, however often it is asked about."""

    visit: Visit
    message: Message
    route: Route
    session: Session | None
    headers: Mapping[bytes, bytes]
    stream: Stream


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """A server and a tool as they are now, or why that cannot be told."""

    backend: Backend | None = None
    facts: Facts | None = None
    tool: Tool | None = None
    #: Headers of the agent that travel on beside those that the final body implies.
    passed: tuple[tuple[str, str], ...] = ()
    failure: str = ""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one call after it was decided."""

    subject: Subject
    decision: Decision
    message: Message
    route: Route
    asked: Question
    session: Session | None
    stream: Stream
    live: Live
    began_ns: int
    decided_ns: int


class _Request(msgspec.Struct, frozen=True, gc=False):
    """The section `request` of the envelope, as far as the proxy knows it."""

    id: str
    kind: str
    method: str
    server: str
    tool: str
    resource: str
    resource_kind: str
    arguments_omitted: bool
    arguments_digest: str
    schema_hash: str | None


_encoder: Final = msgspec.json.Encoder()


def methods(*, modern: bool) -> frozenset[str]:
    """What is decided on by the authorizer, each time."""
    return MODERN_METHODS if modern else LEGACY_METHODS


def question(message: Message, *, modern: bool) -> Question | Rejection:
    """The part of a request that is decided on."""
    params = message.params
    if "task" in params:
        return bad_params("task is not supported")
    continues = STATE in params or RESPONSES in params
    if continues and not modern:
        return bad_params("nothing is continued in this era")
    if message.method == TOOL:
        return _tool(params, continues=continues)
    return _named(message.method, params, continues=continues)


def answer(method: str, message: Message, deliver: Deliver) -> Question:
    """An agent's answer to what a tool server asked: decided like a request of that method."""
    if message.error is not None:
        body: dict[str, Any] = {"error": message.error}
        told, canonical = body, messages.encode(["error", message.error], sort=True)
    else:
        told = bridge.unmarked(message.result or {})
        body, canonical = {"result": told}, messages.encode(told, sort=True)
    return Question(
        method=method,
        tool="",
        name=method,
        arguments=told,
        encoded=messages.encode(told, sort=True),
        canonical=canonical,
        deliver=lambda: deliver(body),
    )


def about_task(
    method: str,
    arguments: dict[str, Any],
    task: TheirTask,
    *,
    meta: dict[str, Any] | None = None,
) -> Question:
    """Of a tool server's task; `arguments` name it as the server does."""
    encoded = messages.encode(arguments, sort=True)
    return Question(
        method=method,
        tool="",
        name=task.theirs,
        arguments=arguments,
        encoded=encoded,
        meta=meta or {},
        canonical=encoded,
        task=task,
    )


def ask(
    visit: Visit,
    asked: Question,
    *,
    id: RequestId,
    digest: str,
    schema_hash: str | None,
    escalation_id: str = "",
    passed: Sequence[tuple[str, str]] = (),
) -> tuple[Ask, Resource]:
    """The question as the authorizer gets it, with what was derived of the arguments. `passed`:
    headers of the agent that go up with them.
    """
    size = len(asked.canonical) + (len(messages.encode(asked.meta)) if asked.meta else 0)
    derived = features.derive(
        asked.arguments,
        size + sum(len(value) for _, value in passed),
        beside=asked.seen_beside(passed),
        case_fold=visit.server.case_fold,
    )
    resource = Resource(value=derived.resource, kind=derived.resource_kind)
    if resource.kind == "none" and not asked.is_tool:
        resource = Resource(value=asked.name[:1024], kind="other")
    omitted = len(asked.encoded) > MAX_ARGUMENTS
    request = _Request(
        id, "call", asked.method, visit.slug, asked.tool, resource.value, resource.kind,
        omitted, digest, schema_hash,
    )  # fmt: skip
    made = Ask(
        visit=visit,
        request_id=id,
        request=_encoder.encode(request),
        features=derived.encoded,
        arguments=b"" if omitted else asked.encoded,
        arguments_digest=digest,
        escalation_id=escalation_id,
    )
    return made, resource


def _tool(params: dict[str, Any], *, continues: bool) -> Question | Rejection:
    name, arguments = params.get("name"), params.get("arguments", {})
    if type(name) is not str or not name:
        return bad_params("name must be a string")
    if type(arguments) is not dict:
        return bad_params("arguments must be an object")
    encoded = messages.encode(arguments, sort=True)
    beside = {key: value for key, value in params.items() if key not in _OF_A_TOOL}
    return Question(
        method=TOOL,
        tool=name,
        name=name,
        arguments=arguments,
        encoded=encoded,
        beside=beside,
        meta=bridge.own_meta(params),
        canonical=canonical(arguments, beside) if beside else encoded,
        continues=continues,
    )


def _named(method: str, params: dict[str, Any], *, continues: bool) -> Question | Rejection:
    """The whole of params is what is asked for, but for what has rules of its own."""
    member = "name" if method == "prompts/get" else "uri"
    name = params.get(member)
    if type(name) is not str or not 1 <= len(name) <= MAX_URI:
        return bad_params(f"{member} must be a string")
    arguments = {key: value for key, value in params.items() if key not in _APART}
    encoded = messages.encode(arguments, sort=True)
    return Question(
        method=method,
        tool="",
        name=name,
        arguments=arguments,
        encoded=encoded,
        meta=bridge.own_meta(params),
        canonical=encoded,
        continues=continues,
    )


def canonical(arguments: dict[str, Any], beside: dict[str, Any]) -> bytes:
    """Where something goes up beside the arguments."""
    return messages.encode([arguments, beside], sort=True)
