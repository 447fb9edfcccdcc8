"""What an approval is valid for: the binding of a call, and its subject (core.md 9).

Decides which facts of a call count and makes the bytes under the HMAC. Two calls of one binding
are the same question to people; two of one subject are the same call, perhaps under another
policy, tool definition or list of reasons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from services.authorizer.asks import TOOL_METHOD
from services.common.ids import AgentId, TenantId
from services.common.outbox.digests import Digester

_VERSION: Final = "behavry.binding/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """None is "there is none", which is bound like any other value."""

    tenant: TenantId
    agent: AgentId
    #: `{id, channel, verified}` of the envelope.
    requester: tuple[str, str, bool] | None
    delegation: str | None
    workflow: str | None
    server: str
    tool: str
    method: str
    #: Counts where the method names no tool: a tool's resource is read out of its arguments.
    resource: str
    arguments_digest: str
    schema_hash: str | None
    policy_revision: str
    codes: tuple[str, ...]


def binding(bound: Bound, digester: Digester) -> str:
    """`b1:<key id>:<mac>`; the same for the same call under the same policy and reasons."""
    facts = _subject(bound) | {
        "codes": sorted(set(bound.codes)),
        "policy_revision": bound.policy_revision,
        "schema_hash": bound.schema_hash,
    }
    return _digest(bound.tenant, "binding", facts, digester)


def subject(bound: Bound, digester: Digester) -> str:
    """`b1:<key id>:<mac>`; the same for the same call, whatever the policy says of it."""
    return _digest(bound.tenant, "subject", _subject(bound), digester)


def _subject(bound: Bound) -> dict[str, Any]:
    return {
        "v": _VERSION,
        "tenant": bound.tenant,
        "agent": bound.agent,
        "requester": bound.requester,
        "delegation": bound.delegation,
        "workflow": bound.workflow,
        "server": bound.server,
        "tool": bound.tool,
        "method": bound.method,
        "resource": None if bound.method == TOOL_METHOD else bound.resource,
        "arguments_digest": bound.arguments_digest,
    }


def _digest(tenant: TenantId, purpose: str, facts: dict[str, Any], digester: Digester) -> str:
    """The digester's key is the plane's and the tenant's own: short arguments cannot be guessed."""
    made = digester.make(tenant, purpose, orjson.dumps(facts, option=orjson.OPT_SORT_KEYS))
    return "b1:" + made.removeprefix("h1:")
