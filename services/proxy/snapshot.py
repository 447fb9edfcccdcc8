"""The proxy's part of the active bundle: tenants, agents, servers, as plain frozen values.

Says who may reach which server and where it is. Empty means safe: what is not in it does not exist.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from services.common.ids import AgentId, ServerSlug, SessionId, TenantId

SLUG: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
RESERVED: Final = frozenset({"key", "all"})


class SnapshotInvalid(ValueError):
    """Not a snapshot: the one before stays."""


class Credential(Struct, frozen=True):
    """How the proxy presents itself to a tool server. Which fields count is the kind's to say; what
    is secret is a reference, `secret://name`, never a value.
    """

    kind: str = "none"
    #: `header`: its name and value.
    name: str = ""
    value: str = ""
    #: `client_credentials`, `jwt_bearer`, `token_exchange`: who gives tokens, and for what.
    token_url: str = ""
    token_ca: str = ""
    client_id: str = ""
    client_secret: str = ""
    client_auth: Literal["basic", "post"] = "basic"
    scope: str = ""
    resource: str = ""
    audience: str = ""
    #: `jwt_bearer`, `token_exchange`: what is signed here. `key` is `mtls`'s, too.
    key: str = ""
    key_id: str = ""
    issuer: str = ""
    subject: str = ""
    claims: dict[str, Any] = {}
    #: `mtls`.
    certificate: str = ""

    @property
    def per_agent(self) -> bool:
        """Whether the server can tell agents apart, and so may show each something else."""
        return self.kind == "token_exchange"


class Grants(Struct, frozen=True):
    """What a server may ask of agents, and which extensions it may speak with them (mcp.md 3.4)."""

    elicitation_form: bool = True
    #: Hosts that a user may be sent to; none: no URL at all.
    elicitation_hosts: tuple[str, ...] = ()
    sampling: bool = False
    roots: bool = False
    #: Ids such as `io.modelcontextprotocol/tasks`.
    extensions: tuple[str, ...] = ()


class Server(Struct, frozen=True):
    id: str
    domain: str
    transport: Literal["http", "sse", "stdio"]
    trust: Literal["trusted", "untrusted", "blocked"] = "untrusted"
    urls: tuple[str, ...] = ()
    stdio: str | None = None
    era: str = "auto"
    case_fold: bool = False
    credential: Credential = Credential()
    grants: Grants = Grants()
    first_byte_s: Annotated[int, Meta(ge=1, le=600)] = 120
    #: Whose a stdio child is: each agent's own, or one for all of the tenant.
    share: Literal["agent", "server"] = "agent"
    #: Sent with every request; nothing in them is secret.
    headers: dict[str, str] = {}
    #: `secret://name` of a PEM file of authorities to trust instead of the machine's; empty: those.
    ca: str = ""


class Agent(Struct, frozen=True):
    name: str
    status: str
    cls: str = field(name="class", default="")
    #: Servers that any of the agent's permissions is about.
    servers: frozenset[ServerSlug] = frozenset()

    @property
    def active(self) -> bool:
        return self.status == "active"


class Tenant(Struct, frozen=True):
    slug: str
    status: str
    agents: dict[AgentId, Agent] = {}
    revoked_sessions: frozenset[SessionId] = frozenset()
    servers: dict[ServerSlug, Server] = {}
    modes: dict[str, Any] = {}

    def find(self, name: str) -> tuple[ServerSlug, Server] | None:
        """By slug or by UUID; reserved names are no servers."""
        if name in RESERVED:
            return None
        slug = ServerSlug(name)
        server = self.servers.get(slug)
        if server is not None:
            return slug, server
        if UUID.fullmatch(name) is None:
            return None
        return next(((s, one) for s, one in self.servers.items() if one.id == name), None)


class Snapshot(Struct, frozen=True):
    revision: str = ""
    serial: int = 0
    plane_id: str = ""
    tenants: dict[TenantId, Tenant] = {}


EMPTY: Final = Snapshot()
_decoder: Final = msgspec.json.Decoder(Snapshot)


def decode(raw: bytes) -> Snapshot:
    """Raises SnapshotInvalid."""
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SnapshotInvalid from None


def server_name(text: str) -> bool:
    """Whether a path segment has the form of a server's name."""
    return SLUG.fullmatch(text) is not None or UUID.fullmatch(text) is not None
