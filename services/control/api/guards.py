"""Who may call a route. Each route has exactly one guard; what OpenAPI says of roles, people and
keys is read from the guard itself, so the description cannot differ from what is enforced.

Order (control.md 2.1): the credential, 401; the browser's CSRF proof, 403; the role, 403; that it
is a person, 403; the idempotency key, 400. Bodies are read after that, by `bodies`, so that a
broken one never answers before them.

No deferred annotations here: the framework resolves them against a callable's globals, which an
instance does not have.
"""

from datetime import datetime
from typing import Any, Final

from fastapi import Depends
from starlette.requests import Request

from services.common.ids import TenantId
from services.common.postgres.pool import tenant_tx
from services.control import api_keys, idempotency, sessions
from services.control.api import replays
from services.control.api.context import Call, Control, Visit, control_of
from services.control.principals import Principal
from services.control.problems import Refusal
from services.control.roles import Role
from services.control.store import keys, people
from services.control.store.moments import moment

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CHALLENGE: Final = {"www-authenticate": "Bearer"}


class RoleGuard:
    """Admits whoever has at least this role. `human`: in a session of a person; `keyed`: with an
    Idempotency-Key.
    """

    def __init__(self, role: Role, *, human: bool = False, keyed: bool = False) -> None:
        self.role = role
        self.human = human
        self.keyed = keyed

    async def __call__(self, request: Request) -> Call:
        control = control_of(request)
        principal = await authenticate(control, request)
        if principal.role < self.role:
            raise Refusal(
                "ROLE_REQUIRED",
                f"This needs the role {self.role.key}.",
                required_role=self.role.key,
            )
        if self.human and not principal.is_human:
            raise Refusal("HUMAN_REQUIRED", "Only a person can do this: sign in.")
        if self.keyed and idempotency.HEADER not in request.headers:
            raise Refusal("IDEMPOTENCY_KEY_REQUIRED", "Send an Idempotency-Key.")
        request.state.admitted = True
        call = Call(control=control, request=request, principal=principal)
        await replays.claim(call)
        return call


class OpenDoor:
    """Admits everybody: sign-in, tokens, public documents. What they ask for is checked there."""

    role = None
    human = False
    keyed = False

    async def __call__(self, request: Request) -> Visit:
        request.state.admitted = True
        return Visit(control=control_of(request), request=request)


def needs(role: Role, *, human: bool = False, keyed: bool = False) -> Any:
    """The dependency that admits by role."""
    return Depends(RoleGuard(role, human=human, keyed=keyed))


def anyone() -> Any:
    """The dependency that admits without a credential."""
    return Depends(OpenDoor())


async def authenticate(control: Control, request: Request) -> Principal:
    """The one who sent the request. A bearer credential is taken before a cookie: no page of
    another origin can send one.
    """
    now = moment(control.clock.now_ns())
    header = request.headers.get("authorization")
    if header is not None:
        return await _by_bearer(control, header, now)
    token = request.cookies.get(control.origins.cookie)
    if not token:
        raise _unauthenticated()
    principal = await by_session(control, token, "browser", now)
    if request.method not in _SAFE:
        _check_own_page(control, request, principal)
    return principal


async def _by_bearer(control: Control, header: str, now: datetime) -> Principal:
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthenticated()
    token = text.strip()
    if token.startswith(sessions.BEARER_PREFIX):
        return await by_session(control, token, "bearer", now)
    return await _by_api_key(control, token, now)


async def _by_api_key(control: Control, text: str, now: datetime) -> Principal:
    key = api_keys.parse(text)
    if key is None:
        raise _unauthenticated()
    async with control.pool.acquire() as connection:
        row = await keys.find(connection, key.id)
    if row is None or not key.is_stored_as(row.secret_sha256):
        raise _unauthenticated()
    if row.revoked_at is not None or now >= row.expires_at or row.tenant_status != "active":
        raise _unauthenticated()
    return Principal(
        kind="api_key",
        id=key.id,
        name=row.name,
        role=Role.of(row.role),
        tenant=row.tenant,
        tenant_slug=row.tenant_slug,
    )


async def by_session(control: Control, token: str, kind: sessions.Kind, now: datetime) -> Principal:
    """The person whose session this token is. Raises UNAUTHENTICATED or SESSION_EXPIRED."""
    digest = sessions.stored(token)
    async with control.pool.acquire() as connection:
        row = await people.find_session(connection, digest)
    if row is None or row.kind != kind:
        raise _unauthenticated()
    if row.user_status != "active" or row.tenant_status != "active":
        raise _unauthenticated()
    alive = sessions.alive(created_at=row.created_at, seen_at=row.seen_at, now=now)
    if row.ended_at is not None or not alive:
        raise Refusal("SESSION_EXPIRED", "Sign in again.", headers=_CHALLENGE)
    if now - row.seen_at > sessions.TOUCH_AFTER:
        await _touch(control, row.tenant, digest, now)
    return Principal(
        kind="user",
        id=row.user_id,
        name=row.username,
        role=Role.of(row.role),
        tenant=row.tenant,
        tenant_slug=row.tenant_slug,
        session_sha256=digest,
        proven_at=row.stepped_up_at,
        csrf_token=sessions.csrf_token(token) if kind == "browser" else None,
    )


async def _touch(control: Control, tenant: TenantId, digest: bytes, now: datetime) -> None:
    async with tenant_tx(control.pool, tenant) as connection:
        await people.touch_session(connection, digest, now)


def _check_own_page(control: Control, request: Request, principal: Principal) -> None:
    sent = request.headers.get(sessions.CSRF_HEADER, "")
    if not control.origins.allows(request.headers.get("origin", "")):
        raise Refusal("CSRF_FAILED", "The Origin header must name this installation.")
    if not sessions.same(sent, principal.csrf_token or ""):
        raise Refusal("CSRF_FAILED", f"The header {sessions.CSRF_HEADER} is missing or wrong.")


def _unauthenticated() -> Refusal:
    return Refusal("UNAUTHENTICATED", "No valid credential was sent.", headers=_CHALLENGE)
