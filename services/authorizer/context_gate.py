"""Which tools an agent may see, and so call. The one rule behind `tools/list` and `tools/call`.

Core on every plan (core.md 7): unclassified and changed tools are absent and denied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.authorizer.plane_state import Action, Server, Tool


@dataclass(frozen=True, slots=True)
class Gate:
    """`refusal` is empty when the tool is visible, else the reason code that is recorded."""

    refusal: str
    action: Action
    category: str
    pinned: bool


_UNKNOWN: Final = Tool(state="unclassified")


def gate(
    *,
    server: Server,
    tool: Tool | None,
    offered_hash: str | None,
    permissions: tuple[str, ...],
) -> Gate:
    """`offered_hash` is the digest of the definition that the server offers now."""
    known = tool or _UNKNOWN
    pinned = bool(known.schema_hash) and known.schema_hash == offered_hash
    return Gate(
        refusal=_refusal(server, known, permissions, pinned=pinned),
        action=known.action,
        category=known.category,
        pinned=pinned,
    )


def covers(permission: str, domain: str, action: str) -> bool:
    """`filesystem:read`, `filesystem:*`, `*:read` (core.md 1)."""
    left, _, right = permission.partition(":")
    return left in {"*", domain} and right in {"*", action}


def reaches(permissions: tuple[str, ...], domain: str) -> bool:
    """Whether any permission is about this server's domain: is the server granted at all?"""
    return any(permission.partition(":")[0] in {"*", domain} for permission in permissions)


def _refusal(server: Server, tool: Tool, permissions: tuple[str, ...], *, pinned: bool) -> str:
    if server.trust == "blocked" or tool.state in {"unclassified", "hidden"}:
        return "tool_hidden"
    if tool.state == "changed" or not pinned:
        return "tool_schema_changed"
    if not any(covers(permission, server.domain, tool.action) for permission in permissions):
        return "tool_hidden"
    return ""
