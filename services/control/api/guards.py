"""Who may call a route. Each route has exactly one guard; what OpenAPI says of roles, people and
keys is read from the guard itself, so the description cannot differ from what is enforced.

Order (control.md 2.1): the credential, 401; a tenant in the path that the sender may not see, 404;
the browser's CSRF proof, 403; the role and a key's scopes, 403; that it is a person, lately proven
where that is due, 403; the feature, 403; the idempotency key, a super-admin's reason and the query,
400. Bodies are read after that, by `bodies`, so that a broken one never answers before them.

No deferred annotations here: the framework resolves them against a callable's globals, which an
instance does not have.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import asyncpg
from fastapi import Depends
from starlette.requests import Request

from services.common.ids import TenantId
from services.common.postgres.pool import tenant_tx
from services.control import api_keys, idempotency, sessions, tenancy
from services.control.api import queries, replays
from services.control.api.context import Call, Control, Visit, control_of
from services.control.features import KEYS, What
from services.control.principals import Principal
from services.control.problems import Refusal, not_found
from services.control.roles import SUPER_ADMIN, Role
from services.control.store import keys, people, tenants

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: What somebody needs who has yet to add a second factor.
_OF_ONESELF: Final = re.compile(r"/api/v1/(?:me|auth)\b")
_NOBODY: Final = {"kind": "unknown"}
_CHALLENGE: Final = {"www-authenticate": "Bearer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleGuard:
    """Admits whoever has at least this role. `human`: in a session of a person; `keyed`: with an
    Idempotency-Key; `feature`: where the plan has it; `removes`: it takes away what is there, which
    a lapsed plan does not hinder; `operator`: super-admins alone, whatever their role; `fresh`: a
    person proves who they are right before; `lasts`: what it gives outlasts a visit, so that nobody
    from elsewhere does it.
    """

    role: Role
    human: bool = False
    keyed: bool = False
    feature: str | None = None
    removes: bool = False
    operator: bool = False
    fresh: bool = False
    lasts: bool = False

    def __post_init__(self) -> None:
        if self.feature is not None and self.feature not in KEYS:
            raise ValueError(f"there is no feature {self.feature}")

    @property
    def required(self) -> str:
        """As the description and refusals name it."""
        return SUPER_ADMIN if self.operator else self.role.key

    async def __call__(self, request: Request) -> Call:
        """The numbers are the module's order."""
        control = control_of(request)
        sender = await authenticate(control, request)  # 1
        wanted = request.path_params.get("tenant_id") or getattr(request.state, "inside", None)
        principal = sender
        if wanted is not None:
            principal = await self._in_tenant(control, str(wanted), sender)  # 2
        if sender.csrf_token and request.method not in _SAFE:
            await _check_own_page(Visit(control=control, request=request), sender)  # 3
        self._check_role(request, principal, visits=wanted is not None)  # 4
        if lacks_factor(control, sender) and not _OF_ONESELF.match(request.scope["route"].path):
            raise Refusal("SECOND_FACTOR_REQUIRED", "Add a passkey or one-time codes first.")
        call = Call(control=control, request=request, principal=principal)
        self._check_person(call)  # 5
        bypassed = self._check_feature(call)  # 6
        if self.keyed and idempotency.HEADER not in request.headers:  # 7
            raise Refusal("IDEMPOTENCY_KEY_REQUIRED", "Send an Idempotency-Key.")
        if wanted is not None or bypassed:
            await self._record(call, visits=wanted is not None, bypassed=bypassed)
        request.state.admitted = True
        await replays.claim(call)
        queries.check(request)
        return call

    async def _in_tenant(self, control: Control, wanted: str, sender: Principal) -> Principal:
        """The sender as they are in the tenant that the path names. Raises NOT_FOUND where they may
        not see it; that they may not act by its name is said with the role.
        """
        if not sender.super_admin:
            if wanted != sender.tenant:
                raise not_found("tenant")
            return sender
        async with control.pool.acquire() as connection:
            tenant = await tenants.find(connection, wanted)
        if tenant is None:
            raise not_found("tenant")
        return replace(
            sender, tenant=tenant.id, tenant_slug=tenant.slug, role=Role.ADMIN, home=sender.tenant
        )

    def _check_role(self, request: Request, principal: Principal, *, visits: bool) -> None:
        if (self.operator or visits) and not principal.super_admin:
            raise _role_required(SUPER_ADMIN)
        if principal.role < self.role:
            raise _role_required(self.role.key)
        writes = request.method not in _SAFE
        scope = api_keys.scope_of(request.scope["route"].path)
        if not api_keys.within(principal.scopes, scope, writes=writes):
            raise Refusal("ROLE_REQUIRED", "This key is not good for that.", required_scope=scope)

    def _check_person(self, call: Call) -> None:
        principal = call.principal
        if self.human and not principal.is_human:
            raise Refusal("HUMAN_REQUIRED", "Only a person can do this: sign in.")
        comes_from_elsewhere = principal.home is not None and not self.operator
        if (self.human or self.lasts) and comes_from_elsewhere:
            raise Refusal("HUMAN_REQUIRED", "Only a person of the tenant can do this.")
        if self.fresh and principal.is_human and not call.stepped_up:
            raise Refusal("STEP_UP_REQUIRED", "Prove who you are again first.")

    def _check_feature(self, call: Call) -> bool:
        """Whether the plan does not allow it and a super-admin does it nevertheless."""
        if self.feature is None:
            return False
        what: What = "read" if call.request.method in _SAFE else "write"
        if self.removes:
            what = "remove"
        refusal = call.plan.refusal(self.feature, what)
        if refusal is not None and not call.principal.super_admin:
            raise refusal
        return refusal is not None

    async def _record(self, call: Call, *, visits: bool, bypassed: bool) -> None:
        """A super-admin's reason, in the admin chain of the tenant that they go into; it is there
        before anything is done, or nothing is done.
        """
        reason = tenancy.reason_of(call.request.headers.get(tenancy.REASON_HEADER, ""))
        if reason is None:
            raise Refusal(
                "REASON_REQUIRED", f"Say why, in {tenancy.REASON_HEADER}: 8 to 500 characters."
            )
        try:
            async with call.change(desired=False) as change:
                if visits:
                    await change.record(
                        "admin.superadmin.access",
                        resource="tenant",
                        resource_id=call.tenant,
                        reason=reason,
                    )
                if bypassed and self.feature is not None:
                    await change.put(
                        "entitlement.bypass",
                        feature=self.feature,
                        mode=call.plan.mode(self.feature),
                        method=call.request.method,
                        reason=reason,
                    )
        except asyncpg.PostgresError as failure:
            raise Refusal(
                "DEPENDENCY_UNAVAILABLE", "What is done here cannot be recorded now."
            ) from failure
        if bypassed:
            call.control.counters.counter("entitlement.bypass").value += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDoor:
    """Admits everybody: sign-in, tokens, public documents. What they ask for is checked there.
    `any_query`: what others may add to the address is ignored, as their protocol says.
    """

    any_query: bool = False

    role = None
    required = None
    human = False
    keyed = False
    fresh = False
    feature = None

    async def __call__(self, request: Request) -> Visit:
        if getattr(request.state, "inside", None) is not None:
            raise not_found("address")
        if not self.any_query:
            queries.check(request)
        request.state.admitted = True
        return Visit(control=control_of(request), request=request)


