"""Activating a licence. Its key goes to entitlements and nowhere else: records know its hash."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final

from fastapi import APIRouter
from pydantic import Field

from services.control.api import bodies, plan_changes
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.plan import License, license_of
from services.control.clients.entitlements import Cause
from services.control.features import Entitlements
from services.control.roles import Role

router = APIRouter(prefix="/api/v1/license", tags=["plan"])

MAX_KEY_BYTES: Final = 16 * 1024


class Activation(Body):
    #: A licence or a list of revoked ones, as its issuer gave it.
    key: str = Field(min_length=1, repr=False)
    #: Also where one that was issued later is active.
    replace: bool = False


@router.post("/activate")
async def activate_license(
    call: Annotated[Call, needs(Role.ADMIN, keyed=True)],
    body: Annotated[Activation, json_body(Activation)],
) -> License:
    key = body.key.strip()
    if len(key.encode()) > MAX_KEY_BYTES:
        raise bodies.too_large(MAX_KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    wanted = plan_changes.Wanted(
        before="admin.license.activate",
        done="license.activated",
        refused="license.refused",
        resource="license",
        resource_id=digest,
        said={"replace": True} if body.replace else {},
    )

    async def act(cause: Cause) -> Entitlements:
        held, activated = await call.control.plans.activate(
            call.tenant, key, cause, replace=body.replace
        )
        if activated is not None:
            wanted.told["jti"] = activated.jti
        return held

    return await license_of(call, await plan_changes.change(call, wanted, act))
