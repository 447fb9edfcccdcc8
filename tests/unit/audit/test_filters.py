"""The filter of lists: what terms mean, and where a mistake is."""

from __future__ import annotations

import pytest

from services.audit.filters import Span, Term, conditions, parse
from services.common.errors import BehavryError

DAY_MS = 86_400_000
NEW_YEAR_MS = 1_767_225_600_000


def test_terms_qualifiers_negation_alternatives_quotes() -> None:
    parsed = parse('  agent:x -tool:read_file verdict:deny,intercept server:"my server" ')

    assert (
        Term("agent", ("x",), negated=False),
        Term("tool", ("read_file",), negated=True),
        Term("verdict", ("deny", "intercept"), negated=False),
        Term("server", ("my server",), negated=False),
    ) == parsed.terms


@pytest.mark.parametrize(
    ("text", "from_ms", "to_ms"),
    [
        ("2026-01-01", NEW_YEAR_MS, NEW_YEAR_MS + DAY_MS),
        ("2026-01-01..2026-01-03", NEW_YEAR_MS, NEW_YEAR_MS + 2 * DAY_MS),
        (">=2026-01-01", NEW_YEAR_MS, (1 << 48) - 1),
        (">2026-01-01", NEW_YEAR_MS + DAY_MS, (1 << 48) - 1),
        ("<2026-01-01", 0, NEW_YEAR_MS),
        ("<=2026-01-01", 0, NEW_YEAR_MS + DAY_MS),
        (">=2026-01-01T01:00:00+01:00", NEW_YEAR_MS, (1 << 48) - 1),
        ("2026-01-01T00:00:00Z", NEW_YEAR_MS, NEW_YEAR_MS + 1),
    ],
)
def test_times(text: str, from_ms: int, to_ms: int) -> None:
    assert (Span(from_ms, to_ms, negated=False),) == parse(f"time:{text}").spans


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("colour:red", 0),
        ("tool:a colour:red", 7),
        ("-colour:red", 1),
        ("red", 0),
        ("tool:", 0),
        ('tool:"open', 0),
        ("tool:a tool", 7),
        ("tool:,", 5),
        ("time:tomorrow", 5),
        ("time:>=9999-99-99", 5),
        ("time:0001-01-01", 5),
        ("decision:me", 9),
        ('tool:"a\0"', 5),
        ("tool:x " * 21, 140),
        ("tool:" + "x" * 3_000, 2_000),
    ],
)
def test_a_mistake_has_a_position(text: str, position: int) -> None:
    with pytest.raises(BehavryError) as refused:
        parse(text)

    assert ("INVALID_FILTER", str(position)) == (
        refused.value.reason,
        refused.value.metadata["position"],
    )


def test_values_are_bound_and_never_part_of_the_statement() -> None:
    hostile = "x'/**/OR/**/1=1;--"
    where = conditions(parse(f"tool:{hostile} -agent:{hostile} type:{hostile}*"), 5)

    assert hostile not in where.found + where.kept
    assert [[hostile], [hostile], [f"{hostile}%"]] == where.values
    assert "$5::text[]" in where.kept


def test_what_an_index_finds_is_not_looked_for_row_by_row() -> None:
    one = "01a1fe9f-73d2-7f92-8f33-7e1cbbb5a52d"
    sought = conditions(parse(f"decision:{one} time:2026-01-01"), 5)
    barred = conditions(parse(f"-decision:{one} -time:2026-01-01"), 5)

    assert "true" == sought.kept
    assert 2 == sought.found.count(" AND (")
    assert "" == barred.found
    assert 2 == barred.kept.count("NOT ")


def test_a_star_ends_a_type_and_means_nothing_elsewhere() -> None:
    assert [["call\\_x.%"]] == conditions(parse("type:call_x.*"), 1).values
    assert [["a*"]] == conditions(parse("tool:a*"), 1).values
