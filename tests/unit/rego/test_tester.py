"""A policy's test cases: the policy alone, each with what it should say."""

import pytest

from services.common.rego.names import policy_package
from services.common.rego.sample import sample_input
from services.common.rego.tester import PolicyTest, run_tests

pytestmark = pytest.mark.needs_regorus

PACKAGE = policy_package("0192f5c0-0000-7000-8000-000000000001", "rule")
SOURCE = f"""package {PACKAGE}

verdicts contains {{"result": "deny", "code": "no_rm", "reason": "r", "obligations": []}} if {{
	input.request.tool == "rm"
}}

verdicts contains {{"result": "deny", "code": "x", "reason": "r", "obligations": []}} if {{
	input.request.tool == "fail"
	to_number(input.request.tool) > 1
}}

verdicts contains {{"result": "never", "code": "x"}} if input.request.tool == "odd"

verdicts contains {{"result": "deny", "code": "x", "reason": "r", "obligations": []}} if {{
	input.request.tool == "slow"
	count([1 | some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); a * b == 0]) > 0
}}
"""


def case(tool: str, result: str, code: str | None = None) -> PolicyTest:
    document = sample_input({"request": {"tool": tool}})
    return PolicyTest(name=tool, input=document, result=result, code=code)  # type: ignore[arg-type]  # parametrised


async def test_each_case_is_compared_with_what_the_policy_says() -> None:
    outcomes = await run_tests(
        SOURCE,
        PACKAGE,
        [
            case("rm", "deny"),
            case("rm", "deny", "no_rm"),
            case("rm", "deny", "other"),
            case("rm", "allow"),
            case("ls", "none"),
            case("ls", "deny"),
            case("fail", "error"),
            case("odd", "error"),
        ],
    )

    assert [True, True, False, False, True, False, True, True] == [one.passed for one in outcomes]
    assert ["deny"] * 4 + ["none"] * 2 + ["error"] * 2 == [one.result for one in outcomes]


async def test_tests_that_never_end_fail_in_time() -> None:
    outcomes = await run_tests(
        SOURCE, PACKAGE, [case("slow", "deny"), case("rm", "deny")], limit_s=0.5
    )

    assert [False, False] == [one.passed for one in outcomes]


async def test_a_policy_that_cannot_be_loaded_passes_nothing() -> None:
    (outcome,) = await run_tests("package nonsense\n\nx := {", PACKAGE, [case("rm", "deny")])

    assert not outcome.passed
