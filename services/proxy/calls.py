"""The values that travel through one call: who asks, what is asked, what was decided."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

import msgspec
from msgspec.structs import replace

from services.common.ids import AgentId, EventId, RequestId, ServerSlug, SessionId, TenantId
from services.common.outbox.parts import Part
from services.common.outbox.record import Record
from services.proxy.features import ResourceKind
from services.proxy.snapshot import Agent, Server, Snapshot, Tenant


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Proven by a credential. What the agent may do is not in here: that is decided per call."""

    tenant: TenantId
    agent: AgentId
    session: SessionId
    issued_at_s: int
    expires_at_s: int
    audiences: frozenset[str]
    #: The token is for tools: it names no scopes, or the one that this takes.
    scoped: bool = True
    #: The token is past its end, and nobody could give it another one.
    graced: bool = False


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """One authenticated request to one server, with the snapshot that it began with."""

    caller: Caller
    tenant: Tenant
    agent: Agent
    slug: ServerSlug
    server: Server
    revision: str
    client_ip: str
    requester_id: str = ""
    delegation: bool = False
    workflow: bool = False

    @property
    def let_in(self) -> bool:
        return self.agent.active and self.tenant.status == "active"

    def renewed(self, snapshot: Snapshot) -> Visit | None:
        """The same visit by another snapshot; None where it would be turned away."""
        tenant = snapshot.tenants.get(self.caller.tenant)
        agent = tenant.agents.get(self.caller.agent) if tenant else None
        server = tenant.servers.get(self.slug) if tenant else None
        if tenant is None or agent is None or server is None or self.slug not in agent.servers:
            return None
        revision = snapshot.revision
        return replace(self, tenant=tenant, agent=agent, server=server, revision=revision)


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One question for the authorizer; the bytes are JSON of the envelope's sections."""

    visit: Visit
    request_id: RequestId
    request: bytes
    features: bytes
    #: Empty when the canonical arguments are over 64 KiB.
    arguments: bytes
    arguments_digest: str
    #: The escalation that the call continues; empty for a call like any other.
    escalation_id: str = ""


class Result(Enum):
    ALLOW = "allow"
    DENY = "deny"
    INTERCEPT = "intercept"


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    bundle_serial: int = 0
    bundle_digest: str = ""
    policy_revision: str = ""
    policy_state: str = ""
    bundle_age_s: int = 0


class Escalation(msgspec.Struct, frozen=True, kw_only=True):
    """A person's decision that is waited for, was used up, or will not come any more."""

    id: str
    state: str
    decide_by_ms: int = 0
    codes: tuple[str, ...] = ()


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What the authorizer said, or, without it, the denial that its silence means."""

    result: Result
    reason_code: str
    reason: str = ""
    codes: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    obligations: tuple[Any, ...] = ()
    shadow: tuple[Any, ...] = ()
    engine: str = ""
    engine_us: int = 0
    action: str = ""
    category: str = ""
    revision: Revision = Revision()
    #: The decided envelope without arguments, opaque: recorded as it is.
    envelope: bytes = b""
    #: With Intercept the one that waits, with Allow the one used up, with Deny the one that ended.
    escalation: Escalation | None = None
    #: 0 where the authorizer does not say.
    retry_after_ms: int = 0


def denied(reason_code: str, reason: str = "", *, escalation: Escalation | None = None) -> Decision:
    """A denial made here, because no usable decision came."""
    return Decision(
        result=Result.DENY,
        reason_code=reason_code,
        reason=reason,
        codes=(reason_code,),
        escalation=escalation,
    )


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    value: str = ""
    kind: ResourceKind = "none"


NOTHING: Final = Resource()


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool as a server offers it now."""

    name: str
    schema_hash: str


class Decider(Protocol):
    """The authorizer, as the pipeline sees it."""

    async def decide(self, ask: Ask) -> Decision:
        """Never raises, never takes longer than the budget: no answer is a denial."""

    async def view(self, visit: Visit, tools: tuple[Offered, ...]) -> frozenset[str]:
        """Names that the agent may see. Raises BehavryError when that cannot be told."""


class Escalations(Protocol):
    """The authorizer again, for what an agent gives up."""

    async def cancel(self, visit: Visit, escalation_id: str) -> str:
        """The state that it has now, empty if there is none. Raises BehavryError."""


class Kept(Protocol):
    """What an agent may come back for."""

    def add(self, message: bytes) -> None: ...

    def end(self, answer: bytes) -> None: ...


class Stream(Protocol):
    """The way back to an agent whose request is still open."""

    #: Set when nobody reads any more: watched from `open` on, and of every request that takes long.
    gone: asyncio.Event
    #: Called then.
    when_gone: Callable[[], None] | None
    #: The answer has headers of its own, and so does not become a stream by itself.
    headed: bool

    async def open(self) -> None:
        """From here on the answer is an event stream. Repeating it is harmless."""

    async def send(self, message: bytes) -> None:
        """One JSON-RPC message before the answer; the stream is open."""

    def push(self, message: bytes, event_id: str = "") -> None:
        """The same without waiting, opening the stream if need be. Messages leave in the order of
        `send` and `push`. A reader with more than 1 MiB queued is gone.
        """

    def pause(self, tail: Kept, last: bytes) -> None:
        """The stream ends with this event, the request goes on: what is said from here on, and the
        answer, are kept.
        """


#: Runs something beside the request, out of reach of its end.
Spawn = Callable[[str, Callable[[], Awaitable[None]]], asyncio.Task[None]]


class Recorder(Protocol):
    """The outbox, as the pipeline sees it."""

    async def put(
        self, record: Record, *, parts: Sequence[Part] = (), durable: bool = True
    ) -> EventId:
        """Raises BehavryError when it cannot be recorded."""
