"""What a policy may be, and what is refused when it is saved: rule, line and column."""

import pytest

from services.common.rego.check import PolicyRejected, PolicyReport, check_policy
from services.common.rego.names import policy_package
from tests.house import tool
from tests.promises import promise

pytestmark = pytest.mark.needs_regorus

TENANT = "0192f5c0-0000-7000-8000-000000000001"
PACKAGE = policy_package(TENANT, "rule")
COUNT = 'count(input.features.paths) == "many"'
VERDICT = '{"result": "deny", "code": "c", "reason": "r", "obligations": []}'


def check(body: str, package: str = PACKAGE) -> PolicyReport:
    return check_policy(f"package {package}\n\n{body}\n", TENANT, "rule")


def when(condition: str, more: str = "") -> str:
    return f"verdicts contains {VERDICT} if {{\n\t{condition}\n}}\n{more}"


def rejected(body: str, package: str = PACKAGE) -> PolicyRejected:
    with pytest.raises(PolicyRejected) as caught:
        check(body, package)
    return caught.value


@pytest.mark.parametrize(
    "condition",
    [
        'input.request.tool == "rm"',
        "some path in input.features.paths\n\tpath.depth < 3",
        'not startswith(input.request.resource, "/tmp/")',
        "input.request.arguments.options.force",
        "regex.match(`^[0-9]+$`, input.request.tool)",
        'every host in input.features.recipient_domains { endswith(host, ".example") }',
        'input.agent["class"] == "default"',
        "input.context.hour > 18",
        'sprintf("%v-%v", [input.request.server, input.request.tool]) == "a-b"',
    ],
)
def test_an_honest_policy_is_taken(condition: str) -> None:
    assert PACKAGE == check(when(condition)).package


@pytest.mark.parametrize(
    ("rule", "line", "body"),
    [
        ("syntax", 5, when("input.request.tool == ")),
        ("syntax", 4, when("unknown_name > 3")),
        ("verdicts", 1, "helper := 1"),
        ("verdicts", 3, f"verdicts := [{VERDICT}]"),
        ("verdicts", 3, f"verdicts[x] := {VERDICT} if x := 1"),
        ("decision", 3, f"allow := true\n\nverdicts contains {VERDICT}"),
        ("decision", 3, 'decision := {"result": "allow"}\n\nverdicts contains ' + VERDICT),
        ("decision", 3, f"default allow := true\n\nverdicts contains {VERDICT}"),
        ("shadowed", 3, f"count(x) := 1 if x\n\nverdicts contains {VERDICT}"),
        ("builtin", 4, when("http.send({}).status_code == 200")),
        ("builtin", 4, when('opa.runtime().env.X == "1"')),
        ("builtin", 4, when('net.cidr_contains("10.0.0.0/8", "10.1.1.1")')),
        ("builtin", 4, when('rand.intn("a", 2) == 1')),
        ("builtin", 4, when('uuid.rfc4122("a") != ""')),
        ("builtin", 4, when("time.now_ns() > 3")),
        ("builtin", 4, when('print("x")')),
        ("builtin", 4, when('trace("x")')),
        ("builtin", 4, when('crypto.sha256(input.request.tool) != ""')),
        ("builtin", 7, when('input.request.tool == "x"', "\nunused if no_such_function(1)")),
        ("arity", 4, when("count(input.features.paths, 3)")),
        ("import", 1, "import data.behavry.base.grants\n\n" + when("count(grants.verdicts) > 0")),
        ("data", 4, when('data.behavry.state.tenants[_].slug == "x"')),
        ("data", 4, when(f"data.{policy_package(TENANT, 'other')}.verdicts[_]")),
        ("data", 4, when("data.behavry.authz[_].decision")),
        ("data", 4, when("data[_][_][_]")),
        ("data", 4, when("data.behavry.lib.no_such_rule")),
        ("with", 5, when("ready\n\tready with data.behavry.lib.x as 1", "\nready := true")),
        ("with", 4, when("ready with count as 3", "\nready if count([1]) == 3")),
        ("recursion", 7, when("a", "\na if b\n\nb if a")),
        ("recursion", 7, when("f(1)", "\nf(x) if f(x - 1)")),
        ("input", 4, when('input.findings.items[_].category == "pii"')),
        ("input", 4, when("input.context.counters.deletes > 3")),
        ("input", 4, when("input.context.volume_ratio > 3")),
        ("input", 4, when('input.risk.tier == "high"')),
        ("input", 4, when("input.requester.verified")),
        ("input", 4, when("input.delegation.depth > 1")),
        ("input", 4, when('input.agent.budget == "exceeded"')),
        ("input", 4, when("input.request.toool == 1")),
        ("input", 4, when("input.nonsense")),
        ("input", 4, when("walk(input, [_, x])\n\tx == 1")),
        ("input", 4, when("part := input.context\n\tpart.counters.deletes > 3")),
        ("input", 4, when("input.context[input.request.tool] == 1")),
        ("head", 6, when("limits.a.b", "limits.a.b := true")),
        ("not", 4, when("not {input.request.tool}")),
        ("minus", 4, when("input.context.hour > -input.context.weekday")),
        ("pattern", 4, when("regex.match(`\\d+`, input.request.tool)")),
        ("pattern", 4, when("regex.match(input.request.resource, input.request.tool)")),
        ("format", 4, when('sprintf("%5.2f", [input.context.hour]) == ""')),
        (
            "in_with",
            4,
            when("some i, x in input.features.tables with input.request.tool as 1\n\ti == x"),
        ),
    ],
)
@promise("policy:refused-at-save")
def test_what_is_refused_is_refused_by_rule_and_place(rule: str, line: int, body: str) -> None:
    failure = rejected(body)

    assert (rule, line) == (failure.rule, failure.line)
    assert "POLICY_REJECTED" == failure.reason
    assert {"rule": rule, "line": str(line)}.items() <= failure.metadata.items()


