"""Jobs: the state of work that outlives its request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter

from services.control.api.context import Call
from services.control.api.guards import needs
from services.control.api.shapes import Answer, Time
from services.control.problems import not_found
from services.control.roles import Role
from services.control.store import jobs

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])


class Job(Answer):
    id: str
    kind: str
    state: str
    progress: dict[str, Any]
    result: dict[str, Any] | None
    result_url: str | None
    #: A code; null while it runs and when it succeeded.
    error: str | None
    created_at: Time
    finished_at: Time | None


@router.get("/{job_id:uuid}")
async def get_job(job_id: UUID, call: Annotated[Call, needs(Role.VIEWER)]) -> Job:
    async with call.read() as connection:
        row = await jobs.get(connection, str(job_id))
    if row is None:
        raise not_found("job")
    return job_of(row)


def job_of(row: Mapping[str, Any]) -> Job:
    job_id = str(row["id"])
    url = f"/api/v1/jobs/{job_id}" if row["state"] == "succeeded" else None
    return Job(**{**row, "id": job_id, "error": row["error"] or None, "result_url": url})
