"""The filter of trace lists: `agent:x verdict:deny -tool:read_file time:>=2026-01-01`. Decides what
a term means; the SQL that it becomes is bound, never pasted.

Terms are joined by "and", `-` negates one, commas inside a value mean "or", quotes keep spaces, and
`*` at the end of a type stands for its rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from services.audit.record import is_uuid
from services.common.errors import BehavryError

QUALIFIERS: Final = (
    "action", "agent", "decision", "reason", "server", "session", "time", "tool", "type", "verdict",
)  # fmt: skip
#: What has an index of its own, beside the time, by which every list is read.
_INDEXED: Final = frozenset({"decision"})
MAX_TERMS: Final = 20
MAX_LENGTH: Final = 2_000
_TERM: Final = re.compile(r'(-?)([a-z_]+):("[^"]*"|[^\s"]+)(?=\s|$)')
_TIME: Final = re.compile(r"(>=|<=|>|<)?(.+)")


class Term(NamedTuple):
    """One of `values` (or, negated, none of them) in what `qualifier` names."""

    qualifier: str
    values: tuple[str, ...]
    negated: bool


class Span(NamedTuple):
    """Milliseconds since 1970 UTC; the end does not belong to it."""

    from_ms: int
    to_ms: int
    negated: bool


class Filter(NamedTuple):
    terms: tuple[Term, ...]
    spans: tuple[Span, ...]

    @property
    def names_types(self) -> bool:
        return any(term.qualifier == "type" for term in self.terms)

    def adding(self, term: Term) -> Filter:
        return self._replace(terms=(*self.terms, term))


_LAST_MS: Final = (1 << 48) - 1


def parse(text: str) -> Filter:
    """Raises INVALID_FILTER with the position of the first character that it cannot use."""
    if len(text) > MAX_LENGTH:
        raise _invalid(MAX_LENGTH, "the filter is too long")
    terms: list[Term] = []
    spans: list[Span] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = _TERM.match(text, at)
        if match is None:
            raise _invalid(at, "a term is `qualifier:value`")
        if match[2] not in QUALIFIERS:
            raise _invalid(match.start(2), f"unknown qualifier; there are {', '.join(QUALIFIERS)}")
        value, negated = match[3].strip('"'), match[1] == "-"
        if match[2] == "time":
            spans.append(_span(value, match.start(3), negated=negated))
        else:
            terms.append(_term(match[2], value, match.start(3), negated=negated))
        if len(terms) + len(spans) > MAX_TERMS:
            raise _invalid(at, f"more than {MAX_TERMS} terms")
        at = match.end()
    return Filter(tuple(terms), tuple(spans))


def _term(qualifier: str, value: str, at: int, *, negated: bool) -> Term:
    values = tuple(item for item in value.split(",") if item)
    if not values or "\0" in value:
        raise _invalid(at, "a value is missing")
    if qualifier == "decision" and not all(is_uuid(item) for item in values):
        raise _invalid(at, "a decision is a UUID")
    return Term(qualifier, values, negated)


def _span(value: str, at: int, *, negated: bool) -> Span:
    """`2026-01-01` is that day; `a..b` from a up to and without b; also `>=`, `>`, `<=`, `<`."""
    if ".." in value:
        low, high = value.split("..", 1)
        return Span(_moment(low, at)[0], _moment(high, at)[0], negated)
    match = _TIME.fullmatch(value)
    if match is None:
        raise _invalid(at, "a time is missing")
    first, after = _moment(match[2], at)
    match match[1]:
        case ">=":
            return Span(first, _LAST_MS, negated)
        case ">":
            return Span(after, _LAST_MS, negated)
        case "<=":
            return Span(0, after, negated)
        case "<":
            return Span(0, first, negated)
        case _:
            return Span(first, after, negated)


def _moment(text: str, at: int) -> tuple[int, int]:
    """(its first millisecond, the first one after it); a date is a whole day, UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _invalid(at, "a time is a date or RFC 3339") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    first = int(moment.timestamp() * 1000)
    if not 0 <= first < _LAST_MS:
        raise _invalid(at, "a time is out of range")
    return first, first + (86_400_000 if len(text) == len("2026-01-01") else 1)


def _invalid(position: int, message: str) -> BehavryError:
    return BehavryError("INVALID_FILTER", message, position=str(position))


class Conditions(NamedTuple):
    """SQL and the values that it binds."""

    #: What an index finds; continues a WHERE.
    found: str
    #: What has to be looked up in each row, as one boolean.
    kept: str
    values: Sequence[object]


def conditions(filter_: Filter, first_parameter: int) -> Conditions:
    """Parameters are numbered from `first_parameter`."""
    found: list[str] = []
    kept: list[str] = []
    values: list[object] = []

    def bind(value: object, kind: str) -> str:
        values.append(value)
        return f"${first_parameter + len(values) - 1}::{kind}"

    for term in filter_.terms:
        clause = _clause(term, bind)
        if term.negated:
            kept.append(f"NOT coalesce({clause}, false)")
        else:
            (found if term.qualifier in _INDEXED else kept).append(clause)
    for span in filter_.spans:
        low, high = bind(_id_of(span.from_ms), "uuid"), bind(_id_of(span.to_ms), "uuid")
        clause = f"(event_id >= {low} AND event_id < {high})"
        if span.negated:
            kept.append(f"NOT {clause}")
        else:
            found.append(clause)
    return Conditions(
        found="".join(f" AND {clause}" for clause in found),
        kept=" AND ".join(kept) or "true",
        values=values,
    )


def _clause(term: Term, bind: Callable[[object, str], str]) -> str:
    values = list(term.values)
    match term.qualifier:
        case "decision":
            ids = bind(values, "uuid[]")
            return f"(event_id = ANY({ids}) OR decision = ANY({ids}))"
        case "agent":
            names = bind(values, "text[]")
            return f"(agent = ANY({names}) OR agent_name = ANY({names}))"
        case "type" if any(value.endswith("*") for value in values):
            patterns = [
                value.replace("\\", r"\\").replace("_", r"\_").replace("%", r"\%")
                for value in values
            ]
            return f"type LIKE ANY({bind([_prefix(p) for p in patterns], 'text[]')})"
        case column:  # one of QUALIFIERS, each of which is a column
            return f"{column} = ANY({bind(values, 'text[]')})"


def _prefix(pattern: str) -> str:
    return f"{pattern[:-1]}%" if pattern.endswith("*") else pattern


def _id_of(milliseconds: int) -> str:
    """The lowest UUIDv7 of a moment: ids sort by their time."""
    digits = f"{milliseconds:012x}"
    return f"{digits[:8]}-{digits[8:]}-0000-0000-000000000000"
