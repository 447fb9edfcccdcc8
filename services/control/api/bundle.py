"""The bundle as data planes fetch it: OPA's stock Bundle API (deployment.md 3.1).

The plane proves itself with its link key; nobody else gets a bundle. Long polling by `Prefer:
wait=N`, so that a plane without a link still hears of changes at once.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Final

from fastapi import APIRouter
from starlette.responses import Response

from services.common.ids import PlaneId
from services.common.postgres.pool import Pool
from services.control.api import queries
from services.control.api.context import Visit
from services.control.api.guards import anyone
from services.control.problems import Refusal
from services.control.store import bundles

CONTENT_TYPE: Final = "application/vnd.openpolicyagent.bundles"
LONGEST_WAIT_S: Final = 60
_WAIT: Final = re.compile(r"(?:^|[,;]\s*)wait=(\d{1,3})\b")


router = APIRouter(prefix="/api/v1/policy", tags=["planes"])


@router.get("/bundle", response_class=Response)
async def get_policy_bundle(visit: Annotated[Visit, anyone(any_query=True)]) -> Response:
    control, headers = visit.control, visit.request.headers
    scheme, _, token = headers.get("authorization", "").partition(" ")
    plane = control.planes.authenticate(token if scheme.lower() == "bearer" else "")
    queries.check(visit.request)  # behind the credential, as everywhere
    known = headers.get("if-none-match", "")
    heard = control.signals.listen()
    try:
        stored = await _newest(control.pool, plane)
        wait = _WAIT.search(headers.get("prefer", ""))
        if wait and (stored is None or stored.etag == known):
            await _heard_within(heard, min(int(wait[1]), LONGEST_WAIT_S))
            stored = await _newest(control.pool, plane)
    finally:
        control.signals.forget(heard)
    if stored is None:
        raise Refusal("DEPENDENCY_UNAVAILABLE", "No bundle has been built yet.")
    if stored.etag == known:
        return Response(status_code=304, headers={"etag": stored.etag})
    return Response(stored.archive, media_type=CONTENT_TYPE, headers={"etag": stored.etag})


async def _newest(pool: Pool, plane: PlaneId) -> bundles.StoredBundle | None:
    async with pool.acquire() as connection:
        return await bundles.newest(connection, plane)


async def _heard_within(heard: asyncio.Event, seconds: int) -> None:
    try:
        await asyncio.wait_for(heard.wait(), seconds)
    except TimeoutError:
        return
