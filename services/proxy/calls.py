"""The values that travel through one call: who asks, what is asked, what was decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol

from services.common.ids import AgentId, EventId, RequestId, ServerSlug, SessionId, TenantId
from services.common.outbox.parts import Part
from services.common.outbox.record import Record
from services.proxy.features import ResourceKind
from services.proxy.snapshot import Agent, Server, Tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Proven by a credential. What the agent may do is not in here: that is decided per call."""

    tenant: TenantId
    agent: AgentId
    session: SessionId
    issued_at_s: int
    expires_at_s: int
    audiences: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question for the authorizer; the bytes are JSON of the envelope's sections."""

    visit: Visit
    request_id: RequestId
    request: bytes
    features: bytes
    #: Empty when the canonical arguments are over 64 KiB.
    arguments: bytes
    arguments_digest: str


class Result(Enum):
    ALLOW = "allow"
    DENY = "deny"
    INTERCEPT = "intercept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    bundle_serial: int = 0
    bundle_digest: str = ""
    policy_revision: str = ""
    policy_state: str = ""
    bundle_age_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
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


def denied(reason_code: str, reason: str = "") -> Decision:
    """A denial made here, because no usable decision came."""
    return Decision(
        result=Result.DENY, reason_code=reason_code, reason=reason, codes=(reason_code,)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
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


class Recorder(Protocol):
    """The outbox, as the pipeline sees it."""

    async def put(
        self, record: Record, *, parts: Sequence[Part] = (), durable: bool = True
    ) -> EventId:
        """Raises BehavryError when it cannot be recorded."""
