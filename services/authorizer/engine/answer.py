"""What an engine answers, and how it says so on the wire. What verdicts add up to is decided in
services/common/rego/verdicts.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from msgspec import Raw, Struct

from services.common.rego.verdicts import (
    UNREADABLE,
    AnswerInvalid,
    Decision,
    PolicyKey,
    Result,
    Said,
    ShadowVerdict,
    Verdict,
    decide,
    grouped,
)

MAX_SHADOW: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAnswer:
    """A well-formed decision of the revision that was asked for."""

    decision: Decision
    engine: str
    engine_us: int


FailureCode = Literal[
    "engine_error",
    "engine_invalid",
    "engine_timeout",
    "obligation_unknown",
    "policy_unavailable",
    "revision_mismatch",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFailure:
    """No usable answer: a Deny with this code. `shared`: the query failed as a whole, and this
    item may be innocent; asked alone it would show.
    """

    code: FailureCode
    engine: str
    engine_us: int = 0
    shared: bool = False


# What each engine sends. The embedded child groups by policy; OPA sends pairs and its own result.


class OpaDecision(Struct, frozen=True, forbid_unknown_fields=True):
    result: Result
    verdicts: tuple[Said, ...]


_pairs: Final = msgspec.json.Decoder(OpaDecision)
_shadow_pairs: Final = msgspec.json.Decoder(tuple[tuple[PolicyKey, Raw], ...])
_raw_list: Final = msgspec.json.Decoder(tuple[Raw, ...])
_verdict: Final = msgspec.json.Decoder(Verdict)


def decide_grouped(raw: bytes | Raw) -> Decision:
    """The decision of `[[policy, [verdict, ...]], ...]`."""
    return decide(grouped(raw))


def decide_opa(raw: bytes | Raw) -> Decision:
    """The decision of `{"result": ..., "verdicts": [[policy, verdict], ...]}`; OPA's result must
    be ours.
    """
    try:
        answer = _pairs.decode(raw)
    except UNREADABLE:
        raise AnswerInvalid("the decision") from None
    decision = decide(answer.verdicts)
    if decision.result != answer.result:
        raise AnswerInvalid("the result")
    return decision


def shadow_pairs(raw: bytes | Raw, *, by_policy: bool) -> tuple[ShadowVerdict, ...]:
    """What policies in shadow said. What is not well-formed is left out: it never counts."""
    found: list[ShadowVerdict] = []
    try:
        for policy, said in _shadow_pairs.decode(raw)[:MAX_SHADOW]:
            for verdict_raw in _raw_list.decode(said) if by_policy else (said,):
                found.extend(_shadow_verdict(policy, verdict_raw))
    except UNREADABLE:
        return ()
    return tuple(found[:MAX_SHADOW])


def _shadow_verdict(policy: str, raw: Raw) -> tuple[ShadowVerdict, ...]:
    try:
        verdict = _verdict.decode(raw)
    except UNREADABLE:
        return ()
    return (ShadowVerdict(policy=policy, result=verdict.result, code=verdict.code),)
