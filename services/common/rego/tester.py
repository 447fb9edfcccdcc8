"""Runs a policy's own test cases in a child of their own: what does this policy alone say?

What a case expects is the caller's; the policy was checked before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from services.common.errors import BehavryError
from services.common.rego import frames, parse, shipped
from services.common.rego.names import PolicyRef, policy_package
from services.common.rego.process import End, RegoProcess
from services.common.rego.sample import sample_input

Verdict = Literal["allow", "deny", "intercept", "none", "error"]
CASE_LIMIT_S: Final = 5.0
_STRENGTH: Final[tuple[Verdict, ...]] = ("deny", "intercept", "allow")
_said: Final = msgspec.json.Decoder(list[tuple[str, list[dict[str, Any]]]])


async def run_cases(
    source: str, tenant: str, key: str, changes: Sequence[Mapping[str, Any]]
) -> list[Verdict]:
    """The policy's strongest result for the sample input with each of `changes` merged in.

    Raises TOOL_UNAVAILABLE where no engine is installed, POLICY_REJECTED where it does not load.
    """
    if not parse.available():
        raise BehavryError("TOOL_UNAVAILABLE", "no engine for test cases is installed here")
    items = [msgspec.json.encode(sample_input(change)) for change in changes]
    ref = PolicyRef(key=key, package=policy_package(tenant, key))
    modules = {**shipped.modules(), "policy.rego": source}
    policies = (frames.ChildPolicy(ref.key, ref.entry),)
    child = await RegoProcess.start()
    try:
        loaded = await child.load("test", [frames.ChildTenant(tenant, modules, policies)])
        if loaded.end is not End.DONE:
            raise BehavryError("POLICY_REJECTED", "the engine cannot load the policy", rule="load")
        outcome = await child.evaluate("test", tenant, items, limit_s=CASE_LIMIT_S)
    finally:
        await child.close()
    verdicts = [_strongest(item) for item in outcome.items]
    # A case that held the child too long leaves itself and those behind it without an answer.
    missing: list[Verdict] = ["error"] * (len(items) - len(verdicts))
    return verdicts + missing


def _strongest(item: frames.Item) -> Verdict:
    if item.error:
        return "error"
    said = {
        verdict.get("result") for _, verdicts in _said.decode(item.said) for verdict in verdicts
    }
    return next((result for result in _STRENGTH if result in said), "none")
