"""What a decision can read: static paths, whole subtrees where a reference is dynamic, and all that
is reachable from the entry.
"""

import json

import pytest

from services.common.rego import references, shipped, tree
from services.common.rego.guard_index import GuardIndex
from services.common.rego.guards import Wanted, guards_of
from services.common.rego.names import Path

pytestmark = pytest.mark.needs_regorus

ENTRY = ("p", "verdicts")


def parsed(*sources: str) -> list[tree.Module]:
    import regorus  # noqa: PLC0415  # an optional wheel

    engine = regorus.Engine()
    for number, source in enumerate(sources):
        engine.add_policy(f"{number}.rego", source)
    return tree.modules(json.loads(engine.get_ast_as_json()))


def reads(body: str, *others: str) -> set[str]:
    program = references.Program(parsed(f"package p\n\n{body}\n", *others))
    return {".".join(path) for path in references.reads_of(program, [ENTRY])}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('verdicts contains 1 if input.a.b == "x"', {"a.b"}),
        ('verdicts contains 1 if input["a"].b', {"a.b"}),
        ("verdicts contains 1 if input.a[`b`]", {"a.b"}),
        ("verdicts contains 1 if input.a[_].c", {"a"}),
        ("verdicts contains 1 if input.a[0].c", {"a"}),
        ("verdicts contains 1 if { some k; input.a[k] == 1 }", {"a"}),
        ("verdicts contains 1 if input.a[input.b.c].d", {"a", "b.c"}),
        ("verdicts contains 1 if { x := input.a; x.b }", {"a"}),
        ("verdicts contains 1 if { x := input; x.b }", {""}),
        ("verdicts contains 1 if { walk(input, [_, 1]) }", {""}),
        ("verdicts contains 1 if { walk(input.a, [_, 1]) }", {"a"}),
        ("verdicts contains 1 if { some k; input[k] == 1 }", {""}),
        ("verdicts contains 1 if not input.a.b", {"a.b"}),
        ("verdicts contains 1 if count(input.a) > input.b", {"a", "b"}),
        ("verdicts contains 1 if { every x in input.a { x == input.b } }", {"a", "b"}),
        ("verdicts contains x if some x in input.a", {"a"}),
        ("verdicts contains input.a if input.b", {"a", "b"}),
        ("verdicts contains 1 if { count([y | y := input.a.b]) > 0 }", {"a.b"}),
        ("verdicts contains 1 if input.a\n\nverdicts contains 2 if input.a.b", {"a"}),
        ("verdicts contains 1 if helper\n\nhelper if input.a", {"a"}),
        ("verdicts contains 1 if f(1)\n\nf(x) if input.a == x", {"a"}),
        ("verdicts contains 1 if f(input.b)\n\nf(x) if x.c", {"b"}),
        ("verdicts contains 1\n\nunused if input.a", set()),
        ("verdicts contains 1 if h with input.a as input.b\n\nh if input.a", {"a", "b"}),
        ("verdicts contains 1 if h with input as {}\n\nh if input.a", {"a"}),
        ("import input.a as r\n\nverdicts contains 1 if r.b", {"a.b"}),
        ("import input.a\n\nverdicts contains 1 if a.b", {"a.b"}),
        ("verdicts contains 1 if d == 1\n\ndefault d := 0\n\nd := 1 if input.a", {"a"}),
        (
            "verdicts contains 1 if x == 2\n\nx := 1 if { input.a } else := 2 if { input.b }",
            {"a", "b"},
        ),
        ('verdicts contains 1 if data.p["helper"]\n\nhelper if input.a', {"a"}),
    ],
)
def test_what_a_rule_reads(body: str, expected: set[str]) -> None:
    assert expected == reads(body)


def test_libraries_count_where_they_are_reached() -> None:
    library = "package behavry.lib.x\n\nhot if input.a\n\ncold if input.b\n"
    body = "import data.behavry.lib.x\n\nverdicts contains 1 if x.hot"

    assert {"a"} == reads(body, library)


def test_a_reference_that_cannot_be_resolved_reaches_everything_below_it() -> None:
    library = "package behavry.lib.x\n\nhot if input.a\n\ncold if input.b\n"

    assert {"a", "b"} == reads("verdicts contains 1 if data.behavry.lib[_].hot", library)


def test_a_shorter_path_swallows_the_longer_ones() -> None:
    assert [["a"], ["b", "c"]] == references.reads_for(
        [frozenset({("a",), ("a", "b")}), frozenset({("b", "c"), ("a", "x", "y")})]
    )
    assert [[]] == references.reads_for([frozenset({("a",)}), references.EVERYTHING])


def test_the_base_policies_read_what_they_grant_by() -> None:
    assert {
        ("agent", "permissions"),
        ("request", "action"),
        ("request", "domain"),
    } == shipped.base_references()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('verdicts contains 1 if input.a == "x"', (((("a",), "x"),),)),
        ('verdicts contains 1 if "x" == input.a.b', (((("a", "b"), "x"),),)),
        ('verdicts contains 1 if { input.a = "x"; input.b > 3 }', (((("a",), "x"),),)),
        ("verdicts contains 1 if input.a == true", (((("a",), True),),)),
        ("verdicts contains 1 if input.a == 1", None),
        ('verdicts contains 1 if input.a != "x"', None),
        ('verdicts contains 1 if not input.a == "x"', None),
        ('verdicts contains 1 if input.a[_] == "x"', None),
        ('verdicts contains 1 if input.a == "x" with input.a as "y"', None),
        ("verdicts contains 1", None),
        (
            'verdicts contains 1 if startswith(input.request.tool, "rm")',
            (((("request", "tool"), ("startswith", "rm")),),),
        ),
        ('verdicts contains 1 if startswith(input.request.schema_hash, "rm")', None),
        ('verdicts contains 1 if startswith(input.request.arguments.x, "rm")', None),
        ('verdicts contains 1 if startswith("rm", input.request.tool)', None),
        ('verdicts contains 1 if input.a == "x"\n\nverdicts contains 2 if input.b > 1', None),
        (
            'verdicts contains 1 if input.a == "x"\n\nverdicts contains 2 if input.a == "y"',
            (((("a",), "x"),), ((("a",), "y"),)),
        ),
    ],
)
def test_what_must_hold_before_a_policy_speaks(body: str, expected: object) -> None:
    (module,) = parsed(f"package p\n\n{body}\n")

    assert expected == guards_of(module)


def test_the_index_finds_who_may_speak() -> None:
    def guard(**facts: Wanted) -> tuple[tuple[Path, Wanted], ...]:
        return tuple(((name,), value) for name, value in facts.items())

    index = GuardIndex(
        [None, (guard(a="x"),), (guard(a="x", b=True),), (guard(a="y"), guard(a="z"))]
    )

    assert [0] == index.candidates({})
    assert [0] == index.candidates("no object")
    assert [0, 1] == index.candidates({"a": "x", "b": False})
    assert [0, 1, 2] == index.candidates({"a": "x", "b": True})
    assert [0, 3] == index.candidates({"a": "z"})
    assert [0] == index.candidates({"a": ["x"]})
    prefixed = GuardIndex(
        [(guard(a=("startswith", "rm")),), (guard(a=("startswith", "rm"), b=True),)]
    )

    assert [0] == prefixed.candidates({"a": "rmdir"})
    assert [0, 1] == prefixed.candidates({"a": "rmdir", "b": True})
    assert [] == prefixed.candidates({"a": "arm", "b": True})
    assert [] == prefixed.candidates({})
    assert [0] == prefixed.candidates({"a": 7})  # the function fails, and that must be seen
