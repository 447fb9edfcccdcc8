"""API keys of machines and people: made, listed, rotated, ended. A key is in the one answer that
made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from services.control import api_keys as rules
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call, Change
from services.control.api.guards import needs
from services.control.api.shapes import Answer, Page, Paging, Time, split, start_of
from services.control.audit_records import change as changed
from services.control.problems import FieldError, Refusal, not_found
from services.control.roles import Role
from services.control.store import keys

router = APIRouter(prefix="/api/v1/api-keys", tags=["people"])

DAY_S = 86_400
Days = Annotated[int, Field(ge=1, le=rules.MAX_LIFE_S // DAY_S)]


class NewKey(Body):
    name: str = Field(min_length=1, max_length=80)
    role: Literal["viewer", "analyst", "policy_author", "admin"]
    #: Resources that it is good for, `agents` or `agents:read`; empty: whatever the role may.
    scopes: list[str] = Field(default=[], max_length=len(rules.SCOPES))
    expires_in_days: Days = rules.DEFAULT_LIFE_S // DAY_S


class Rotation(Body):
    #: How long the old key goes on.
    overlap_hours: int = Field(default=24, ge=0, le=rules.MAX_OVERLAP_S // 3600)
    expires_in_days: Days = rules.DEFAULT_LIFE_S // DAY_S


class Key(Answer):
    id: str
    name: str
    role: str
    scopes: list[str]
    prefix: str
    created_by: str
    created_at: Time
    expires_at: Time
    revoked_at: Time | None
    #: Its successor's id, where it was rotated.
    replaced_by: str | None


class KeyMade(Answer):
    """The only answer that holds the key."""

    id: str
    key: str
    name: str
    role: str
    scopes: list[str]
    expires_at: Time


@router.get("")
async def list_api_keys(call: Annotated[Call, needs(Role.ADMIN)], query: Paging) -> Page[Key]:
    after = start_of(call, "api-keys", query)
    async with call.read() as connection:
        rows = await keys.page(connection, after=after, limit=query.page_size + 1)
    shown, following = split(call, "api-keys", query, rows, lambda row: str(row["id"]))
    return Page(items=[Key(**row) for row in shown], next_page_token=following)


@router.post("", status_code=201)
async def create_api_key(
    call: Annotated[Call, needs(Role.ADMIN, fresh=True, lasts=True)],
    body: Annotated[NewKey, json_body(NewKey)],
) -> KeyMade:
    """At most what its maker may. A stolen session makes nothing that outlives it, nor does whoever
    comes from elsewhere: their going would not end it.
    """
    _check_scopes(body.scopes)
    _check_within(call, body.role, body.scopes)
    async with call.change(desired=False) as change:
        return await _made(
            call,
            change,
            name=body.name,
            role=body.role,
            scopes=body.scopes,
            days=body.expires_in_days,
            verb="created",
        )


@router.post("/{key_id}:rotate", status_code=201)
async def rotate_api_key(
    key_id: str,
    call: Annotated[Call, needs(Role.ADMIN, fresh=True, lasts=True)],
    body: Annotated[Rotation, json_body(Rotation)],
) -> KeyMade:
    """A new key of the same name, role and scopes. The old one goes on for the overlap alone."""
    async with call.change(desired=False) as change:
        old = None if "\0" in key_id else await keys.lock(change.connection, key_id, call.now)
        if old is None:
            raise not_found("API key")
        _check_within(call, old["role"], old["scopes"])
        made = await _made(
            call,
            change,
            name=old["name"],
            role=old["role"],
            scopes=old["scopes"],
            days=body.expires_in_days,
            verb="rotated",
        )
        ends_at = call.now + timedelta(hours=body.overlap_hours)
        await keys.replace(change.connection, key_id, by=made.id, ends_at=ends_at)
    return made


@router.delete("/{key_id}", status_code=204)
async def delete_api_key(key_id: str, call: Annotated[Call, needs(Role.ADMIN)]) -> Response:
    """Counts from the next request on."""
    async with call.change(desired=False) as change:
        live = None if "\0" in key_id else await keys.revoke(change.connection, key_id, call.now)
        if live is None:
            raise not_found("API key")
        await change.record("admin.api_key.deleted", resource="api_key", resource_id=key_id)
    return Response(status_code=204)


async def _made(
    call: Call,
    change: Change,
    *,
    name: str,
    role: str,
    scopes: Sequence[str],
    days: int,
    verb: str,
) -> KeyMade:
    """The row and its record, in the transaction that is open."""
    key = rules.new_key(call.control.settings.environment)
    expires_at = call.now + timedelta(days=days)
    await keys.insert(
        change.connection,
        call.tenant,
        key,
        name=name,
        role=role,
        created_by=call.principal.label,
        now=call.now,
        expires_at=expires_at,
        scopes=scopes,
    )
    await change.record(
        f"admin.api_key.{verb}",
        resource="api_key",
        resource_id=key.id,
        changes=[
            changed("name", None, name),
            changed("role", None, role),
            changed("scopes", None, list(scopes)),
            changed("key", None, ""),
        ],
    )
    return KeyMade(
        id=key.id, key=key.text, name=name, role=role, scopes=list(scopes), expires_at=expires_at
    )


def _check_scopes(scopes: Sequence[str]) -> None:
    unknown = [index for index, scope in enumerate(scopes) if scope not in rules.SCOPES]
    if unknown:
        errors = [FieldError(f"/scopes/{index}", "not_allowed") for index in unknown]
        raise Refusal("VALIDATION_FAILED", "There is no such scope.", errors=errors)


def _check_within(call: Call, role: str, scopes: Sequence[str]) -> None:
    if Role.of(role) > call.principal.role or not rules.covers(call.principal.scopes, scopes):
        raise Refusal("ROLE_REQUIRED", "Nobody grants above their own level.", required_role=role)