def needs(
    role: Role,
    *,
    human: bool = False,
    keyed: bool = False,
    feature: str | None = None,
    removes: bool = False,
    fresh: bool = False,
    lasts: bool = False,
) -> Any:
    """The dependency that admits by role."""
    return Depends(
        RoleGuard(
            role=role,
            human=human,
            keyed=keyed,
            feature=feature,
            removes=removes,
            fresh=fresh,
            lasts=lasts,
        )
    )


def operates(*, keyed: bool = False, fresh: bool = False) -> Any:
    """The dependency that admits super-admins alone."""
    return Depends(RoleGuard(role=Role.VIEWER, human=True, keyed=keyed, operator=True, fresh=fresh))


def anyone(*, any_query: bool = False) -> Any:
    """The dependency that admits without a credential."""
    return Depends(OpenDoor(any_query=any_query))


def lacks_factor(control: Control, principal: Principal) -> bool:
    """Where others than this machine reach us, a password alone is not enough."""
    by_password = principal.is_human and principal.method != "oidc"
    return by_password and not principal.factors and not control.origins.loopback


def _role_required(key: str) -> Refusal:
    return Refusal("ROLE_REQUIRED", f"This needs the role {key}.", required_role=key)


async def authenticate(control: Control, request: Request) -> Principal:
    """The one who sent the request. A bearer credential is taken before a cookie: no page of
    another origin can send one.
    """
    visit = Visit(control=control, request=request)
    header = request.headers.get("authorization")
    if header is not None:
        return await _by_bearer(visit, header)
    token = request.cookies.get(control.origins.cookie)
    if not token:
        raise _unauthenticated()
    return await session_of(visit, token, "browser")


