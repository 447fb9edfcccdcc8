"""Decides whether bytes are what people decided about an escalation (core.md 9):
`behavry.escalation-decision/1`, signed by the trust root's role `decision`. Pure; applying it is
approvals.py's work.

The plane believes the signature and what is signed, never the link that brought it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from joserfc import errors as jose
from joserfc import jws
from joserfc.jwk import ECKey
from msgspec import Meta, Struct

from services.authorizer.tickets.ticket import MAX_EXECUTE_MS, MAX_GRANT_MS, MAX_USES

VERSION: Final = "behavry.escalation-decision/1"
TYPE: Final = "behavry-decision"
MAX_BYTES: Final = 8 * 1024
#: How far control's clock may be ahead of this plane's.
MAX_SKEW_MS: Final = 5 * 60 * 1000


class DecisionRefused(Exception):
    """Not a decision for this escalation. `reason` names the check that failed, never a value."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"escalation decision refused: {reason}")
        self.reason = reason


class SignedDecision(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: Literal["behavry.escalation-decision/1"]
    plane: str
    tenant: str
    escalation: str
    binding: str
    verdict: Literal["approve", "deny", "revoke", "cancel"]
    #: How many calls an approval is good for.
    uses: Annotated[int, Meta(ge=0, le=MAX_USES)]
    decided_at_ms: Annotated[int, Meta(ge=0)]
    execute_by_ms: Annotated[int, Meta(ge=0)]
    approvers: Annotated[tuple[str, ...], Meta(max_length=20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a decision must repeat to be about this escalation."""

    plane: str
    tenant: str
    escalation: str


class _Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    alg: Literal["ES256"]
    kid: str
    typ: Literal["behavry-decision"]


def verify(
    token: str, expected: Expected, *, keys: Mapping[str, dict[str, Any]], now_ms: int
) -> SignedDecision:
    """1. size, header: ES256, our type, nothing else  2. a key of the role  3. signature
    4. shape  5. plane, tenant, escalation  6. uses and clocks. Raises DecisionRefused.
    """
    header = _header(token)  # 1
    key = keys.get(header.kid)  # 2
    if key is None:
        raise DecisionRefused("unknown_key")
    try:  # 3
        checked = jws.deserialize_compact(token, ECKey.import_key(key), algorithms=["ES256"])
    except (jose.JoseError, ValueError):
        raise DecisionRefused("signature") from None
    try:  # 4
        said = msgspec.json.decode(checked.payload, type=SignedDecision)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DecisionRefused("malformed") from None
    if said.plane != expected.plane:  # 5
        raise DecisionRefused("plane")
    if said.tenant != expected.tenant:
        raise DecisionRefused("tenant")
    if said.escalation != expected.escalation:
        raise DecisionRefused("escalation")
    _check_clocks(said, now_ms)  # 6
    return said


def _header(token: str) -> _Header:
    if len(token) > MAX_BYTES:
        raise DecisionRefused("malformed")
    try:
        part = token.split(".", 1)[0].encode("ascii")
        decoded = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
        return msgspec.json.decode(decoded, type=_Header)
    except (ValueError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DecisionRefused("header") from None


def _check_clocks(said: SignedDecision, now_ms: int) -> None:
    if said.decided_at_ms > now_ms + MAX_SKEW_MS:
        raise DecisionRefused("clocks")
    if said.verdict != "approve":
        return
    if said.uses < 1 or not said.approvers:
        raise DecisionRefused("uses")
    longest_ms = MAX_EXECUTE_MS if said.uses == 1 else MAX_GRANT_MS
    if not said.decided_at_ms < said.execute_by_ms <= said.decided_at_ms + longest_ms:
        raise DecisionRefused("clocks")
