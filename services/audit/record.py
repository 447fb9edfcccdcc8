"""What audit reads out of a record's body: the columns that filters use, and the numbers that say
which source sent it. The body decides; columns follow it and are checked against it (verify.py).

Pure, and standard library only. Bodies come from other processes: nothing here trusts a type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

#: Records that are a decision's own: its id is theirs.
DECISION_TYPES: Final = ("call.intent", "call.denied", "call.held", "call.rejected")
OUTCOME_TYPES: Final = ("call.outcome", "call.outcome_unknown")

Body = Mapping[str, Any]
#: Between derived columns on their way into the database.
SEPARATOR: Final = "\x1f"
_UNFIT: Final = re.compile(f"[\0{SEPARATOR}]")
_UUID: Final = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_UUID7: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class Columns(NamedTuple):
    """The derived columns of `events`, in the order of the table. Empty: the body does not say."""

    type: str
    #: The decision that a record belongs to, unless its own id is the decision's.
    decision: str
    agent: str
    agent_name: str
    session: str
    server: str
    tool: str
    action: str
    verdict: str
    reason: str


class Numbered(NamedTuple):
    """Whose record it is, by its own words: source, start and number."""

    source: str
    boot: str
    n: int


def columns(body: Body) -> Columns:
    get = body.get
    agent = name = session = ""
    actor = get("actor")
    if type(actor) is dict:
        session = actor.get("session", "")
        if actor.get("kind") == "agent":
            agent, name = actor.get("id", ""), actor.get("name", "")
    decision = get("decision", "")
    found = (
        get("type", ""),
        decision if type(decision) is str and is_uuid(decision) else "",
        agent,
        name,
        session,
        get("server", ""),
        get("tool", ""),
        get("action", ""),
        get("verdict", ""),
        get("reason", ""),
    )
    try:
        # Most bodies hold plain strings only, which this tells at once.
        if _UNFIT.search("".join(found)) is None:
            return Columns(*found)
    except TypeError:
        pass
    return Columns(*[_fit(value) for value in found])


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
    return _UUID.fullmatch(text) is not None


def is_uuid7(text: str) -> bool:
    """One that begins with its time (RFC 9562 5.7)."""
    return _UUID7.fullmatch(text) is not None


def _fit(value: object) -> str:
    """PostgreSQL has no NUL in text, and SEPARATOR is ours; the body keeps them."""
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else ""
