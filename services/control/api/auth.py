"""Sign-in and sign-out of people, the step-up, and who one is.

Sign-in: 1. limits  2. the password, at the same price for an unknown user  3. the second factor of
whoever has one, asked for and answered by itself  4. a new session and its record in one
transaction. A failed try is recorded too, in the account's tenant where there is one. A session's
id is new after each proof: one that was planted or seen before is worth nothing after it.

Step-up: by a second factor; by the password alone only where nobody but this machine reaches us and
while there is no second factor.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from services.common.ids import TenantId
from services.common.postgres.connection import Connection
from services.common.postgres.pool import tenant_tx
from services.control import audit_records, limits, sessions
from services.control.api import proofs
from services.control.api.auth_oidc import end_session_url
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Visit
from services.control.api.guards import anyone, needs
from services.control.api.proofs import Proof, Who
from services.control.api.shapes import Answer, Time
from services.control.audit_records import Circumstances
from services.control.escalations import STEP_UP
from services.control.notifications import notices
from services.control.passkeys import NotProven
from services.control.problems import Refusal
from services.control.roles import Role
from services.control.store import auth_settings, factors, notification_plans, oidc, people
from services.control.store.people import Account

router = APIRouter(prefix="/api/v1", tags=["people"])


class SignIn(Body):
    username: str = Field(min_length=1, max_length=320)
    password: str = Field(min_length=1, max_length=1024)
    #: A command line's: the session's token comes in the answer instead of a cookie.
    bearer: bool = False


class SecondHalf(Proof):
    """The rest of a sign-in."""

    #: From the answer of the first half.
    token: str = Field(min_length=1, max_length=200)


class StepUp(Proof):
    password: str | None = Field(default=None, min_length=1, max_length=1024)
    #: Of the challenge that a passkey answers.
    token: str | None = Field(default=None, min_length=1, max_length=200)


class SecondFactor(Answer):
    """What is asked of whoever has a second factor."""

    token: str
    #: passkey, totp.
    factors: list[str]
    #: For `navigator.credentials.get`, as JSON; null without a passkey.
    passkey: dict[str, Any] | None


class SignedIn(Answer):
    """`csrf_token` for a browser, `token` for whoever asked for a bearer's session; a step-up
    replaces the one that was used. With `second_factor` nobody is signed in yet.
    """

    csrf_token: str | None
    token: str | None = None
    second_factor: SecondFactor | None = None


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
    is_super_admin: bool
    #: Second factors in use.
    factors: list[str]
    #: Until when what needs a step-up may be done; absent for machines.
    stepped_up_until: Time | None = None


@router.post("/auth/login")
async def login(
    visit: Annotated[Visit, anyone()],
    body: Annotated[SignIn, json_body(SignIn)],
    response: Response,
) -> SignedIn:
    await check_origin(visit)
    account, username = await prove(visit, body.username, body.password)
    kind: sessions.Kind = "bearer" if body.bearer else "browser"
    if account.factors:
        who = Who(tenant=account.tenant, user=account.user_id)
        asked, options = await proofs.ask(visit, who, "sign_in", kind)
        wanted = SecondFactor(token=asked, factors=list(account.factors), passkey=options)
        return SignedIn(csrf_token=None, second_factor=wanted)
    token = await open_session(visit, account, username, kind)
    return _told(visit, kind, token, response)


@router.post("/auth/second-factor")
async def give_second_factor(
    visit: Annotated[Visit, anyone()],
    body: Annotated[SecondHalf, json_body(SecondHalf)],
    response: Response,
) -> SignedIn:
    """What was asked for, answered: the session begins."""
    await check_origin(visit)
    kind, token = await second_half(visit, body, body.token)
    return _told(visit, kind, token, response)


@router.post("/auth/step-up:begin")
async def begin_step_up(call: Annotated[Call, needs(Role.VIEWER, human=True)]) -> SecondFactor:
    """What a passkey is asked, for a step-up by one."""
    principal = call.principal
    who = Who(tenant=call.tenant, user=principal.id)
    token, options = await proofs.ask(call, who, "step_up", "")
    return SecondFactor(token=token, factors=list(principal.factors), passkey=options)


@router.post("/auth/step-up")
async def step_up(
    call: Annotated[Call, needs(Role.VIEWER, human=True)],
    body: Annotated[StepUp, json_body(StepUp)],
    response: Response,
) -> SignedIn:
    """Who one is, proven anew, for what a stolen session must not do. Replaces its token."""
    kind: sessions.Kind = "browser" if call.principal.csrf_token else "bearer"
    token = await give_again(call, kind, body)
    return _told(call, kind, token, response)


@router.post("/auth/logout", status_code=204)
async def logout(call: Annotated[Call, needs(Role.VIEWER)]) -> Response:
    """With a `Link` to where a browser signs out of its provider too."""
    provider = await end_session_url(call)
    await end(call)
    headers = {"set-cookie": call.control.origins.clear_cookie()}
    if provider is not None:
        headers["link"] = f'<{provider}>; rel="logout"'
    return Response(status_code=204, headers=headers)


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
        is_super_admin=principal.super_admin,
        factors=list(principal.factors),
        stepped_up_until=principal.proven_at + STEP_UP if principal.proven_at else None,
    )


async def prove(visit: Visit, typed: str, password: str) -> tuple[Account, str]:
    """Whose name and password these are. Raises RATE_LIMITED or UNAUTHENTICATED."""
    control = visit.control
    username = typed.strip().lower()
    await take(visit, username)  # 1
    async with control.pool.acquire() as connection:
        account = await people.find_account(connection, username)
    stored = account.password_hash if account else None
    fits = await control.passwords.matches(stored, password)  # 2
    if account is None or not fits or not account.is_active:
        await _record_failure(visit, account)
        raise Refusal("UNAUTHENTICATED", "User name or password is wrong.")
    if not await password_counts(visit, account):
        actor = {"kind": "user", "id": account.user_id}
        await visit.record_failure(account.tenant, actor, "password_not_used_here")
        raise Refusal("UNAUTHENTICATED", "User name or password is wrong.")
    await control.limits.sign_in.forget((username, visit.address))
    return account, username


async def password_counts(visit: Visit, account: Account) -> bool:
    """Where people sign in by a provider, one admin's alone does: for the day that it is away."""
    async with tenant_tx(visit.control.pool, account.tenant) as connection:
        held = await auth_settings.get(connection)
        if held.provider == "password":
            return True
        return await oidc.break_glass(connection) == account.user_id


