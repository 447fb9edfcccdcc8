"""Tenants, for whoever runs the installation: made, listed, suspended, resumed.

A suspended tenant lets nobody in, neither people nor keys nor agents; nothing of it is removed.
What a super-admin does inside a tenant goes through its own routes (inside.py).
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field, StringConstraints

from services.common.ids import TenantId
from services.control import agents as agent_rules
from services.control.api import plan_limits
from services.control.api.bodies import Body, json_body
from services.control.api.context import Call
from services.control.api.guards import operates
from services.control.api.shapes import Answer, Page, Paging, Time, split, start_of
from services.control.audit_records import change as changed
from services.control.problems import Refusal, not_found
from services.control.store import roles
from services.control.store import tenants as store

router = APIRouter(prefix="/api/v1/tenants", tags=["tenants"])

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{2,39}$")]


class NewTenant(Body):
    slug: Slug
    name: str = Field(min_length=1, max_length=120)


class Tenant(Answer):
    id: str
    slug: str
    name: str
    status: str
    created_at: Time


@router.get("")
async def list_tenants(call: Annotated[Call, operates()], query: Paging) -> Page[Tenant]:
    after = start_of(call, "tenants", query)
    async with call.control.pool.acquire() as connection:
        rows = await store.page(connection, after=after, limit=query.page_size + 1)
    shown, following = split(call, "tenants", query, rows, lambda row: str(row["slug"]))
    return Page(items=[Tenant(**row) for row in shown], next_page_token=following)


@router.post("", status_code=201)
async def create_tenant(
    call: Annotated[Call, operates()], body: Annotated[NewTenant, json_body(NewTenant)]
) -> Tenant:
    """With its default class of agents, on the smallest plan, and nobody in it: invite its admin
    through `/api/v1/tenants/{id}/invites`.
    """
    tenant = TenantId(call.control.new_id())
    async with call.change_in(tenant, call.principal.actor(), desired=True) as change:
        await plan_limits.check_tenants(call, change)
        made = await store.insert(
            change.connection, id=tenant, slug=body.slug, name=body.name, now=call.now
        )
        if not made:
            raise Refusal("CONFLICT", "A tenant of that slug exists.")
        await roles.ensure_class(
            change.connection, tenant, name=agent_rules.DEFAULT_CLASS, critical=True
        )
        await change.record(
            "admin.tenant.created",
            resource="tenant",
            resource_id=tenant,
            changes=[changed("slug", None, body.slug), changed("name", None, body.name)],
        )
        row = await store.get(change.connection, tenant) or {}
    call.control.new_tenant(tenant, body.slug)
    return Tenant(**row)


@router.get("/{tenant_id:uuid}")
async def get_tenant(tenant_id: UUID, call: Annotated[Call, operates()]) -> Tenant:
    async with call.read() as connection:
        row = await store.get(connection, str(tenant_id))
    return Tenant(**(row or {}))


@router.post("/{tenant_id:uuid}:suspend")
async def suspend_tenant(tenant_id: UUID, call: Annotated[Call, operates()]) -> Tenant:
    """Counts from the next request on; its agents' tokens end with the next bundle."""
    if call.tenant == call.principal.home:
        raise Refusal("CONFLICT", "Nobody suspends the tenant that they sign in to.")
    return await _move(call, tenant_id, "suspend", "suspended")


@router.post("/{tenant_id:uuid}:resume")
async def resume_tenant(tenant_id: UUID, call: Annotated[Call, operates()]) -> Tenant:
    return await _move(call, tenant_id, "resume", "active")


async def _move(call: Call, tenant_id: UUID, verb: str, status: str) -> Tenant:
    async with call.change() as change:
        before = await store.lock(change.connection, str(tenant_id))
        if before in {None, "deleted"}:
            raise not_found("tenant")
        row = await store.set_status(change.connection, str(tenant_id), status)
        await change.record(
            f"admin.tenant.{verb}",
            resource="tenant",
            resource_id=str(tenant_id),
            changes=[changed("status", before, status)],
        )
    return Tenant(**row)
