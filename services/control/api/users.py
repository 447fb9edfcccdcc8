"""The people of a tenant: seen, given another role, let out and in again.

Whoever leaves leaves at once: their sessions and keys end in the transaction that says so, and what
they approved and nobody has used yet is taken back. The database keeps the last active admin.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from starlette.responses import Response

from services.control.api import escalation_acts as acts
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Change
from services.control.api.guards import needs
from services.control.api.shapes import (
    Answer,
    Page,
    Paging,
    Time,
    check_if_match,
    split,
    start_of,
    tag,
)
from services.control.audit_records import change as changed
from services.control.problems import Refusal, not_found
from services.control.roles import Role
from services.control.store import users as store

router = APIRouter(prefix="/api/v1/users", tags=["people"])

FEATURE = "team_management"
Level = Literal["viewer", "analyst", "policy_author", "admin"]


class SetRole(Body):
    role: Level


class User(Answer):
    id: str
    username: str
    email: str
    role: str
    status: str
    is_super_admin: bool
    #: Second factors in use: `passkey`, `totp`.
    factors: list[str]
    created_at: Time


@router.get("")
async def list_users(
    call: Annotated[Call, needs(Role.ADMIN, feature=FEATURE)], query: Paging
) -> Page[User]:
    after = start_of(call, "users", query)
    async with call.read() as connection:
        rows = await store.page(connection, after=after, limit=query.page_size + 1)
    shown, following = split(call, "users", query, rows, lambda row: str(row["id"]))
    return Page(items=[User(**row) for row in shown], next_page_token=following)


@router.get("/{user_id:uuid}")
async def get_user(
    user_id: UUID,
    call: Annotated[Call, needs(Role.ADMIN, feature=FEATURE)],
    response: Response,
) -> User:
    async with call.read() as connection:
        row = await store.get(connection, str(user_id))
    if row is None:
        raise not_found("user")
    tag(response, row["revision"])
    return User(**row)


@router.patch("/{user_id:uuid}")
async def set_user_role(
    user_id: UUID,
    call: Annotated[Call, needs(Role.ADMIN, feature=FEATURE)],
    body: Annotated[SetRole, json_body(SetRole)],
    response: Response,
) -> User:
    """Counts from their next request on. Keys of theirs that may more than they end with it."""
    check_level(call, body.role)
    return await _changed(call, user_id, response, role=body.role)


@router.post("/{user_id:uuid}:deactivate")
async def deactivate_user(
    user_id: UUID,
    call: Annotated[Call, needs(Role.ADMIN, feature=FEATURE, removes=True)],
    response: Response,
) -> User:
    """Ends sessions, keys and approvals that are not used up, in the same moment."""
    return await _changed(call, user_id, response, status="deactivated")


@router.post("/{user_id:uuid}:reactivate")
async def reactivate_user(
    user_id: UUID,
    call: Annotated[Call, needs(Role.ADMIN, feature=FEATURE)],
    response: Response,
) -> User:
    """They may sign in again; nothing that ended begins again."""
    return await _changed(call, user_id, response, status="active")


@router.delete("/{user_id:uuid}", status_code=204)
async def delete_user(
    user_id: UUID, call: Annotated[Call, needs(Role.ADMIN, feature=FEATURE, removes=True)]
) -> Response:
    """As deactivation, for good; their name is free again. Records go on naming them."""
    wanted = str(user_id)
    try:
        async with call.change(desired=False) as change, store.keeping_an_admin():
            before = await _locked(call, change, wanted)
            await _end(call, change, wanted)
            await store.delete(change.connection, wanted)
            await change.record(
                "admin.user.deleted",
                resource="user",
                resource_id=wanted,
                changes=[changed("status", before["status"], "deleted")],
            )
    except store.LastAdmin:
        raise _last_admin() from None
    call.control.signals.escalation()
    return Response(status_code=204)


def check_level(call: Call, role: str) -> None:
    """Raises ROLE_REQUIRED where somebody gives more than they have."""
    if Role.of(role) > call.principal.role:
        raise Refusal("ROLE_REQUIRED", "Nobody grants above their own level.", required_role=role)


async def _changed(
    call: Call,
    user_id: UUID,
    response: Response,
    *,
    role: str | None = None,
    status: str | None = None,
) -> User:
    """1. the row, locked  2. what ends with it  3. the new value, which the database may refuse
    4. the record; all or nothing.
    """
    wanted = str(user_id)
    try:
        async with call.change(desired=False) as change, store.keeping_an_admin():
            before = await _locked(call, change, wanted)  # 1
            if status == "deactivated":
                await _end(call, change, wanted)  # 2
            if role is not None:
                await _lower(call, change, wanted, Role.of(role))
                await store.set_role(change.connection, wanted, role)  # 3
                what, old, new = "role", before["role"], role
            else:
                await store.set_status(change.connection, wanted, str(status))
                what, old, new = "status", before["status"], str(status)
            await change.record(  # 4
                f"admin.user.{_VERBS[role is None, status]}",
                resource="user",
                resource_id=wanted,
                changes=[changed(what, old, new)],
            )
            row = await store.get(change.connection, wanted) or {}
    except store.LastAdmin:
        raise _last_admin() from None
    call.control.signals.escalation()
    tag(response, row["revision"])
    return User(**row)


_VERBS = {
    (False, None): "role_changed",
    (True, "deactivated"): "deactivated",
    (True, "active"): "reactivated",
}


async def _locked(call: Call, change: Change, wanted: str) -> dict[str, str]:
    found = await store.lock(change.connection, wanted)
    if found is None:
        raise not_found("user")
    check_if_match(call.request, found["revision"])
    return found


async def _end(call: Call, change: Change, wanted: str) -> None:
    await acts.take_back(call, change, wanted)
    ended = await store.end_access(change.connection, wanted, call.now)
    for key in ended:
        await change.record("admin.api_key.deleted", resource="api_key", resource_id=key)


async def _lower(call: Call, change: Change, wanted: str, role: Role) -> None:
    """What they made or gave and could not any more."""
    if role < Role.ANALYST:
        await acts.take_back(call, change, wanted)
    above = [one.key for one in Role if one > role]
    for key in await store.end_keys_above(change.connection, wanted, above, call.now):
        await change.record("admin.api_key.deleted", resource="api_key", resource_id=key)


def _last_admin() -> Refusal:
    return Refusal("LAST_ADMIN", "The last active admin stays: make somebody else admin first.")
