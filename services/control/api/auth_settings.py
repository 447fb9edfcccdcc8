"""`settings/auth`: how a tenant's people sign in. One document, changed as a whole by whoever has
read it (ETag, If-Match), right after a proof of who they are.

It takes two: what an admin of the tenant puts waits until a super-admin approves it, and is shown
meanwhile. An admin who is a super-admin too is both. A secret is a reference, as everywhere.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field, StringConstraints, model_validator
from starlette.responses import Response

from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Change
from services.control.api.guards import needs, operates
from services.control.api.shapes import Answer, check_if_match, tag
from services.control.api.users import Level
from services.control.audit_records import differences
from services.control.problems import Refusal, not_found
from services.control.roles import Role
from services.control.store import auth_settings as store
from services.control.store.auth_settings import AuthSettings

router = APIRouter(prefix="/api/v1/settings/auth", tags=["settings"])
approving = APIRouter(prefix="/api/v1/tenants", tags=["tenants"])

_RESOURCE: Final = "auth"
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
    provider: Literal["password", "oidc"]
    oidc: Oidc | None = None

    @model_validator(mode="after")
    def _fits(self) -> AuthDocument:
        if (self.provider == "oidc") != (self.oidc is not None):
            raise ValueError("oidc goes with its settings, and nothing else does")
        return self


class Auth(Answer):
    provider: str
    oidc: dict[str, Any] | None
    #: What waits for a super-admin.
    proposed: dict[str, Any] | None


@router.get("")
async def get_auth_settings(call: Annotated[Call, needs(Role.ADMIN)], response: Response) -> Auth:
    async with call.read() as connection:
        held = await store.get(connection)
    tag(response, held.revision)
    return _told(held)


@router.put("")
async def put_auth_settings(
    call: Annotated[Call, needs(Role.ADMIN, human=True, fresh=True)],
    body: Annotated[AuthDocument, json_body(AuthDocument)],
    response: Response,
) -> Auth:
    """In force at once where a super-admin says so; else it waits for one."""
    wanted = body.model_dump()
    async with call.change(desired=False) as change:
        held = await store.get(change.connection, lock=True)
        check_if_match(call.request, held.revision, required=True)
        if call.principal.super_admin:
            made = await _in_force(call, change, held, wanted)
        else:
            document = {**held.document, "proposed": {**wanted, "by": call.principal.id}}
            made = await _kept(call, change, held, held.provider, document)
            await _record(call, change, "proposed", held, wanted)
    tag(response, made.revision)
    return _told(made)


@approving.post("/{tenant_id:uuid}/auth:approve")
async def approve_auth_settings(
    tenant_id: UUID, call: Annotated[Call, operates(fresh=True)], response: Response
) -> Auth:
    """What the tenant's admin proposed comes into force. Needs If-Match: it is what was read."""
    async with call.change(desired=False) as change:
        held = await store.get(change.connection, lock=True)
        check_if_match(call.request, held.revision, required=True)
        proposed = held.document.get("proposed")
        if proposed is None or str(tenant_id) != call.tenant:
            raise not_found(f"proposal of {_RESOURCE}")
        wanted = {name: proposed[name] for name in ("provider", "oidc")}
        made = await _in_force(call, change, held, wanted)
    tag(response, made.revision)
    return _told(made)


async def _in_force(
    call: Call, change: Change, held: AuthSettings, wanted: dict[str, Any]
) -> AuthSettings:
    document = {"oidc": wanted["oidc"]} if wanted["oidc"] else {}
    made = await _kept(call, change, held, wanted["provider"], document)
    await _record(call, change, "updated", held, wanted)
    return made


async def _kept(
    call: Call, change: Change, held: AuthSettings, provider: str, document: dict[str, Any]
) -> AuthSettings:
    revision = await store.put(
        change.connection,
        call.tenant,
        after=held.revision,
        provider=provider,
        document=document,
        now=call.now,
    )
    if revision is None:
        raise Refusal("STALE_REVISION", "Read it again first.")
    return AuthSettings(provider=provider, document=document, revision=revision)


async def _record(
    call: Call, change: Change, verb: str, held: AuthSettings, wanted: dict[str, Any]
) -> None:
    old = {"provider": held.provider, "oidc": held.document.get("oidc")}
    await change.record(
        f"admin.auth.{verb}",
        resource=_RESOURCE,
        resource_id=call.tenant,
        changes=differences(old, wanted),
        step_up=True,
    )


def _told(held: AuthSettings) -> Auth:
    document = held.document
    return Auth(
        provider=held.provider, oidc=document.get("oidc"), proposed=document.get("proposed")
    )