def test_another_package_is_refused() -> None:
    for package in ("behavry.base.grants", "behavry.authz", policy_package(TENANT, "other")):
        assert "package" == rejected(f"verdicts contains {VERDICT}", package).rule


def test_a_policy_of_more_than_64_kib_is_refused() -> None:
    padding = "# " + "x" * 1000 + "\n"
    assert "too_large" == rejected(padding * 66 + when("true")).rule
    assert PACKAGE == check(padding * 60 + when("true")).package


def test_a_policy_that_crashes_the_parser_is_refused_and_we_live_on() -> None:
    assert rejected(when("(" * 20_000 + "1" + ")" * 20_000)).rule in {"syntax", "nesting"}


def test_a_refusal_quotes_no_policy_text() -> None:
    failure = rejected(when('input.request.tool == "s3cret-name" ]'))

    assert "s3cret-name" not in str(failure)


def test_the_report_names_what_is_read_and_what_must_hold() -> None:
    body = """import input.request as request

verdicts contains v if {
	request.tool == "rm"
	input.features.paths[_].depth < limit
	v := {"result": "deny", "code": "c", "reason": "r", "obligations": []}
}

limit := 3 if input.agent.class == "default"

unused if input.context.hour > 3
"""
    report = check(body)

    assert {
        ("request", "tool"),
        ("features", "paths"),
        ("agent", "class"),
    } == report.references
    assert ((((("request", "tool"), "rm"),)),) == report.guards


@pytest.mark.needs_opa
def test_what_only_opas_compiler_refuses_is_refused_too() -> None:
    binary = str(tool("opa"))
    mistyped = f"package {PACKAGE}\n\n{when(COUNT)}\n"

    with pytest.raises(PolicyRejected) as caught:
        check_policy(mistyped, TENANT, "rule", opa=binary)
    assert ("syntax", 4) == (caught.value.rule, caught.value.line)
    honest = mistyped.replace('"many"', "3")
    assert PACKAGE == check_policy(honest, TENANT, "rule", opa=binary).package
