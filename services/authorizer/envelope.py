"""The decided input `behavry.input/1`: its shape, its limits, its bytes.

Decides what a well-formed envelope is; filling it is inputs.py's work, reading it the policies'.
Every object is closed and every key is present: a missing key would silently drop a deny rule
(core.md 3).
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Raw, Struct, field

SCHEMA: Final = "behavry.input/1"
MAX_ARGUMENT_BYTES: Final = 64 * 1024

Action = Literal["read", "write", "delete", "execute", "network", "admin", "unclassified"]
Severity = Literal["info", "low", "medium", "high", "critical"]

Count = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
Identity = Annotated[
    str, Meta(pattern="^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
]
Moment = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z$",
        max_length=30,
    ),
]
Text16 = Annotated[str, Meta(max_length=16)]
Text40 = Annotated[str, Meta(max_length=40)]
Text64 = Annotated[str, Meta(max_length=64)]
Text80 = Annotated[str, Meta(max_length=80)]
Text128 = Annotated[str, Meta(max_length=128)]
Text170 = Annotated[str, Meta(max_length=170)]
Text253 = Annotated[str, Meta(max_length=253)]
Text512 = Annotated[str, Meta(max_length=512)]
Text1024 = Annotated[str, Meta(max_length=1024)]


class EnvelopeInvalid(Exception):
    """Not a `behavry.input/1`. Says where, never what: the text holds no payload."""

    def __init__(self, where: str) -> None:
        super().__init__(f"input envelope invalid at {where}")
        self.where = where


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A closed object of the envelope: no key may be missing, none may be added."""


class Tenant(Part, frozen=True):
    id: Identity
    slug: Text40


class Request(Part, frozen=True):
    id: Identity
    kind: Literal["call", "list", "human"]
    method: Text64
    server: Text40
    domain: Text40
    tool: Text128
    action: Action
    category: Text40
    resource: Text1024
    resource_kind: Literal["path", "url", "table", "recipient", "command", "other", "none"]
    arguments: Raw  # a JSON object or null, kept as the bytes that were digested
    arguments_omitted: bool
    arguments_digest: Text80
    schema_hash: Text80 | None
    schema_pinned: bool


class CatalogEntry(Part, frozen=True):
    server: Text40
    tool: Text128
    action: Action
    tokens: Count
    schema_pinned: bool


class ArgumentKey(Part, frozen=True):
    name: Text64
    type: Literal["string", "number", "bool", "null", "object", "array"]


class TargetPath(Part, frozen=True):
    value: Text1024
    depth: Count
    config: bool
    protected: bool
    ambiguous: bool


class TargetUrl(Part, frozen=True):
    scheme: Text16
    host: Text253
    port: Count
    private: bool


class Features(Part, frozen=True):
    keys: Annotated[tuple[ArgumentKey, ...], Meta(max_length=64)]
    arg_bytes: Count
    depth: Count
    leaf_count: Count
    item_count: Count
    recipient_count: Count
    recipient_groups: bool
    recipient_domains: Annotated[tuple[Text253, ...], Meta(max_length=64)]
    paths: Annotated[tuple[TargetPath, ...], Meta(max_length=64)]
    urls: Annotated[tuple[TargetUrl, ...], Meta(max_length=64)]
    tables: Annotated[tuple[Text128, ...], Meta(max_length=64)]
    commands: Annotated[tuple[Text128, ...], Meta(max_length=64)]
    overflow: bool


class Finding(Part, frozen=True):
    key: Text64
    category: Text40
    tags: Annotated[tuple[Text64, ...], Meta(max_length=16)]
    severity: Severity
    confidence: Annotated[float, Meta(ge=0, le=1)]
    action: Literal["block", "redact", "alert", "tag", "escalate", "none"]
    suppressed_by: Text40 | None
    pointer: Text512
    view: Text16
    test: bool


class Findings(Part, frozen=True):
    items: Annotated[tuple[Finding, ...], Meta(max_length=100)]
    max_severity: Severity | None
    tags: Annotated[tuple[Text64, ...], Meta(max_length=64)]
    content_risk: Amount
    scan: Literal["none", "complete", "limit"]
    overflow: bool


class Counters(Part, frozen=True):
    deletes: Count
    recipients: Count
    items: Count
    bytes_out: Count
    hosts: Count
    calls_minute: Count


