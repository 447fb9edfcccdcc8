"""The fake control signs what people decided as the real one does, and a plane believes both."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from behavry.control.v1 import plane_link_pb2 as wire
from services.authorizer.signed_decision import Expected, verify
from services.common.ids import TenantId
from services.control.escalations import Verdict
from services.control.signed_decisions import Decision, DecisionKey
from tests.fakes.control import PLANE, TENANT, FakeControl

NOW_MS = 1_767_225_600_000
OPENED = wire.EscalationOpened(
    id="0199d0d0-0000-7000-8000-0000000000e5",
    tenant_id=TENANT,
    binding="b1:00000000:" + "0" * 64,
    execute_for_s=900,
)


def parts(token: str) -> list[dict[str, Any]]:
    return [
        json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        for part in token.split(".")[:2]
    ]


def at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


@pytest.mark.parametrize(
    ("verdict", "uses", "until_ms"),
    [
        ("approve", 1, NOW_MS + 900_000),
        ("approve", 20, NOW_MS + 3_600_000),
        ("deny", 1, 0),
        ("revoke", 1, 0),
        ("cancel", 1, 0),
    ],
)
def test_both_controls_sign_the_same_bytes_and_the_plane_believes_them(
    tmp_path: Path, verdict: Verdict, uses: int, until_ms: int
) -> None:
    fake = FakeControl(tmp_path)
    (tmp_path / "decision.pem").write_bytes(fake.decision_key.as_pem(private=True))
    real = DecisionKey.from_file(tmp_path / "decision.pem").sign(
        Decision(
            plane=PLANE,
            tenant=TenantId(OPENED.tenant_id),
            escalation=OPENED.id,
            binding=OPENED.binding,
            verdict=verdict,
            uses=uses,
            decided_at=at(NOW_MS),
            execute_by=at(until_ms) if until_ms else None,
            approvers=["0199d0d0-0000-7000-8000-0000000000aa"],
        )
    )
    faked = fake.decide(OPENED, verdict, now_ms=NOW_MS, uses=uses, execute_by_ms=until_ms).jws
    kid = fake.decision_key.thumbprint()
    keys = {kid: {**fake.decision_key.as_dict(private=False), "kid": kid}}
    expected = Expected(plane=PLANE, tenant=OPENED.tenant_id, escalation=OPENED.id)
    believed = [verify(one, expected, keys=keys, now_ms=NOW_MS) for one in (real, faked)]

    assert parts(real) == parts(faked)
    assert believed[0] == believed[1]
    assert (verdict, uses) == (believed[0].verdict, believed[0].uses)
