"""What audit reads out of a record's body: the columns that filters use, and the numbers that say
which source sent it. The body decides; columns follow it and are checked against it (verify.py).

Pure, and standard library only. Bodies come from other processes: nothing here trusts a type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from uuid import UUID

#: Records that are a decision's own: its id is theirs.
DECISION_TYPES: Final = ("call.intent", "call.denied", "call.held", "call.rejected")
OUTCOME_TYPES: Final = ("call.outcome", "call.outcome_unknown")

Body = Mapping[str, Any]
_NOTHING: Final[Body] = {}


class Columns(NamedTuple):
    """The derived columns of `events`, in the order of the table."""

    type: str
    decision: str | None
    agent: str | None
    agent_name: str | None
    session: str | None
    server: str | None
    tool: str | None
    action: str | None
    verdict: str | None
    reason: str | None


class Numbered(NamedTuple):
    """Whose record it is, by its own words: source, start and number."""

    source: str
    boot: str
    n: int


def columns(body: Body) -> Columns:
    kind = _text(body, "type") or ""
    actor = body.get("actor")
    if not isinstance(actor, dict):
        actor = _NOTHING
    is_agent = actor.get("kind") == "agent"
    decision = body.get("id") if kind in DECISION_TYPES else body.get("decision")
    return Columns(
        kind,
        decision if isinstance(decision, str) and is_uuid(decision) else None,
        _text(actor, "id") if is_agent else None,
        _text(actor, "name") if is_agent else None,
        _text(actor, "session"),
        _text(body, "server"),
        _text(body, "tool"),
        _text(body, "action"),
        _text(body, "verdict"),
        _text(body, "reason"),
    )


def numbered(body: Body) -> Numbered | None:
    """None where the body does not say."""
    src = body.get("src")
    if not isinstance(src, dict):
        return None
    source, boot, n = src.get("id"), src.get("boot"), src.get("n")
    if not isinstance(source, str) or not isinstance(boot, str) or type(n) is not int:
        return None
    return Numbered(source, boot, n)


def is_uuid(text: str) -> bool:
    """A UUID in its one canonical spelling."""
    if len(text) != 36:
        return False
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _text(body: Body, key: str) -> str | None:
    """PostgreSQL has no NUL in text; the body keeps it."""
    value = body.get(key)
    if not isinstance(value, str):
        return None
    return value.replace("\0", "�") if "\0" in value else value