async def second_half(visit: Visit, proof: Proof, challenge: str) -> tuple[sessions.Kind, str]:
    """The token of the session that a challenge was the first half of. Raises UNAUTHENTICATED for
    whatever does not fit, RATE_LIMITED.
    """
    control, asked = visit.control, None
    async with control.pool.acquire() as connection:
        asked = await factors.find(connection, sessions.stored(challenge))
    if asked is None or not asked.user_status == asked.tenant_status == "active":
        await take(visit, "")
        await _record_failure(visit, None)
        raise _no_second_factor()
    who = Who(tenant=asked.tenant, user=asked.user_id)
    try:
        method, kind = await proofs.check(visit, who, proof, token=challenge, purpose="sign_in")
    except NotProven:
        await visit.record_failure(
            who.tenant, {"kind": "user", "id": who.user}, "second_factor_refused"
        )
        raise _no_second_factor() from None
    opened: sessions.Kind = "bearer" if kind == "bearer" else "browser"
    half = sessions.stored(challenge)
    return opened, await _begin(visit, who, asked.username, opened, method, half=half)


async def open_session(visit: Visit, account: Account, username: str, kind: sessions.Kind) -> str:
    """The token of a session for whoever proved their password and has no second factor."""
    who = Who(tenant=account.tenant, user=account.user_id)
    seen = account.password_hash
    return await _begin(visit, who, username, kind, "password", password=seen)


async def open_at_once(
    visit: Visit, account: Account, username: str, kind: sessions.Kind, code: str
) -> str:
    """Both halves in one, for a form: `code` is a one-time code of whoever has a second factor.
    Raises UNAUTHENTICATED, RATE_LIMITED.
    """
    if not account.factors:
        return await open_session(visit, account, username, kind)
    who = Who(tenant=account.tenant, user=account.user_id)
    try:
        if not is_code(code):
            raise NotProven
        proof = Proof(totp=code)
        method, _ = await proofs.check(visit, who, proof, token=None, purpose="sign_in")
    except NotProven:
        await visit.record_failure(
            who.tenant, {"kind": "user", "id": who.user}, "second_factor_refused"
        )
        raise Refusal("UNAUTHENTICATED", "A one-time code is needed, and it must fit.") from None
    seen = account.password_hash
    return await _begin(visit, who, username, kind, method, password=seen)


def is_code(text: str) -> bool:
    return len(text) == 6 and text.isascii() and text.isdigit()


