"""Passwords that are replaced: by whoever knows the old one, and by a link for whoever does not.

A link is made by an admin, or asked for by mail; it is worth one change of one password, and second
factors stay what they were. Each change: 1. the person, locked  2. the new password in the place of
the old one  3. what the old one opened ends: sessions, halves of sign-ins, other links
4. the records; all in one transaction.

Who exists is told to nobody: whoever asks for a link is answered before anybody looks.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field

from services.common.postgres.connection import Connection
from services.common.postgres.pool import tenant_tx
from services.control import audit_records, limits, passwords
from services.control import password_resets as rules
from services.control.api import auth, letters
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Change, Visit
from services.control.api.guards import anyone, needs
from services.control.api.shapes import Answer, Time
from services.control.api.users import FEATURE, check_level
from services.control.audit_records import change as changed
from services.control.notifications import letters as forms
from services.control.notifications.destinations import Email
from services.control.problems import Refusal, invalid, not_found
from services.control.roles import Role
from services.control.store import auth_settings, people, users
from services.control.store import passwords as store
from services.control.store.passwords import Holder

router = APIRouter(prefix="/api/v1", tags=["people"])

_PAGE = "reset"
#: Nobody's session.
_NONE = "00000000-0000-0000-0000-000000000000"


class NewPassword(Body):
    old: str = Field(min_length=1, max_length=1024)
    new: str = Field(min_length=passwords.MIN_CHARACTERS, max_length=1024)


class Forgotten(Body):
    username: str = Field(min_length=1, max_length=320)


class Reset(Body):
    token: str = Field(min_length=1, max_length=200)
    password: str = Field(min_length=passwords.MIN_CHARACTERS, max_length=1024)


class Changed(Answer):
    #: How many of one's sessions ended with it.
    sessions_ended: int


class ResetMade(Answer):
    """`token` and `link` are told here and once, unless the person has them by mail."""

    username: str
    mailed: bool
    token: str | None
    link: str | None
    expires_at: Time


class Asked(Answer):
    """Whoever has an account and a known address finds a link in their mail."""


class WasReset(Answer):
    """Sign in with this name next."""

    username: str


@router.post("/me/password")
async def change_my_password(
    call: Annotated[Call, needs(Role.VIEWER, human=True, fresh=True)],
    body: Annotated[NewPassword, json_body(NewPassword)],
) -> Changed:
    """All other sessions of the person end."""
    control, user = call.control, call.principal.id
    await auth.take(call, call.principal.name)
    async with call.read() as connection:
        stored = (await _holder(connection, user)).password_hash
    if not await control.passwords.matches(stored, body.old):
        await call.record_failure(
            call.tenant, call.principal.actor(), "old_password_wrong", type="user.request_refused"
        )
        raise Refusal("STEP_UP_REQUIRED", "The old password is wrong.")
    await control.limits.sign_in.forget((call.principal.name, call.address))
    if body.old == body.new:
        raise invalid("/new", "not_allowed", "Choose another password than the old one.")
    hashed = await control.passwords.hash(body.new)
    async with call.change(desired=False) as change:
        held = await _holder(change.connection, user)  # 1
        if held.password_hash != stored:  # by another request, since we looked
            raise Refusal("CONFLICT", "The password was changed meanwhile.")
        mine = call.principal.session_id or _NONE
        ended = await _replace(call, change, user, hashed, but=mine)
    await _tell(call, change, held)
    return Changed(sessions_ended=ended)


@router.post("/users/{user_id:uuid}:reset-password")
async def reset_user_password(
    user_id: UUID, call: Annotated[Call, needs(Role.ADMIN, human=True, feature=FEATURE, fresh=True)]
) -> ResetMade:
    """A link for somebody who has lost theirs. Their password is good until the link is used. Made
    by a person: whoever has a link can be the one that it is for, and no machine may be.
    """
    user, token = str(user_id), rules.new_token()
    until = call.now + rules.LIFE_GIVEN
    async with call.change(desired=False) as change:
        held = await _holder(change.connection, user)
        check_level(call, held.role)
        if held.is_super_admin and not call.principal.super_admin:
            raise Refusal("ROLE_REQUIRED", "Nobody grants above their own level.")
        if held.status != "active":
            raise Refusal("CONFLICT", "They are not let in.")
        await _check_provider(change, held)
        reset = call.control.new_id()
        await store.insert(
            change.connection,
            call.tenant,
            user,
            id=reset,
            token_sha256=rules.stored(token),
            created_by=call.principal.label,
            now=call.now,
            expires_at=until,
        )
        await change.record(
            "admin.user.password_reset_made",
            resource="user",
            resource_id=user,
            changes=[changed("token", None, "")],
            step_up=call.stepped_up,
        )
        way = await letters.way(change.connection, held.email)
    link = letters.link(call, _PAGE, token)
    mailed = False
    if way is not None:
        letter = forms.reset(id=reset, to=held.email, link=link, until=until, at=call.now)
        mailed = await letters.post(call, way, letter)
    return ResetMade(
        username=held.username,
        mailed=mailed,
        token=None if mailed else token,
        link=None if mailed else link,
        expires_at=until,
    )


@router.post("/auth/password:forgot", status_code=202)
async def forget_password(
    visit: Annotated[Visit, anyone()], body: Annotated[Forgotten, json_body(Forgotten)]
) -> Asked:
    """The same answer, after the same work, whoever is named: what becomes of it comes later."""
    await auth.check_origin(visit)
    control, username = visit.control, body.username.strip().lower()
    try:
        control.limits.forgot_address.take(visit.address)
    except limits.TooMany as too_many:
        raise auth.too_many(too_many) from None
    control.supervisor.once("password_forgotten", partial(_ask, visit, username))
    return Asked()


@router.post("/auth/password:reset")
async def reset_password(
    visit: Annotated[Visit, anyone()], body: Annotated[Reset, json_body(Reset)]
) -> WasReset:
    """By the token of a link. Signs nobody in."""
    await auth.check_origin(visit)
    return WasReset(username=await use_link(visit, body.token, body.password))


async def use_link(visit: Visit, token: str, password: str) -> str:
    """Whose password it is now. Raises PASSWORD_RESET_INVALID, RATE_LIMITED; what is wrong with a
    token is told alike.
    """
    control = visit.control
    try:
        control.limits.reset_failures.check(visit.address)
    except limits.TooMany as too_many:
        raise auth.too_many(too_many) from None
    found = None
    if rules.is_token(token):
        async with control.pool.acquire() as connection:
            found = await store.find(connection, rules.stored(token))
    if found is None or found.tenant_status != "active":
        raise await _refused(visit, None)
    hashed = await control.passwords.hash(password)
    held = None
    async with visit.change_in(found.tenant, _actor(found.user), desired=False) as change:
        candidate = await store.holder(change.connection, found.user)  # 1
        if (
            candidate is not None
            and candidate.status == "active"
            and await store.use(change.connection, found.id, visit.now)
        ):
            held = candidate
            await _replace(visit, change, found.user, hashed)
    if held is None:
        raise await _refused(visit, found)
    await control.limits.sign_in.forget((held.username, visit.address))
    await _tell(visit, change, held)
    return held.username


async def _ask(visit: Visit, username: str) -> None:
    """1. who it is  2. not too often  3. the link and its record  4. the letter."""
    control = visit.control
    async with control.pool.acquire() as connection:
        account = await people.find_account(connection, username)  # 1
    if account is None or not account.is_active:
        await visit.record_failure(
            account.tenant if account else None,
            _actor(account.user_id) if account else {"kind": "unknown"},
            "reset_for_nobody",
            type="user.request_refused",
        )
        return
    actor = _actor(account.user_id)
    try:
        control.limits.forgot_name.take(account.user_id)  # 2
    except limits.TooMany:
        await visit.record_failure(
            account.tenant, actor, "reset_too_often", type="user.request_refused"
        )
        return
    token, reset, until = rules.new_token(), control.new_id(), visit.now + rules.LIFE_ASKED
    async with visit.change_in(account.tenant, actor, desired=False) as change:  # 3
        held = await store.holder(change.connection, account.user_id)
        way = await letters.way(change.connection, held.email) if held else None
        settings = await auth_settings.get(change.connection)
        if held is None or way is None or settings.provider != "password":
            return
        await store.insert(
            change.connection,
            account.tenant,
            account.user_id,
            id=reset,
            token_sha256=rules.stored(token),
            created_by=f"user:{account.user_id}",
            now=visit.now,
            expires_at=until,
        )
        record = audit_records.user("user.password_reset_asked", account.tenant, change.came)
        await change.recorder.put(change.connection, record)
    link = letters.link(visit, _PAGE, token)
    letter = forms.reset(id=reset, to=held.email, link=link, until=until, at=visit.now)
    await letters.post(visit, way, letter)  # 4


async def _holder(connection: Connection, user: str) -> Holder:
    held = await store.holder(connection, user)
    if held is None:
        raise not_found("user")
    return held


async def _check_provider(change: Change, held: Holder) -> None:
    """Where people sign in by a provider, nobody gets a password who has none."""
    settings = await auth_settings.get(change.connection)
    if settings.provider != "password" and held.password_hash is None:
        raise Refusal("CONFLICT", "They sign in by a provider.")


async def _replace(
    visit: Visit, change: Change, user: str, hashed: str, *, but: str = _NONE
) -> int:
    """`but`: the session that goes on. How many ended."""
    await store.replace(change.connection, user, hashed, visit.now)  # 2
    ended = await users.end_other_sessions(change.connection, user, but=but, now=visit.now)  # 3
    await change.record(  # 4
        "admin.user.password_changed",
        resource="user",
        resource_id=user,
        changes=[changed("password", None, "")],
    )
    for session in ended:
        await change.record("admin.session.ended", resource="session", resource_id=session)
    return len(ended)


async def _tell(visit: Visit, change: Change, held: Holder) -> None:
    """The person, by mail; nothing waits for it."""
    async with tenant_tx(visit.control.pool, change.tenant) as connection:
        way = await letters.way(connection, held.email)
    if way is not None:
        letter = forms.changed(id=visit.control.new_id(), to=held.email, at=visit.now)
        visit.control.supervisor.once("password_changed", partial(_post, visit, way, letter))


async def _post(visit: Visit, way: Email, letter: forms.Letter) -> None:
    await letters.post(visit, way, letter)


def _actor(user: str) -> dict[str, str]:
    return {"kind": "user", "id": user}


async def _refused(visit: Visit, found: store.Candidate | None) -> Refusal:
    """Counted and recorded."""
    visit.control.limits.reset_failures.enter(visit.address)
    tenant = found.tenant if found else None
    await visit.record_failure(tenant, {"kind": "unknown"}, "password_reset_invalid")
    return Refusal("PASSWORD_RESET_INVALID", "This link cannot be used.")
