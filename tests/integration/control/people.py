"""What tests of people share: a plan that has teams, a second person, whoever runs it all."""

from __future__ import annotations

from typing import Any, Final
from uuid import uuid4

from services.common.ids import TenantId
from services.control.features import KEYS, Entitlements, FeatureAnswer
from tests.integration.control import neighbour
from tests.integration.control.conftest import Answered, Rest
from tests.integration.control.escalated import Somebody, run, signed_in

USERS: Final = "/api/v1/users"
INVITES: Final = "/api/v1/invites"
TENANTS: Final = "/api/v1/tenants"
WHY: Final = {"x-behavry-reason": "a test looks after this tenant"}


def entitle(rest: Rest, tenant: str = "", *, mode: str = "on", bundles: bool = True) -> None:
    """What entitlements would say of the tenant: it has all features, or had them. `bundles`: of
    the second tenant too, so that they are built.
    """
    if bundles:
        neighbour.has_a_plan(rest.running.control.features)
    rest.running.control.features.update(
        Entitlements(
            tenant=TenantId(tenant or rest.running.tenant.id),
            plan="professional",
            status="ACTIVE",
            plan_expires_at_s=None,
            revision=1,
            features=tuple(
                FeatureAnswer(
                    key=key,
                    allowed=mode == "on",
                    mode=mode,
                    source="PLAN",
                    required_plan="professional",
                )
                for key in sorted(KEYS)
            ),
        )
    )


async def operator(rest: Rest) -> Somebody:
    """The admin, who also runs the installation; granted past control, as on the host."""
    await run(rest, "UPDATE control.users SET is_super_admin = true WHERE username = 'admin'")
    return await signed_in(rest)


async def invited(rest: Rest, email: str, role: str = "viewer", **more: Any) -> Answered:
    headers = {"idempotency-key": str(uuid4())}
    return await rest.post(INVITES, {"email": email, "role": role}, headers=headers, **more)


async def came(rest: Rest, email: str, role: str = "viewer") -> Somebody:
    """Invited, accepted, signed in."""
    token = (await invited(rest, email, role)).json["token"]
    password = f"the password of {email}"
    answer = await rest.post(f"{INVITES}:accept", {"token": token, "password": password}, key=None)
    assert 201 == answer.status, answer.body
    return await signed_in(rest, email, password)