async def _begin(
    visit: Visit,
    who: Who,
    username: str,
    kind: sessions.Kind,
    method: str,
    *,
    password: str | None = None,
    half: bytes | None = None,
) -> str:
    """The token of a new session, which begins with its record. What it rests on must still be so:
    the `password` that was seen, or the first `half` that it opened. Raises UNAUTHENTICATED.
    """
    token, session = sessions.new_token(kind), visit.control.new_id()
    actor = {"kind": "user", "id": who.user, "name": username}
    async with tenant_tx(visit.control.pool, who.tenant) as connection:  # 4
        if not await people.may_begin(connection, who.user, password=password, half=half):
            raise _no_second_factor()
        await people.start_session(
            connection,
            who.tenant,
            token_sha256=sessions.stored(token),
            user_id=who.user,
            kind=kind,
            now=visit.now,
            id=session,
            client_ip=visit.address,
            method=method,
        )
        came = visit.came(actor)
        record = audit_records.user("user.signin", who.tenant, came)
        await visit.control.recorder.put(connection, record)
        if (await auth_settings.get(connection)).provider != "password":
            await _tell_of_emergency(visit, connection, came, who.tenant, session)
    visit.control.recorder.wake()
    return token


async def _tell_of_emergency(
    visit: Visit, connection: Connection, came: Circumstances, tenant: TenantId, session: str
) -> None:
    """Where people sign in by a provider, a password is the way of one admin on a bad day: it is on
    record by itself, and whoever hears of anything hears of it.
    """
    record = audit_records.user("user.break_glass", tenant, came)
    await visit.control.recorder.put(connection, record)
    who = notices.sign_in(
        id=session,
        user_id=came.actor["id"],
        user=came.actor["name"],
        client_ip=visit.address,
        at=visit.now,
    )
    await notification_plans.broken_glass(connection, tenant, who, now=visit.now)


async def give_again(call: Call, kind: sessions.Kind, given: StepUp) -> str:
    """The session's next token. Raises RATE_LIMITED, or STEP_UP_REQUIRED for what is wrong or not
    enough.
    """
    control, principal = call.control, call.principal
    method = await (_factor_again if principal.factors else _password_again)(call, given)
    token = sessions.new_token(kind)
    old = principal.session_sha256 or b""
    async with tenant_tx(control.pool, call.tenant) as connection:
        rotated = await people.rotate_session(
            connection,
            old_sha256=old,
            new_sha256=sessions.stored(token),
            now=call.now,
            method=method,
        )
        if not rotated:  # ended, or rotated by another request, in the meantime
            raise Refusal("SESSION_EXPIRED", "Sign in again.")
        record = audit_records.user("user.step_up", call.tenant, call.came(principal.actor()))
        await control.recorder.put(connection, record)
    control.recorder.wake()
    return token


async def _factor_again(call: Call, given: StepUp) -> str:
    """A code that was kept for an emergency is none for this."""
    if given.password is not None or given.recovery_code is not None:
        raise Refusal("STEP_UP_REQUIRED", "Give a one-time code or your passkey.")
    who = Who(tenant=call.tenant, user=call.principal.id)
    try:
        method, _ = await proofs.check(call, who, given, token=given.token, purpose="step_up")
    except NotProven:
        await call.record_failure(call.tenant, call.principal.actor(), "step_up_refused")
        raise Refusal("STEP_UP_REQUIRED", "The second factor does not fit.") from None
    return method


async def _password_again(call: Call, given: StepUp) -> str:
    control, principal = call.control, call.principal
    if given.password is None or not control.origins.loopback:
        words = "Give your password." if control.origins.loopback else "Add a second factor first."
        raise Refusal("STEP_UP_REQUIRED", words)
    await take(call, principal.name)
    async with control.pool.acquire() as connection:
        account = await people.find_account(connection, principal.name)
    stored = account.password_hash if account and account.user_id == principal.id else None
    if not await control.passwords.matches(stored, given.password):
        await call.record_failure(call.tenant, principal.actor(), "step_up_refused")
        raise Refusal("STEP_UP_REQUIRED", "The password is wrong.")
    await control.limits.sign_in.forget((principal.name, call.address))
    return "password"


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


async def check_origin(visit: Visit) -> None:
    """Another site must not sign a browser in under an account of its own (login CSRF)."""
    origin = visit.request.headers.get("origin")
    if origin is not None and not visit.control.origins.allows(origin):
        await visit.record_failure(
            None, {"kind": "unknown"}, "csrf_failed", type="user.request_refused"
        )
        raise Refusal("CSRF_FAILED", "The Origin header must name this installation.")


async def take(visit: Visit, username: str) -> None:
    """Raises RATE_LIMITED."""
    try:
        await visit.control.limits.sign_in_address.take(visit.address)
        await visit.control.limits.sign_in.take((username, visit.address))
    except limits.TooMany as full:
        raise too_many(full) from None


def too_many(full: limits.TooMany) -> Refusal:
    """When there is room again is in it."""
    return Refusal(
        "RATE_LIMITED",
        "Too many tries. Try again later.",
        headers={"retry-after": str(full.retry_after_s)},
    )


def _no_second_factor() -> Refusal:
    return Refusal("UNAUTHENTICATED", "That does not fit. Sign in again.")


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