class Context(Part, frozen=True):
    now: Moment
    now_ns: Count
    hour: Annotated[int, Meta(ge=0, le=23)]
    weekday: Annotated[int, Meta(ge=1, le=7)]
    transport: Literal["http", "stdio"]
    policy_state: Literal["fresh", "stale", "expired"]
    bundle_age_s: Count
    session_calls: Count
    session_age_s: Count
    session_flagged: bool
    session_tags: Annotated[tuple[Text64, ...], Meta(max_length=64)]
    volume_ratio: Amount | None
    z_max: float | None
    baseline: Literal["none", "learning", "provisional", "approved", "stale"]
    trust_domain: Literal["trusted", "untrusted", "blocked", "unknown"]
    counters_state: Literal["shared", "local"]
    counters: Counters


class Restriction(Part, frozen=True):
    profile: Text40


class Agent(Part, frozen=True):
    id: Identity
    name: Text80
    class_: Text40 = field(name="class")
    critical: bool
    type: Text40
    status: Text16
    roles: Annotated[tuple[Text40, ...], Meta(max_length=50)]
    permissions: Annotated[tuple[Text80, ...], Meta(max_length=200)]
    tags: Annotated[tuple[Text40, ...], Meta(max_length=20)]
    restriction: Restriction | None
    budget: Literal["ok", "warn", "exceeded", "unknown"]


class Requester(Part, frozen=True):
    id: Text128
    channel: Text40
    verified: bool


class Workflow(Part, frozen=True):
    id: Identity
    session: Identity
    role: Text40
    depth: Count
    max_depth: Count
    allowed_actions: Annotated[tuple[Action, ...], Meta(max_length=7)]
    parent_event: Identity | None


class DelegationLink(Part, frozen=True):
    from_: Identity = field(name="from")
    to: Identity
    token: Text64
    exp: Count


class Delegation(Part, frozen=True):
    depth: Count
    chain: Annotated[tuple[DelegationLink, ...], Meta(max_length=5)]
    tools: Annotated[tuple[Text170, ...], Meta(max_length=100)]
    resources: Annotated[tuple[Text1024, ...], Meta(max_length=100)]
    actions: Annotated[tuple[Action, ...], Meta(max_length=7)]
    bytes_left: Count | None


class Risk(Part, frozen=True):
    score: Annotated[int, Meta(ge=0, le=100)]
    tier: Literal["low", "medium", "high", "critical"]
    age_s: Count
    flags: Annotated[tuple[Text40, ...], Meta(max_length=20)]


class Envelope(Part, frozen=True):
    schema: Literal["behavry.input/1"]
    replay: bool
    tenant: Tenant
    request: Request
    catalog: Annotated[tuple[CatalogEntry, ...], Meta(max_length=1000)] | None
    features: Features
    findings: Findings
    context: Context
    agent: Agent
    requester: Requester | None
    workflow: Workflow | None
    delegation: Delegation | None
    risk: Risk


NULL: Final = Raw(b"null")
_decoder: Final = msgspec.json.Decoder(Envelope)
_encoder: Final = msgspec.json.Encoder()


def decode(raw: bytes) -> Envelope:
    """The envelope in these bytes, or EnvelopeInvalid."""
    try:
        envelope = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        # The cause is cut off: msgspec names the place, but a decoding error may quote its input.
        raise EnvelopeInvalid(_where(exc)) from None
    arguments = bytes(memoryview(envelope.request.arguments)[:1])
    if arguments != b"{" and envelope.request.arguments != NULL:
        raise EnvelopeInvalid("$.request.arguments")
    if len(memoryview(envelope.request.arguments)) > MAX_ARGUMENT_BYTES:
        raise EnvelopeInvalid("$.request.arguments")
    return envelope


def encode(envelope: Envelope) -> bytes:
    return _encoder.encode(envelope)


def envelope_without_arguments(envelope: Envelope) -> bytes:
    """What a record keeps in every mode: `arguments` null, the rest as it was decided."""
    if envelope.request.arguments == NULL:
        return _encoder.encode(envelope)
    bare = msgspec.structs.replace(envelope.request, arguments=NULL)
    return _encoder.encode(msgspec.structs.replace(envelope, request=bare))


def schema_document() -> dict[str, Any]:
    """The JSON schema that `policy/input.schema.json` must equal."""
    document: dict[str, Any] = msgspec.json.schema(Envelope)
    document["$defs"]["Request"]["properties"]["arguments"] = {
        "anyOf": [{"type": "object"}, {"type": "null"}]
    }
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    document["title"] = SCHEMA
    return document


def _where(exc: Exception) -> str:
    """The JSON path at the end of msgspec's text; the rest of the text may quote what was sent."""
    if not isinstance(exc, msgspec.ValidationError):
        return "$"
    _, found, path = str(exc).rpartition(" - at `")
    return path.rstrip("`") if found else "$"
