"""What policies may say, and what it adds up to: decides which verdicts make a decision.

Pure and strict: a verdict that is not well-formed spoils the decision, an obligation that nobody
enforces too, and where nothing is said, nothing is allowed. Both engines and the policies' test
cases end here: any deny > any intercept > any allow > default_deny.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Raw, Struct

Result = Literal["allow", "deny", "intercept"]

MAX_VERDICTS: Final = 1024
MAX_QUORUM: Final = 5

#: Obligations that the proxy carries out. None yet: each joins in the change that enforces it.
ENFORCED: Final[frozenset[str]] = frozenset()

_STRENGTH: Final[dict[Result, int]] = {"deny": 0, "intercept": 1, "allow": 2}


class Obligation(Struct, frozen=True):
    """`{"type": "max_result_bytes", ...}`; what else it holds depends on its type."""

    type: Annotated[str, Meta(min_length=1, max_length=40)]


class Verdict(Struct, frozen=True, forbid_unknown_fields=True):
    """One element of a policy's `verdicts`."""

    result: Result
    code: Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,63}$")]
    reason: Annotated[str, Meta(max_length=256)]
    obligations: Annotated[tuple[Raw, ...], Meta(max_length=32)]
    #: How many people must agree where the call is held; out of these bounds spoils the decision.
    quorum: Annotated[int, Meta(ge=1, le=MAX_QUORUM)] = 1


PolicyKey = Annotated[str, Meta(min_length=1, max_length=80)]
Said = tuple[PolicyKey, Verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowVerdict:
    policy: str
    result: Result
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`behavry.decision/1`. `codes` starts with `reason_code`."""

    result: Result
    reason_code: str
    reason: str
    policies: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    obligations: tuple[bytes, ...] = ()
    shadow: tuple[ShadowVerdict, ...] = ()
    quorum: int = 1


class AnswerInvalid(Exception):
    """These verdicts are not well-formed. The text says where, never what."""


class ObligationUnknown(Exception):
    """A verdict asks for something that nobody enforces."""


DEFAULT_DENY: Final = Decision(
    result="deny",
    reason_code="default_deny",
    reason="no policy allows this call",
    codes=("default_deny",),
)


def decide(said: Sequence[Said]) -> Decision:
    """1. nothing said: default_deny  2. strongest result  3. its reasons, the first by policy and
    code leads; a denial names the intercepts too  4. all obligations, each enforced  5. the
    largest quorum that any verdict asks for.
    """
    if not said:  # 1
        return DEFAULT_DENY
    if len(said) > MAX_VERDICTS:
        raise AnswerInvalid("too many verdicts")
    ranked = sorted(said, key=lambda one: (_STRENGTH[one[1].result], one[0], one[1].code))
    result = ranked[0][1].result  # 2
    counted = [one for one in ranked if (one[1].result == "allow") == (result == "allow")]  # 3
    obligations = tuple(dict.fromkeys(_obligations(said)))  # 4
    return Decision(
        result=result,
        reason_code=ranked[0][1].code,
        reason=ranked[0][1].reason,
        policies=tuple(dict.fromkeys(policy for policy, _ in counted)),
        codes=tuple(dict.fromkeys(verdict.code for _, verdict in counted)),
        obligations=obligations,
        quorum=max(verdict.quorum for _, verdict in said),  # 5
    )


def _obligations(said: Iterable[Said]) -> Iterable[bytes]:
    for _, verdict in said:
        for raw in verdict.obligations:
            try:
                obligation = msgspec.json.decode(raw, type=Obligation)
            except msgspec.DecodeError:
                raise AnswerInvalid("an obligation") from None
            if obligation.type not in ENFORCED:
                raise ObligationUnknown
            yield bytes(raw)


#: What bytes that are not the expected JSON raise.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_grouped: Final = msgspec.json.Decoder(tuple[tuple[PolicyKey, tuple[Verdict, ...]], ...])


def grouped(raw: bytes | Raw) -> list[Said]:
    """The verdicts of `[[policy, [verdict, ...]], ...]`, as the embedded child sends them."""
    try:
        found = _grouped.decode(raw)
    except UNREADABLE:
        raise AnswerInvalid("the verdicts") from None
    return [(policy, verdict) for policy, verdicts in found for verdict in verdicts]
