"""What the active bundle says of tenants, agents, servers and tools, as frozen values.

The bundle's `data.json` holds it under `behavry.state`; nothing here is ever changed in place.
A field with a default may be missing: a bundle of before it existed still parses, to the safe
value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

PerMinute = Annotated[int, Meta(ge=1)]
Seconds = Annotated[int, Meta(ge=1)]
Action = Literal["read", "write", "delete", "execute", "network", "admin", "unclassified"]


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """One kill switch that is on: `{"scope": "server", "subject": "files"}`.

    `subject` is an agent's id, a class's name or a server's slug; empty for tenant and fleet.
    """

    scope: Literal["agent", "class", "server", "tenant", "fleet"]
    subject: str = ""


class Restriction(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent or a session is held to for a while (core.md 10); restriction.py applies it.

    Every part that is not null must be met. `tools` are `fnmatch` globs on `server/tool`,
    `resources` prefixes of the canonical resource on path boundaries; an empty list allows none.
    """

    profile: Literal["read_only", "investigation", "wind_down", "custom"]
    #: Unix seconds. The restriction ends then; after `wind_down` the agent counts as suspended.
    until_s: int
    tools: tuple[str, ...] | None = None
    resources: tuple[str, ...] | None = None
    max_arg_bytes: Annotated[int, Meta(ge=0)] | None = None
    #: Thousandths of the agent's own rate; `investigation` halves what they leave once more.
    rate_factor_milli: Annotated[int, Meta(ge=1, le=1000)] = 1000


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Token buckets (core.md 6): per agent, for the whole tenant, and per tool where one is named.

    `{"agent_per_minute": 300, "agent_burst": 100, "tenant_per_minute": 6000,
    "tools": {"<server>": {"<tool>": 60}}}`. A tool's limit is shared by all agents of the tenant.
    """

    agent_per_minute: PerMinute = 300
    agent_burst: Annotated[int, Meta(ge=1)] = 100
    tenant_per_minute: PerMinute = 6000
    tools: dict[str, dict[str, PerMinute]] = {}


class DecideSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """How long people may take, by the agent's risk tier."""

    low: Seconds = 86_400
    medium: Seconds = 14_400
    high: Seconds = 1_800
    critical: Seconds = 300


class Escalations(msgspec.Struct, frozen=True, kw_only=True):
    """`{"decide_seconds": {"low": 86400, ...}, "execute_seconds": 900}`."""

    decide_seconds: DecideSeconds = DecideSeconds()
    #: How long an approval may be used.
    execute_seconds: Seconds = 900


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    type: str
    cls: str = msgspec.field(name="class")
    status: Literal["pending", "active", "suspended", "revoked"]
    roles: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    owner: str | None = None
    #: Null where the agent is not restricted.
    restriction: Restriction | None = None


class AgentClass(msgspec.Struct, frozen=True, kw_only=True):
    critical: bool = True
    #: What a call gets from an expired bundle (deployment.md 3.5).
    expired_action: Literal["deny", "intercept", "serve"] = "deny"


class Server(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    domain: str
    trust: Literal["trusted", "untrusted", "blocked"] = "untrusted"
    transport: Literal["http", "sse", "stdio"]
    urls: tuple[str, ...] = ()
    stdio: str = ""
    era: str = "auto"
    case_fold: bool = False
    credential: dict[str, Any] = {}
    #: The rest is the proxy's: it decides nothing here and passes through.
    grants: dict[str, Any] = {}
    first_byte_s: Annotated[int, Meta(ge=1, le=600)] = 120
    share: Literal["agent", "server"] = "agent"
    headers: dict[str, str] = {}
    ca: str = ""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    state: Literal["approved", "hidden", "unclassified", "changed"]
    action: Action = "unclassified"
    category: str = ""
    allow_tags: tuple[str, ...] = ()
    schema_hash: str = ""


class PolicyRef(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    version: int
    state: Literal["enforce", "shadow"]
    package: str


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    slug: str
    status: Literal["active", "suspended", "deleted"] = "active"
    policy_revision: str
    modes: dict[str, str] = {}
    classes: dict[str, AgentClass] = {}
    roles: dict[str, tuple[str, ...]] = {}
    agents: dict[str, Agent] = {}
    #: Session id -> Unix seconds after which no token of it can be valid.
    revoked_sessions: dict[str, int] = {}
    #: Session id -> what it is held to, beside its agent's own restriction.
    restricted_sessions: dict[str, Restriction] = {}
    #: Kill switches of this tenant: `[{"scope": "agent", "subject": "<id>"}]`.
    stops: tuple[Stop, ...] = ()
    limits: Limits = Limits()
    escalations: Escalations = Escalations()
    servers: dict[str, Server] = {}
    tools: dict[str, dict[str, Tool]] = {}
    policies: tuple[PolicyRef, ...] = ()
    #: Input paths that the engine needs; an empty path is the whole input.
    reads: tuple[tuple[str, ...], ...] = ((),)

    def permissions(self, agent: Agent) -> tuple[str, ...]:
        """What the agent's roles grant, each once, in role order."""
        granted = (item for role in agent.roles for item in self.roles.get(role, ()))
        return tuple(dict.fromkeys(granted))

    def critical(self, agent: Agent) -> bool:
        return self.classes.get(agent.cls, AgentClass()).critical


class Plane(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    environment: str


class Canary(msgspec.Struct, frozen=True, kw_only=True):
    tenant: str
    input: msgspec.Raw
    expect: Literal["allow", "deny", "intercept"]
    why: str = ""


class PlaneState(msgspec.Struct, frozen=True, kw_only=True):
    plane: Plane
    serial: int
    tenants: dict[str, Tenant]
    canaries: tuple[Canary, ...] = ()
    #: The fleet's kill switch: `[{"scope": "fleet", "subject": ""}]`. Other scopes need a tenant.
    stops: tuple[Stop, ...] = ()


class _Root(msgspec.Struct, frozen=True):
    state: PlaneState


class _Data(msgspec.Struct, frozen=True):
    behavry: _Root


_decoder = msgspec.json.Decoder(_Data)


def parse(data_json: bytes) -> PlaneState:
    """Raises msgspec.ValidationError or msgspec.DecodeError."""
    return _decoder.decode(data_json).behavry.state
