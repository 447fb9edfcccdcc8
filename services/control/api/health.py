"""Whether the process lives, and whether it can serve; nothing more."""

from __future__ import annotations

import asyncio
from typing import Annotated

import asyncpg
from fastapi import APIRouter
from starlette.responses import Response

from services.control.api.context import Visit
from services.control.api.guards import anyone

router = APIRouter(tags=["health"])


@router.get("/healthz", status_code=204)
async def healthz(_: Annotated[Visit, anyone(any_query=True)]) -> Response:
    return Response(status_code=204)


@router.get("/readyz", status_code=204)
async def readyz(visit: Annotated[Visit, anyone(any_query=True)]) -> Response:
    try:
        async with asyncio.timeout(2):
            await visit.control.pool.ping()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return Response(status_code=503, headers={"retry-after": "1"})
    return Response(status_code=204)
