"""Sign-in and sign-out of people, the password given again, and who one is.

Sign-in: 1. limits  2. the password, at the same price for an unknown user  3. a new session and its
record in one transaction. A failed try is recorded too, in the account's tenant where there is one.
A session's id is new after each proof of the password: one that was planted or seen before is worth
nothing after it.
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
from services.control.api.shapes import Answer, Time
from services.control.escalations import STEP_UP
from services.control.problems import Refusal
from services.control.roles import Role
from services.control.store import people
from services.control.store.people import Account

router = APIRouter(prefix="/api/v1", tags=["people"])


class SignIn(Body):
    username: str = Field(min_length=1, max_length=320)
    password: str = Field(min_length=1, max_length=1024)
    #: A command line's: the session's token comes in the answer instead of a cookie.
    bearer: bool = False


class StepUp(Body):
    password: str = Field(min_length=1, max_length=1024)


class SignedIn(Answer):
    """`csrf_token` for a browser, `token` for whoever asked for a bearer's session; a step-up
    replaces the one that was used.
    """

    csrf_token: str | None
    token: str | None = None


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
    #: Until when what needs a step-up may be done; absent for machines.
    stepped_up_until: Time | None = None


@router.post("/auth/login")
async def login(
    visit: Annotated[Visit, anyone()],
    body: Annotated[SignIn, json_body(SignIn)],
    response: Response,
) -> SignedIn:
    check_origin(visit)
    account, username = await prove(visit, body.username, body.password)
    kind: sessions.Kind = "bearer" if body.bearer else "browser"
    token = await open_session(visit, account, username, kind)
    return _told(visit, kind, token, response)


@router.post("/auth/step-up")
async def step_up(
    call: Annotated[Call, needs(Role.VIEWER, human=True)],
    body: Annotated[StepUp, json_body(StepUp)],
    response: Response,
) -> SignedIn:
    """The password again, for what a stolen session must not do. Replaces the session's token."""
    kind: sessions.Kind = "browser" if call.principal.csrf_token else "bearer"
    token = await give_again(call, kind, body.password)
    return _told(call, kind, token, response)


@router.post("/auth/logout", status_code=204)
async def logout(call: Annotated[Call, needs(Role.VIEWER)]) -> Response:
    await end(call)
    return Response(status_code=204, headers={"set-cookie": call.control.origins.clear_cookie()})


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
        stepped_up_until=principal.proven_at + STEP_UP if principal.proven_at else None,
    )


async def prove(visit: Visit, typed: str, password: str) -> tuple[Account, str]:
    """Whose name and password these are. Raises RATE_LIMITED or UNAUTHENTICATED."""
    control = visit.control
    username = typed.strip().lower()
    _take(visit, username)  # 1
    async with control.pool.acquire() as connection:
        account = await people.find_account(connection, username)
    stored = account.password_hash if account else None
    fits = await control.passwords.matches(stored, password)  # 2
    if account is None or not fits or not account.is_active:
        await _record_failure(visit, account)
        raise Refusal("UNAUTHENTICATED", "User name or password is wrong.")
    control.limits.sign_in.forget((username, visit.address))
    return account, username


async def open_session(visit: Visit, account: Account, username: str, kind: sessions.Kind) -> str:
    """The token of a new session, which begins with its record."""
    token = sessions.new_token(kind)
    tenant: TenantId = account.tenant
    actor = {"kind": "user", "id": account.user_id, "name": username}
    async with tenant_tx(visit.control.pool, tenant) as connection:  # 3
        await people.start_session(
            connection,
            tenant,
            token_sha256=sessions.stored(token),
            user_id=account.user_id,
            kind=kind,
            now=visit.now,
            id=visit.control.new_id(),
            client_ip=visit.address,
        )
        record = audit_records.user("user.signin", tenant, visit.came(actor))
        await visit.control.recorder.put(connection, record)
    visit.control.recorder.wake()
    return token


async def give_again(call: Call, kind: sessions.Kind, password: str) -> str:
    """The session's next token. Raises RATE_LIMITED, or STEP_UP_REQUIRED for a wrong password."""
    control, principal = call.control, call.principal
    _take(call, principal.name)
    async with control.pool.acquire() as connection:
        account = await people.find_account(connection, principal.name)
    stored = account.password_hash if account and account.user_id == principal.id else None
    if not await control.passwords.matches(stored, password):
        await call.record_failure(call.tenant, principal.actor(), "step_up_refused")
        raise Refusal("STEP_UP_REQUIRED", "The password is wrong.")
    control.limits.sign_in.forget((principal.name, call.address))
    token = sessions.new_token(kind)
    old = principal.session_sha256 or b""
    async with tenant_tx(control.pool, call.tenant) as connection:
        rotated = await people.rotate_session(
            connection, old_sha256=old, new_sha256=sessions.stored(token), now=call.now
        )
        if not rotated:  # ended, or rotated by another request, in the meantime
            raise Refusal("SESSION_EXPIRED", "Sign in again.")
        record = audit_records.user("user.step_up", call.tenant, call.came(principal.actor()))
        await control.recorder.put(connection, record)
    control.recorder.wake()
    return token


async def end(call: Call) -> None:
    """Ends the caller's session, recorded. Raises INVALID_ARGUMENT where there is none."""
    control, principal = call.control, call.principal
    if principal.session_sha256 is None:
        raise Refusal("INVALID_ARGUMENT", "An API key has no session; delete the key instead.")
    async with tenant_tx(control.pool, principal.tenant) as connection:
        await people.end_session(connection, principal.session_sha256, call.now)
        record = audit_records.user("user.signout", call.tenant, call.came(principal.actor()))
        await control.recorder.put(connection, record)
    control.recorder.wake()


def check_origin(visit: Visit) -> None:
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


def _told(visit: Visit, kind: sessions.Kind, token: str, response: Response) -> SignedIn:
    if kind == "bearer":
        return SignedIn(csrf_token=None, token=token)
    response.headers["set-cookie"] = visit.control.origins.set_cookie(token)
    return SignedIn(csrf_token=sessions.csrf_token(token))
