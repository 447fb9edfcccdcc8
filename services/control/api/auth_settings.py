"""`settings/auth`: how a tenant's people sign in. One document, changed as a whole by whoever has
read it (ETag, If-Match), right after a proof of who they are.

Three things bring a change into force, whichever comes last: an admin proposes it, a super-admin
who is somebody else approves it, a sign-in by it works (auth_tests.py). Where there is nobody else,
neither another admin nor another super-admin, and the plan has no teams, the only one approves it
alone, on record. A secret is a reference, as everywhere.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field, StringConstraints, model_validator
from starlette.responses import Response

from services.control.api.auth_taking_effect import NotPossible, settle
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Change
from services.control.api.guards import needs, operates
from services.control.api.shapes import Answer, Time, check_if_match, tag
from services.control.api.users import Level
from services.control.audit_records import change as changed
from services.control.audit_records import differences
from services.control.auth_changes import Pending
from services.control.oidc.configuration import TEAMS
from services.control.problems import Refusal, not_found
from services.control.roles import Role
from services.control.store import auth_changes as changes
from services.control.store import auth_settings as store
from services.control.store.auth_settings import AuthSettings

router = APIRouter(prefix="/api/v1/settings/auth", tags=["settings"])
approving = APIRouter(prefix="/api/v1/tenants", tags=["tenants"])

_RESOURCE: Final = "auth"
SAML: Final = "saml_sso"
_ISSUER: Final = (
    r"^(?:https://[a-z0-9.-]+|http://(?:127\.0\.0\.1|localhost))(?::[0-9]{1,5})?(?:/[\w./~-]*)?$"
)
Word = Annotated[str, StringConstraints(pattern=r"^[^\s\x00-\x1f\x7f]{1,200}$")]


class RoleRule(Body):
    #: A value of the claim, and whom it makes.
    value: str = Field(min_length=1, max_length=200)
    role: Level


class Oidc(Body):
    issuer: Annotated[str, StringConstraints(pattern=_ISSUER, max_length=500)]
    client_id: Word
    #: `secret://name`; null: PKCE alone.
    client_secret: (
        Annotated[str, StringConstraints(pattern=r"^secret://[a-z0-9][a-z0-9._-]{0,63}$")] | None
    ) = None
    scopes: list[Word] = Field(default=["openid", "email", "profile"], max_length=20)
    #: Without one, roles are given here.
    role_claim: Word | None = None
    #: The first that fits.
    roles: list[RoleRule] = Field(default=[], max_length=100)
    #: Whether whoever the provider knows comes in, or only whoever was invited.
    just_in_time: bool = False
    #: Empty: all.
    email_domains: list[Word] = Field(default=[], max_length=100)


class AuthDocument(Body):
    provider: Literal["password", "oidc", "saml"]
    oidc: Oidc | None = None

    @model_validator(mode="after")
    def _fits(self) -> AuthDocument:
        if (self.provider == "oidc") != (self.oidc is not None):
            raise ValueError("oidc goes with its settings, and nothing else does")
        return self


class Proposed(Answer):
    """A change that waits. `waits_for`: `approval`, `test` (also where the last one is too old)."""

    id: str
    provider: str
    oidc: dict[str, Any] | None
    proposed_by: str
    proposed_at: Time
    approved_by: str | None
    approved_at: Time | None
    tested_by: str | None
    tested_at: Time | None
    #: Why the last try did not work.
    test_failure: str | None
    waits_for: list[str]


class Auth(Answer):
    provider: str
    oidc: dict[str, Any] | None
    proposed: Proposed | None


@router.get("")
async def get_auth_settings(call: Annotated[Call, needs(Role.ADMIN)], response: Response) -> Auth:
    async with call.read() as connection:
        held, pending = await changes.both(connection)
    tag(response, held.revision)
    return _told(held, pending, call.now)


@router.put("")
async def put_auth_settings(
    call: Annotated[Call, needs(Role.ADMIN, human=True, fresh=True)],
    body: Annotated[AuthDocument, json_body(AuthDocument)],
    response: Response,
) -> Auth:
    """It waits for an approval and a test, in place of what waited before."""
    _check_provider(call, body.provider)
    wanted = body.model_dump()
    async with call.change(desired=False) as change:
        held = await store.get(change.connection, lock=True)
        check_if_match(call.request, held.revision, required=True)
        await changes.propose(
            change.connection,
            call.tenant,
            wanted,
            id=call.control.new_id(),
            by=call.principal.id,
            now=call.now,
        )
        held = await _next(call, change, held)
        old = {"provider": held.provider, "oidc": held.document.get("oidc")}
        await change.record(
            "admin.auth.proposed",
            resource=_RESOURCE,
            resource_id=call.tenant,
            changes=differences(old, wanted),
            step_up=True,
        )
        pending = await changes.get(change.connection)
    tag(response, held.revision)
    return _told(held, pending, call.now)


@approving.post("/{tenant_id:uuid}/auth:approve")
async def approve_auth_settings(
    tenant_id: UUID, call: Annotated[Call, operates(fresh=True)], response: Response
) -> Auth:
    """What the tenant's admin proposed. Needs If-Match: it is what was read."""
    async with call.change(desired=False) as change:
        connection = change.connection
        held = await store.get(connection, lock=True)
        check_if_match(call.request, held.revision, required=True)
        pending = await changes.get(connection, lock=True)
        if pending is None or str(tenant_id) != call.tenant:
            raise not_found(f"proposal of {_RESOURCE}")
        alone = await _check_another(call, change, pending)
        by = call.principal.id
        await changes.approve(connection, pending.id, by=by, sole_operator=alone, now=call.now)
        held = await _next(call, change, held)
        await change.record(
            "admin.auth.approved",
            resource=_RESOURCE,
            resource_id=call.tenant,
            changes=[changed("sole_operator", None, True)] if alone else [],
            step_up=True,
        )
        try:
            held = await settle(change, held, now=call.now)
        except NotPossible as refused:
            raise refused.refusal() from None
        pending = await changes.get(connection)
    tag(response, held.revision)
    return _told(held, pending, call.now)


