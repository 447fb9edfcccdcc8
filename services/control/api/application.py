"""Puts the API together: routes, refusals, edge, description."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from services.control.api import faults, openapi, replays
from services.control.api.context import Control
from services.control.api.edge import Edge
from services.control.api.inside import InsideTenants
from services.control.api.routers import ROUTERS

_NO_TELEMETRY: dict[str, Any] = {
    "tracing": False,
    "metrics": False,
    "logs": False,  # they carry exception texts
    "operation_spans": False,
    "auto_configure": False,
}


def build(control: Control) -> FastAPI:
    app = FastAPI(
        title="Behavry control plane",
        version="1",
        openapi_url="/openapi.json",
        docs_url=None,  # both load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        telemetry=_NO_TELEMETRY,  # type: ignore[arg-type]  # a TypedDict that is not exported
    )
    app.state.control = control
    for router in ROUTERS:
        app.include_router(router)
    for route in openapi.api_routes(ROUTERS):
        openapi.guard_of(route)  # a route without a guard does not start
    faults.install(app)
    app.add_exception_handler(replays.Replayed, replays.replay)
    app.add_middleware(replays.Replays)
    app.add_middleware(InsideTenants)
    app.add_middleware(  # the last one added is the outermost
        Edge,
        clock=control.clock,
        log=control.log,
        max_in_flight=control.settings.max_in_flight,
    )
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]  # the documented way
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = openapi.describe(app, ROUTERS)
    return app.openapi_schema
