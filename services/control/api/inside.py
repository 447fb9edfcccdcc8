"""Lets a super-admin's path (`/api/v1/tenants/{id}/agents`) reach the route of the resource
(`/api/v1/agents`). Who may go there is the guard's to say: it finds the tenant in the state.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from services.control import tenancy


class InsideTenants:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = tenancy.inside(scope["path"]) if scope["type"] == "http" else None
        if found is not None:
            scope.setdefault("state", {})["inside"] = found.tenant
            scope["path"] = found.path
        await self._app(scope, receive, send)
