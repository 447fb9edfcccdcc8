"""The form in which a plane gets what people decided: behavry.escalation-decision/1, signed ES256.

Exactly one function makes the bytes. A plane believes the signature and the binding in it, never
the link that brought it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from joserfc import jws
from joserfc.jwk import ECKey

from services.common.ids import PlaneId, TenantId
from services.control.escalations import Verdict

VERSION: Final = "behavry.escalation-decision/1"
TYPE: Final = "behavry-decision"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`uses` is 1 where nothing may be used; `execute_by` is None there."""

    plane: PlaneId
    tenant: TenantId
    escalation: str
    binding: str
    verdict: Verdict
    uses: int = 1
    decided_at: datetime
    execute_by: datetime | None = None
    approvers: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionKey:
    private: ECKey = field(repr=False)
    kid: str

    @classmethod
    def from_file(cls, path: Path) -> DecisionKey:
        """A PEM file with the private key of the trust root's role `decision`."""
        key = ECKey.import_key(path.read_bytes())
        return cls(private=key, kid=key.thumbprint())

    def sign(self, decision: Decision) -> str:
        """A compact JWS."""
        header = {"alg": "ES256", "kid": self.kid, "typ": TYPE}
        return jws.serialize_compact(header, payload(decision), self.private, algorithms=["ES256"])


def payload(decision: Decision) -> bytes:
    said = {
        "v": VERSION,
        "plane": decision.plane,
        "tenant": decision.tenant,
        "escalation": decision.escalation,
        "binding": decision.binding,
        "verdict": decision.verdict,
        "uses": decision.uses,
        "decided_at_ms": millis(decision.decided_at),
        "execute_by_ms": millis(decision.execute_by) if decision.execute_by else 0,
        "approvers": list(decision.approvers),
    }
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def millis(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000 + 0.5) // 1_000
