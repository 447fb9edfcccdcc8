"""Invites: how people come into a tenant. A token is in one letter, or in the one answer that made
it; it is used once, and is worth one address with one role.

Accepting: 1. limits  2. the token  3. the invite, taken  4. the person, and both records, in one
transaction. Whatever is wrong with a token is answered alike.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from starlette.responses import Response

from services.control import invites as rules
from services.control import limits, passwords
from services.control.api import auth, letters
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Visit
from services.control.api.guards import anyone, needs
from services.control.api.shapes import Answer, Page, Paging, Time, split, start_of
from services.control.api.users import FEATURE, Level, check_level
from services.control.audit_records import change as changed
from services.control.notifications import letters as forms
from services.control.problems import Refusal, not_found
from services.control.roles import Role
from services.control.store import auth_settings, people, users
from services.control.store import invites as store

_PAGE = "join"
_AT_PROVIDER = "/api/v1/auth/login?tenant="
router = APIRouter(prefix="/api/v1/invites", tags=["people"])
accepting = APIRouter(prefix="/api/v1", tags=["people"])


class NewInvite(Body):
    email: Annotated[str, StringConstraints(pattern=rules.EMAIL, max_length=320)]
    role: Level


class Invite(Answer):
    id: str
    email: str
    role: str
    #: invited, accepted, revoked or expired.
    state: str
    created_by: str
    created_at: Time
    expires_at: Time


class InviteMade(Invite):
    """The only answer that holds the token, unless whoever is invited has it by mail. Where people
    sign in by a provider there is none: the link leads there, and their address is what counts.
    """

    mailed: bool
    token: str | None
    link: str | None


class Acceptance(Body):
    token: str = Field(min_length=1, max_length=200)
    password: str = Field(min_length=passwords.MIN_CHARACTERS, max_length=1024)


class Accepted(Answer):
    """Sign in with this name next."""

    username: str
    role: str


@router.get("")
async def list_invites(
    call: Annotated[Call, needs(Role.ADMIN, feature=FEATURE)], query: Paging
) -> Page[Invite]:
    after = start_of(call, "invites", query)
    async with call.read() as connection:
        rows = await store.page(connection, after=after, limit=query.page_size + 1)
    shown, following = split(call, "invites", query, rows, lambda row: str(row["id"]))
    items = [Invite(**row, state=rules.state(row, call.now)) for row in shown]
    return Page(items=items, next_page_token=following)


@router.post("", status_code=201)
async def create_invite(
    call: Annotated[Call, needs(Role.ADMIN, keyed=True, feature=FEATURE)],
    body: Annotated[NewInvite, json_body(NewInvite)],
) -> InviteMade:
    check_level(call, body.role)
    email, token = rules.address(body.email), rules.new_token()
    async with call.change(desired=False) as change:
        if await users.is_taken(change.connection, email):
            raise Refusal("CONFLICT", "Somebody here has that address.")
        row = await store.insert(
            change.connection,
            call.tenant,
            id=call.control.new_id(),
            email=email,
            role=body.role,
            token_sha256=rules.stored(token),
            created_by=call.principal.label,
            now=call.now,
            expires_at=call.now + rules.LIFE,
        )
        if row is None:
            raise Refusal("CONFLICT", "An invite for that address is open.")
        await change.record(
            "admin.invite.created",
            resource="invite",
            resource_id=row["id"],
            changes=[
                changed("email", None, email),
                changed("role", None, body.role),
                changed("token", None, ""),
            ],
        )
        way = await letters.way(change.connection, email)
        by_provider = (await auth_settings.get(change.connection)).provider != "password"
    link, mailed = letters.link(call, _PAGE, token), False
    if by_provider:
        link = f"{call.control.settings.public_url}{_AT_PROVIDER}{call.principal.tenant_slug}"
    if way is not None:
        letter = forms.invite(
            id=row["id"],
            to=email,
            role=body.role,
            link=link,
            until=row["expires_at"],
            at=call.now,
            by_provider=by_provider,
        )
        mailed = await letters.post(call, way, letter)
    return InviteMade(
        **row,
        state="invited",
        mailed=mailed,
        token=None if mailed or by_provider else token,
        link=None if mailed else link,
    )


@router.delete("/{invite_id:uuid}", status_code=204)
async def revoke_invite(
    invite_id: UUID, call: Annotated[Call, needs(Role.ADMIN, feature=FEATURE, removes=True)]
) -> Response:
    async with call.change(desired=False) as change:
        if await store.revoke(change.connection, str(invite_id), call.now) is None:
            raise not_found("open invite")
        await change.record("admin.invite.revoked", resource="invite", resource_id=str(invite_id))
    return Response(status_code=204)


@accepting.post("/invites:accept", status_code=201)
async def accept_invite(
    visit: Annotated[Visit, anyone()], body: Annotated[Acceptance, json_body(Acceptance)]
) -> Accepted:
    """Makes the person, who then signs in like everybody."""
    await auth.check_origin(visit)
    return await use_link(visit, body.token, body.password)


async def use_link(visit: Visit, token: str, password: str) -> Accepted:
    """Raises INVITE_INVALID, RATE_LIMITED, CONFLICT."""
    control = visit.control
    try:
        control.limits.invite_failures.check(visit.address)  # 1
    except limits.TooMany as too_many:
        raise auth.too_many(too_many) from None
    found = await _candidate(visit, token)  # 2
    if found is None:
        raise await _refused(visit)
    hashed = await control.passwords.hash(password)
    user = control.new_id()
    actor = {"kind": "user", "id": user}
    async with visit.change_in(found.tenant, actor, desired=False) as change:
        if (await auth_settings.get(change.connection)).provider != "password":
            raise Refusal("CONFLICT", "People sign in by a provider here: sign in there.")
        invite = await store.accept(change.connection, found.id, user=user, now=visit.now)  # 3
        if invite is not None:
            made = await people.insert_user(  # 4
                change.connection,
                found.tenant,
                id=user,
                username=invite["email"],
                role=invite["role"],
                password_hash=hashed,
                now=visit.now,
                email=invite["email"],
            )
            if not made:
                raise Refusal("CONFLICT", "That address is in use already.")
            await change.record("admin.invite.accepted", resource="invite", resource_id=found.id)
            await change.record(
                "admin.user.created",
                resource="user",
                resource_id=user,
                changes=[
                    changed("username", None, invite["email"]),
                    changed("role", None, invite["role"]),
                ],
            )
    if invite is None:
        raise await _refused(visit, found)
    return Accepted(username=invite["email"], role=invite["role"])


async def _candidate(visit: Visit, token: str) -> store.Candidate | None:
    if not rules.is_token(token):
        return None
    async with visit.control.pool.acquire() as connection:
        found = await store.find(connection, rules.stored(token))
    return found if found and found.tenant_status == "active" else None


async def _refused(visit: Visit, found: store.Candidate | None = None) -> Refusal:
    """Counted and recorded; unknown, used, revoked and expired are told alike."""
    visit.control.limits.invite_failures.enter(visit.address)
    tenant = found.tenant if found else None
    await visit.record_failure(tenant, {"kind": "unknown"}, "invite_invalid")
    return Refusal("INVITE_INVALID", "This invite cannot be used.")
