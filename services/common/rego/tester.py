"""Runs a policy's test cases: the policy alone, in a child of its own, within a time limit.

Decides whether what the policy says is what its author expects; whether it may then be enforced is
the caller's rule.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from services.common.ids import NIL_TENANT
from services.common.rego import frames, shipped
from services.common.rego.process import End, Outcome, RegoProcess
from services.common.rego.verdicts import AnswerInvalid, ObligationUnknown, decide, grouped

LIMIT_S: Final = 5.0

#: What a policy alone came to. `none`: it said nothing; `error`: it could not be evaluated.
Outcomes = Literal["allow", "deny", "intercept", "none", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTest:
    """`input` is a whole `behavry.input/1`; `code` is compared where it is given."""

    name: str
    input: dict[str, Any] = field(repr=False)
    result: Outcomes
    code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTestOutcome:
    name: str
    passed: bool
    result: Outcomes
    code: str
    detail: str = ""


async def run_tests(
    source: str, package: str, tests: Sequence[PolicyTest], *, limit_s: float = LIMIT_S
) -> list[PolicyTestOutcome]:
    """One outcome per test, in order. `package` is the policy's, dotted. The source has passed
    check_policy.
    """
    policy = frames.ChildPolicy(key="policy", entry=f"data.{package}.verdicts")
    modules = {**shipped.modules(), "policy.rego": source}
    spec = frames.ChildTenant(tenant=NIL_TENANT, modules=modules, policies=(policy,))
    child = await RegoProcess.start()
    try:
        async with asyncio.timeout(limit_s):
            loaded = await child.load("test", [spec])
            if loaded.end is not End.DONE:
                return [_failed(test, "the policy cannot be loaded") for test in tests]
            return [await _run(child, test, limit_s) for test in tests]
    except TimeoutError:
        return [_failed(test, f"the tests took longer than {limit_s:g} s") for test in tests]
    finally:
        await child.close()


async def _run(child: RegoProcess, test: PolicyTest, limit_s: float) -> PolicyTestOutcome:
    item = json.dumps(test.input).encode()
    outcome = await child.evaluate("test", NIL_TENANT, [item], limit_s=limit_s)
    return _judged(test, outcome)


def _judged(test: PolicyTest, outcome: Outcome) -> PolicyTestOutcome:
    if outcome.end is not End.DONE or len(outcome.items) != 1 or outcome.items[0].error:
        return _compared(test, "error", "", "the policy could not be evaluated on this input")
    try:
        said = grouped(outcome.items[0].said)
        decision = decide(said)
    except AnswerInvalid:
        return _compared(test, "error", "", "a verdict is not well-formed")
    except ObligationUnknown:
        return _compared(test, "error", "", "an obligation cannot be enforced in this version")
    if not said:
        return _compared(test, "none", "", "")
    return _compared(test, decision.result, decision.reason_code, "")


def _compared(test: PolicyTest, result: Outcomes, code: str, detail: str) -> PolicyTestOutcome:
    passed = result == test.result and test.code in {None, code}
    return PolicyTestOutcome(name=test.name, passed=passed, result=result, code=code, detail=detail)


def _failed(test: PolicyTest, detail: str) -> PolicyTestOutcome:
    return PolicyTestOutcome(name=test.name, passed=False, result="error", code="", detail=detail)
