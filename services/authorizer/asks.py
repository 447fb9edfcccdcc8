"""One question of a proxy, decoded by itself: a bad one denies itself and not its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from services.authorizer.envelope import (
    MAX_ARGUMENT_BYTES,
    EnvelopeInvalid,
    Features,
    Findings,
    Identity,
    Text40,
    Text80,
    Text128,
    Text1024,
)
from services.common.ids import AgentId, SessionId, TenantId


class AskRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What the proxy knows of the request; the tool table's part is not its to say."""

    id: Identity
    kind: Literal["call"]
    method: Annotated[str, Meta(min_length=1, max_length=64)]
    server: Annotated[str, Meta(min_length=1, max_length=40)]
    tool: Text128
    resource: Text1024
    resource_kind: Literal["path", "url", "table", "recipient", "command", "other", "none"]
    arguments_omitted: bool
    arguments_digest: Text80
    schema_hash: Text80 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    tenant: TenantId
    agent: AgentId
    session: SessionId
    transport: Literal["http", "stdio"]
    requester_id: Text128
    requester_channel: Text40
    issued_at_s: int
    delegation_presented: bool
    workflow_presented: bool


@dataclass(frozen=True, slots=True)
class Ask:
    request: AskRequest
    features: Features
    findings: Findings
    #: Canonical JSON object, or `null` where the arguments are over 64 KiB.
    arguments: bytes


#: Methods that carry a tool name; the others of class F are reads of the server (mcp.md 4).
TOOL_METHOD: Final = "tools/call"

_request: Final = msgspec.json.Decoder(AskRequest)
_features: Final = msgspec.json.Decoder(Features)
_findings: Final = msgspec.json.Decoder(Findings)
_raw: Final = msgspec.json.Decoder(msgspec.Raw)


def decode(request: bytes, features: bytes, findings: bytes, arguments: bytes) -> Ask:
    """Raises EnvelopeInvalid, naming the section and never its content."""
    section = "request"
    try:
        asked = _request.decode(request)
        section = "features"
        derived = _features.decode(features)
        section = "findings"
        found = _findings.decode(findings)
        section = "arguments"
        _raw.decode(arguments or b"null")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise EnvelopeInvalid(section) from None
    if asked.arguments_omitted != (not arguments) or len(arguments) > MAX_ARGUMENT_BYTES:
        raise EnvelopeInvalid("arguments")
    if arguments and not arguments.startswith(b"{"):
        raise EnvelopeInvalid("arguments")
    if (asked.method == TOOL_METHOD) != bool(asked.tool):
        raise EnvelopeInvalid("request.tool")
    return Ask(asked, derived, found, arguments or b"null")
