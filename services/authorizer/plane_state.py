"""What the active bundle says of tenants, agents, servers and tools, as frozen values.

The bundle's `data.json` holds it under `behavry.state`; nothing here is ever changed in place.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Action = Literal["read", "write", "delete", "execute", "network", "admin", "unclassified"]


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    type: str
    cls: str = msgspec.field(name="class")
    status: Literal["pending", "active", "suspended", "revoked"]
    roles: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    owner: str | None = None


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


class _Root(msgspec.Struct, frozen=True):
    state: PlaneState


class _Data(msgspec.Struct, frozen=True):
    behavry: _Root


_decoder = msgspec.json.Decoder(_Data)


def parse(data_json: bytes) -> PlaneState:
    """Raises msgspec.ValidationError or msgspec.DecodeError."""
    return _decoder.decode(data_json).behavry.state
