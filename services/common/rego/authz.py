"""Writes the generated package of a tenant: one static reference per policy, and the aggregation.

The embedded engine finds nothing by an indexed package lookup, and OPA indexes literal conditions:
so each policy gets a line of its own, with its guards written out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.common.rego.guards import Guard, Guards
from services.common.rego.names import Path, PolicyRef, authz_package

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivePolicy:
    """A policy in enforce or shadow, with what check_policy found out about it."""

    ref: PolicyRef
    guards: Guards = None


def authz_module(tenant: str, policies: Sequence[ActivePolicy]) -> str:
    """The module's text. `policies` holds the base policies too (`shipped.base_policies()`)."""
    return "\n".join(_lines(tenant, policies)) + "\n"


def _lines(tenant: str, policies: Sequence[ActivePolicy]) -> Iterator[str]:
    enforced = [policy for policy in policies if policy.ref.state == "enforce"]
    shadowed = [policy for policy in policies if policy.ref.state == "shadow"]
    yield f"package {authz_package(tenant)}"
    yield ""
    for policy in enforced:
        yield from _rules("verdicts", policy)
    yield "decision := {"
    yield '\t"result": data.behavry.lib.decision.strongest({v.result | some [_, v] in verdicts}),'
    yield '\t"verdicts": verdicts,'
    yield "}"
    yield ""
    yield from _batch("batch", "decision")
    if shadowed:
        for policy in shadowed:
            yield from _rules("shadow", policy)
        yield from _batch("shadow_batch", "shadow")


def _rules(rule: str, policy: ActivePolicy) -> Iterator[str]:
    for guard in policy.guards or ((),):
        yield f"{rule} contains [{json.dumps(policy.ref.key)}, v] if {{"
        yield from (f"\t{condition}" for condition in _conditions(guard))
        yield f"\tsome v in {policy.ref.entry}"
        yield "}"
        yield ""


def _conditions(guard: Guard) -> Iterator[str]:
    for path, wanted in guard:
        field = f"input{_steps(path)}"
        if isinstance(wanted, str | bool):
            yield f"{field} == {json.dumps(wanted)}"
        else:
            yield f"{wanted[0]}({field}, {json.dumps(wanted[1])})"


def _steps(path: Path) -> str:
    return "".join(
        f".{step}" if _NAME.fullmatch(step) else f"[{json.dumps(step)}]" for step in path
    )


def _batch(rule: str, entry: str) -> Iterator[str]:
    yield f"{rule} := [answer |"
    yield "\tsome i, item in input.items"
    yield f"\tsaid := {entry} with input as item"
    yield '\tanswer := {"i": i, "decision": said}'
    yield "]"
    yield ""
