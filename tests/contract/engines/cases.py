"""Reads tests/contract/cases/*.yaml: policies, changes to a sample input, what must come out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from services.authorizer import envelope
from services.authorizer.engine.answer import EngineAnswer
from services.authorizer.engine.batching import Said
from tests.fakes.bundle import Policy
from tests.fakes.envelopes import example

DIRECTORY = Path(__file__).parents[1] / "cases"


@dataclass(frozen=True, slots=True)
class Ask:
    changes: dict[str, Any]
    expect: dict[str, Any]

    def envelope(self) -> envelope.Envelope:
        return envelope.decode(json.dumps(example(self.changes)).encode())


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    policies: tuple[Policy, ...]
    asks: tuple[Ask, ...]

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def load(*names: str) -> list[Case]:
    return [
        Case(
            name=raw["name"],
            policies=tuple(
                Policy(policy["key"], policy["rego"], policy.get("state", "enforce"))
                for policy in raw.get("policies", ())
            ),
            asks=tuple(Ask(ask.get("changes", {}), ask["expect"]) for ask in raw["asks"]),
        )
        for name in names
        for raw in yaml.safe_load((DIRECTORY / f"{name}.yaml").read_text())
    ]


def seen(said: Said, wanted: dict[str, Any]) -> dict[str, Any]:
    """What came out, in the form of `expect` and with its keys only."""
    if not isinstance(said, EngineAnswer):
        return {"failure": said.code}
    decision = said.decision
    known = {
        "result": decision.result,
        "code": decision.reason_code,
        "reason": decision.reason,
        "codes": list(decision.codes),
        "policies": list(decision.policies),
        "quorum": decision.quorum,
        "shadow": [
            {"policy": one.policy, "result": one.result, "code": one.code}
            for one in decision.shadow
        ],
    }
    kept = {key: value for key, value in known.items() if key in wanted}
    return kept or {"result": decision.result, "code": decision.reason_code}
