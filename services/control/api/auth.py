"""Sign-in and sign-out of people, and who one is.

Sign-in: 1. limits  2. the password, at the same price for an unknown user  3. a new session and its
record in one transaction. A failed try is recorded too, in the account's tenant where there is one.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from services.common.ids import TenantId
from services.common.postgres.pool import tenant_tx
from services.control import audit_records, limits, sessions
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Visit
from services.control.api.guards import anyone, needs
from services.control.api.shapes import Answer
from services.control.problems import Refusal
from services.control.roles import Role
from services.control.store import people
from services.control.store.people import Account

router = APIRouter(prefix="/api/v1", tags=["people"])


class SignIn(Body):
    username: str = Field(min_length=1, max_length=320)
    password: str = Field(min_length=1, max_length=1024)


class SignedIn(Answer):
    csrf_token: str


class Tenant(Answer):
    id: str
    slug: str


class Me(Answer):
    kind: str
    id: str
    name: str
    role: str
    tenant: Tenant
    csrf_token: str | None


@router.post("/auth/login")
async def login(
    visit: Annotated[Visit, anyone()],
    body: Annotated[SignIn, json_body(SignIn)],
    response: Response,
) -> SignedIn:
    control = visit.control
    username = body.username.strip().lower()
    _check_origin(visit)
    _take(visit, username)  # 1
    async with control.pool.acquire() as connection:
        account = await people.find_account(connection, username)
    stored = account.password_hash if account else None
    fits = await control.passwords.matches(stored, body.password)  # 2
    if account is None or not fits or account.status != "active":
        await _record_failure(visit, account)
        raise Refusal("UNAUTHENTICATED", "User name or password is wrong.")
    token = sessions.new_token()
    await _start_session(visit, account, username, token)  # 3
    control.limits.sign_in.forget((username, visit.address))
    response.headers["set-cookie"] = control.origins.set_cookie(token)
    return SignedIn(csrf_token=sessions.csrf_token(token))


@router.post("/auth/logout", status_code=204)
async def logout(call: Annotated[Call, needs(Role.VIEWER)]) -> Response:
    control, principal = call.control, call.principal
    if principal.session_sha256 is None:
        raise Refusal("INVALID_ARGUMENT", "An API key has no session; delete the key instead.")
    async with tenant_tx(control.pool, principal.tenant) as connection:
        await people.end_session(connection, principal.session_sha256, call.now)
        record = audit_records.user("user.signout", call.tenant, call.came(principal.actor()))
        await control.recorder.put(connection, record)
    control.recorder.wake()
    return Response(status_code=204, headers={"set-cookie": control.origins.clear_cookie()})


@router.get("/me")
async def me(call: Annotated[Call, needs(Role.VIEWER)]) -> Me:
    principal = call.principal
    return Me(
        kind=principal.kind,
        id=principal.id,
        name=principal.name,
        role=principal.role.key,
        tenant=Tenant(id=principal.tenant, slug=principal.tenant_slug),
        csrf_token=principal.csrf_token,
    )


def _check_origin(visit: Visit) -> None:
    """Another site must not sign a browser in under an account of its own (login CSRF)."""
    origin = visit.request.headers.get("origin")
    if origin is not None and not visit.control.origins.allows(origin):
        raise Refusal("CSRF_FAILED", "The Origin header must name this installation.")


def _take(visit: Visit, username: str) -> None:
    try:
        visit.control.limits.sign_in_address.take(visit.address)
        visit.control.limits.sign_in.take((username, visit.address))
    except limits.TooMany as too_many:
        raise Refusal(
            "RATE_LIMITED",
            "Too many sign-ins. Try again later.",
            headers={"retry-after": str(too_many.retry_after_s)},
        ) from None


async def _record_failure(visit: Visit, account: Account | None) -> None:
    """The name that was typed is not kept: people type passwords there."""
    tenant = account.tenant if account else None
    actor = {"kind": "user", "id": account.user_id} if account else {"kind": "unknown"}
    await visit.record_failure(tenant, actor, "unauthenticated")


async def _start_session(visit: Visit, account: Account, username: str, token: str) -> None:
    tenant: TenantId = account.tenant
    actor = {"kind": "user", "id": account.user_id, "name": username}
    async with tenant_tx(visit.control.pool, tenant) as connection:
        await people.start_session(
            connection,
            tenant,
            token_sha256=sessions.stored(token),
            user_id=account.user_id,
            now=visit.now,
        )
        record = audit_records.user("user.signin", tenant, visit.came(actor))
        await visit.control.recorder.put(connection, record)
    visit.control.recorder.wake()
