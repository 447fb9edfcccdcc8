"""API keys of machines and people: made, listed, ended. A key is in the one answer that made it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from services.control import api_keys as rules
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.shapes import Answer, Page, Paging, Time, split, start_of
from services.control.audit_records import change as changed
from services.control.problems import Refusal, not_found
from services.control.roles import Role
from services.control.store import keys

router = APIRouter(prefix="/api/v1/api-keys", tags=["people"])

DAY_S = 86_400


class NewKey(Body):
    name: str = Field(min_length=1, max_length=80)
    role: Literal["viewer", "analyst", "policy_author", "admin"]
    expires_in_days: int = Field(rules.DEFAULT_LIFE_S // DAY_S, ge=1, le=rules.MAX_LIFE_S // DAY_S)


class Key(Answer):
    id: str
    name: str
    role: str
    prefix: str
    created_by: str
    created_at: Time
    expires_at: Time
    revoked_at: Time | None


class KeyMade(Answer):
    """The only answer that holds the key."""

    id: str
    key: str
    name: str
    role: str
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
    call: Annotated[Call, needs(Role.ADMIN)], body: Annotated[NewKey, json_body(NewKey)]
) -> KeyMade:
    if Role.of(body.role) > call.principal.role:
        raise Refusal("ROLE_REQUIRED", "Nobody grants above their own level.")
    key = rules.new_key(call.control.settings.environment)
    expires_at = call.now + timedelta(days=body.expires_in_days)
    async with call.change(desired=False) as change:
        await keys.insert(
            change.connection,
            call.tenant,
            key,
            name=body.name,
            role=body.role,
            created_by=call.principal.label,
            now=call.now,
            expires_at=expires_at,
        )
        await change.record(
            "admin.api_key.created",
            resource="api_key",
            resource_id=key.id,
            changes=[
                changed("name", None, body.name),
                changed("role", None, body.role),
                changed("key", None, ""),
            ],
        )
    return KeyMade(id=key.id, key=key.text, name=body.name, role=body.role, expires_at=expires_at)


@router.delete("/{key_id}", status_code=204)
async def delete_api_key(key_id: str, call: Annotated[Call, needs(Role.ADMIN)]) -> Response:
    """Counts from the next request on."""
    async with call.change(desired=False) as change:
        live = None if "\0" in key_id else await keys.revoke(change.connection, key_id, call.now)
        if live is None:
            raise not_found("API key")
        await change.record("admin.api_key.deleted", resource="api_key", resource_id=key_id)
    return Response(status_code=204)