def _check_provider(call: Call, provider: str) -> None:
    """SAML is a plan's, and of what is here nothing speaks it. Raises FEATURE_NOT_INCLUDED,
    TOOL_UNAVAILABLE.
    """
    if provider != "saml":
        return
    refusal = call.plan.refusal(SAML, "write")
    if refusal is not None and not call.principal.super_admin:
        raise refusal
    raise Refusal("TOOL_UNAVAILABLE", "SAML needs xmlsec1, which this installation does not have.")


async def _check_another(call: Call, change: Change, pending: Pending) -> bool:
    """Whether it is the only one who approves their own. Raises SELF_APPROVAL_FORBIDDEN."""
    if pending.proposed_by != call.principal.id:
        return False
    teams = call.plan.mode(TEAMS) == "on"
    if teams or not await changes.is_alone(change.connection, call.principal.id):
        raise Refusal("SELF_APPROVAL_FORBIDDEN", "A super-admin who is somebody else approves it.")
    return True


async def _next(call: Call, change: Change, held: AuthSettings) -> AuthSettings:
    after = await store.touch(change.connection, call.tenant, held, now=call.now)
    if after is None:
        raise Refusal("STALE_REVISION", "Read it again first.")
    return after


def _told(held: AuthSettings, pending: Pending | None, now: datetime) -> Auth:
    return Auth(
        provider=held.provider,
        oidc=held.document.get("oidc"),
        proposed=None if pending is None else _proposed(pending, now),
    )


def _proposed(pending: Pending, now: datetime) -> Proposed:
    names = (
        "id", "provider", "proposed_by", "proposed_at", "approved_by", "approved_at",
        "tested_by", "tested_at", "test_failure",
    )  # fmt: skip
    told = {name: getattr(pending, name) for name in names}
    return Proposed(
        **told, waits_for=list(pending.waits_for(now)), oidc=pending.document.get("oidc")
    )