async def _by_bearer(visit: Visit, header: str) -> Principal:
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthenticated()
    token = text.strip()
    if token.startswith(sessions.BEARER_PREFIX):
        return await session_of(visit, token, "bearer")
    return await _by_api_key(visit, token)


async def _by_api_key(visit: Visit, text: str) -> Principal:
    """One that was made up is refused by its checksum, which costs nothing and is not recorded."""
    key = api_keys.parse(text)
    if key is None:
        raise _unauthenticated()
    async with visit.control.pool.acquire() as connection:
        row = await keys.find(connection, key.id)
    if row is None or not key.is_stored_as(row.secret_sha256):
        await visit.record_failure(
            row.tenant if row else None, _NOBODY, "key_unknown", type="user.request_refused"
        )
        raise _unauthenticated()
    ended = row.revoked_at is not None or visit.now >= row.expires_at
    if ended or row.tenant_status != "active":
        raise _unauthenticated()
    return Principal(
        kind="api_key",
        id=key.id,
        name=row.name,
        role=Role.of(row.role),
        tenant=row.tenant,
        tenant_slug=row.tenant_slug,
        scopes=row.scopes,
    )


async def session_of(visit: Visit, token: str, kind: sessions.Kind) -> Principal:
    """As `by_session`. A session that nobody began, or whose person is out, is on record: somebody
    guesses one, or planted it in a browser.
    """
    try:
        return await by_session(visit.control, token, kind, visit.now)
    except Refusal as refused:
        if refused.reason == "UNAUTHENTICATED":
            await visit.record_failure(
                None, _NOBODY, "session_unknown", type="user.request_refused"
            )
        raise


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
        session_id=row.session_id,
        factors=row.factors,
        method=row.method,
        super_admin=row.is_super_admin,
        proven_at=row.stepped_up_at,
        csrf_token=sessions.csrf_token(token) if kind == "browser" else None,
    )


async def _touch(control: Control, tenant: TenantId, digest: bytes, now: datetime) -> None:
    async with tenant_tx(control.pool, tenant) as connection:
        await people.touch_session(connection, digest, now)


async def _check_own_page(visit: Visit, principal: Principal) -> None:
    """Raises CSRF_FAILED, which somebody else's page brought about: it is on record."""
    headers, words = visit.request.headers, ""
    if not visit.control.origins.allows(headers.get("origin", "")):
        words = "The Origin header must name this installation."
    elif not sessions.same(headers.get(sessions.CSRF_HEADER, ""), principal.csrf_token or ""):
        words = f"The header {sessions.CSRF_HEADER} is missing or wrong."
    if words:
        await visit.record_failure(
            principal.tenant, principal.actor(), "csrf_failed", type="user.request_refused"
        )
        raise Refusal("CSRF_FAILED", words)


def _unauthenticated() -> Refusal:
    return Refusal("UNAUTHENTICATED", "No valid credential was sent.", headers=_CHALLENGE)
