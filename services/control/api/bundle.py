"""The bundle as data planes fetch it: OPA's stock Bundle API (deployment.md 3.1).

The plane proves itself with its link key; nobody else gets a bundle. Long polling by `Prefer:
wait=N`, so that a plane without a link still hears of changes at once.

No deferred annotations here (see guards).
"""

import asyncio
import re
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.common.ids import PlaneId
from services.common.postgres.pool import Pool
from services.control.planes import Planes
from services.control.problems import Refusal
from services.control.signals import Signals
from services.control.store import bundles

CONTENT_TYPE: Final = "application/vnd.openpolicyagent.bundles"
LONGEST_WAIT_S: Final = 60
_WAIT: Final = re.compile(r"(?:^|[,;]\s*)wait=(\d{1,3})\b")


def bundle_router(*, planes: Planes, pool: Pool, signals: Signals) -> APIRouter:
    router = APIRouter()

    @router.get("/api/v1/policy/bundle", operation_id="getPolicyBundle", response_class=Response)
    async def get_policy_bundle(request: Request) -> Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        plane = planes.authenticate(token if scheme.lower() == "bearer" else "")
        known = request.headers.get("if-none-match", "")
        heard = signals.listen()
        try:
            stored = await _newest(pool, plane)
            wait = _WAIT.search(request.headers.get("prefer", ""))
            if wait and (stored is None or stored.etag == known):
                await _heard_within(heard, min(int(wait[1]), LONGEST_WAIT_S))
                stored = await _newest(pool, plane)
        finally:
            signals.forget(heard)
        if stored is None:
            raise Refusal("DEPENDENCY_UNAVAILABLE", "No bundle has been built yet.")
        if stored.etag == known:
            return Response(status_code=304, headers={"etag": stored.etag})
        return Response(stored.archive, media_type=CONTENT_TYPE, headers={"etag": stored.etag})

    return router


async def _newest(pool: Pool, plane: PlaneId) -> bundles.StoredBundle | None:
    async with pool.acquire() as connection:
        return await bundles.newest(connection, plane)


async def _heard_within(heard: asyncio.Event, seconds: int) -> None:
    try:
        await asyncio.wait_for(heard.wait(), seconds)
    except TimeoutError:
        return
