"""Chain heads, and verification as a job: audit verifies, a job says how far it is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from starlette.responses import Response

from services.control.api.bodies import Body, json_body
from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.jobs import Job, job_of
from services.control.api.shapes import Answer
from services.control.problems import not_found
from services.control.roles import Role
from services.control.store import jobs

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

ChainName = Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z]+(:[0-9a-f-]{36})?$")]


class Head(Answer):
    chain: str
    incarnation: int
    position: int
    hash: str


class Heads(Answer):
    items: list[Head]


class Verify(Body):
    """Absent: every chain of the tenant."""

    chain: ChainName | None = Field(None)


@router.get("/heads")
async def list_audit_heads(call: Annotated[Call, needs(Role.VIEWER)]) -> Heads:
    heads = await call.control.audit.heads(call.tenant)
    return Heads(items=[Head(**head) for head in heads])


@router.post("/verify", status_code=202)
async def verify_audit(
    call: Annotated[Call, needs(Role.VIEWER)],
    body: Annotated[Verify, json_body(Verify)],
    response: Response,
) -> Job:
    verify_id = await call.control.audit.start_verify(call.tenant, body.chain or "")
    job_id = call.control.new_id()
    async with call.change(desired=False) as change:
        await jobs.insert(
            change.connection,
            call.tenant,
            id=job_id,
            kind="audit_verify",
            remote_id=verify_id,
            created_by=call.principal.label,
            now=call.now,
        )
        row = await jobs.get(change.connection, job_id)
    call.control.verify_jobs.follow(call.tenant, job_id, verify_id)
    response.headers["location"] = f"/api/v1/jobs/{job_id}"
    if row is None:
        raise not_found("job")
    return job_of(row)
