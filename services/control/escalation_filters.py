"""The filter of the inbox: `state:pending agent:demo -tool:read_file`. Decides what a term means;
the SQL that it becomes is made of constants, its values are bound.

Terms are joined by "and", `-` negates one, commas inside a value mean "or", quotes keep spaces: as
in the filter of traces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from services.control.escalations import STATES
from services.control.problems import FieldError, Refusal

MAX_TERMS: Final = 20
_TERM: Final = re.compile(r'(-?)([a-z_]+):("[^"]*"|[^\s"]+)(?=\s|$)')
#: The state with both clocks, whatever the plane has told so far. $1 is now.
STATE_NOW: Final = (
    "(CASE WHEN e.state = 'pending' AND e.decide_by <= $1 THEN 'expired'"
    " WHEN e.state = 'approved' AND e.execute_by <= $1 THEN 'lapsed' ELSE e.state END)"
)
#: Qualifier -> what is true of a row, with the values at `{}`.
_SQL: Final[Mapping[str, str]] = {
    "action": "e.action = ANY({})",
    "agent": "(e.agent_name = ANY({0}) OR e.agent_id::text = ANY({0}))",
    "class": "e.agent_class = ANY({})",
    "code": "e.codes && {}",
    "server": "e.server = ANY({})",
    "state": f"{STATE_NOW} = ANY({{}})",
    "tier": "e.tier = ANY({})",
    "tool": "e.tool = ANY({})",
}


#: What is live is found by its own small index, however much is not.
_LIVE: Final = frozenset({"pending", "approved"})
_LIVE_SQL: Final = " AND e.state IN ('pending', 'approved')"


class Where(NamedTuple):
    """Conditions and the values that they bind."""

    #: What an index finds; continues a WHERE.
    found: str
    #: What has to be looked up in each row, as one boolean.
    kept: str
    bound: tuple[list[str], ...]


def parse(text: str, *, first: int) -> Where:
    """Values are bound from `$first` on. Raises INVALID_FILTER."""
    conditions: list[str] = []
    found = ""
    bound: list[list[str]] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = _TERM.match(text, at)
        if match is None:
            raise _invalid("syntax", "A term of the filter is `qualifier:value`.")
        if match[2] not in _SQL:
            raise _invalid("unknown_qualifier", f"Qualifiers are {', '.join(_SQL)}.")
        if len(bound) == MAX_TERMS:
            raise _invalid("too_many", f"A filter has at most {MAX_TERMS} terms.")
        bound.append(_values(match[2], match[3].strip('"')))
        condition = _SQL[match[2]].format(f"${first + len(bound) - 1}::text[]")
        conditions.append(f"NOT {condition}" if match[1] else condition)
        if match[2] == "state" and not match[1] and _LIVE.issuperset(bound[-1]):
            found = _LIVE_SQL
        at = match.end()
    return Where(found, " AND ".join(conditions) or "true", tuple(bound))


def _values(qualifier: str, text: str) -> list[str]:
    values = [value for value in text.split(",") if value]
    if not values or "\0" in text:
        raise _invalid("missing", "A value of the filter is missing.")
    if qualifier == "state" and not STATES.issuperset(values):
        raise _invalid("not_allowed", f"States are {', '.join(sorted(STATES))}.")
    return values


def _invalid(code: str, message: str) -> Refusal:
    return Refusal("INVALID_FILTER", message, errors=[FieldError("?filter", code)])
