"""The API description (OpenAPI 3.1). What a route requires and reads is taken from the guard and
the body reader that enforce it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from services.control.api.bodies import JsonBody
from services.control.api.guards import OpenDoor, RoleGuard

_REF: Final = "#/components/schemas/{model}"
_PROBLEM: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "code"],
                "properties": {"pointer": {"type": "string"}, "code": {"type": "string"}},
            },
        },
    },
}


_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,128}$"},
}


def describe(app: FastAPI, routers: Sequence[APIRouter]) -> dict[str, Any]:
    description = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version="3.1.0",
        description=app.description,
        routes=app.routes,
    )
    schemas = description.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # the framework's, never answered
        schemas.pop(name, None)
    schemas["Problem"] = _PROBLEM
    bodies = sorted(
        {reader.model for route in api_routes(routers) for reader in readers(route)},
        key=lambda model: model.__name__,
    )
    names, definitions = models_json_schema(
        [(model, "validation") for model in bodies], ref_template=_REF
    )
    schemas |= definitions.get("$defs", {})
    for route in api_routes(routers):
        if route.include_in_schema:
            path = description["paths"][route.path_format]
            for method in route.methods or ():
                _complete(path[method.lower()], route, names)
    return description


def api_routes(routers: Sequence[APIRouter]) -> list[APIRoute]:
    """From the routers themselves: an application keeps what it includes to itself."""
    return [route for router in routers for route in router.routes if isinstance(route, APIRoute)]


def guard_of(route: APIRoute) -> RoleGuard | OpenDoor:
    """The one guard of a route. Raises ValueError when there is none, or more."""
    found = [call for call in _calls(route.dependant) if isinstance(call, (RoleGuard, OpenDoor))]
    if len(found) != 1:
        raise ValueError(f"{route.path} has {len(found)} guards")
    return found[0]


def readers(route: APIRoute) -> list[JsonBody[Any]]:
    return [call for call in _calls(route.dependant) if isinstance(call, JsonBody)]


def _calls(dependant: Dependant) -> Iterator[Any]:
    for inner in dependant.dependencies:
        yield inner.call
        yield from _calls(inner)


def _complete(operation: dict[str, Any], route: APIRoute, names: dict[Any, Any]) -> None:
    guard = guard_of(route)
    operation["x-required-role"] = guard.required
    if guard.feature:
        operation["x-required-feature"] = guard.feature
    if guard.human:
        operation["x-requires-human"] = True
    if guard.fresh:
        operation["x-requires-step-up"] = True
    if guard.keyed:
        operation.setdefault("parameters", []).append(_KEY)
    operation["responses"].pop("422", None)
    operation["responses"]["default"] = {
        "description": "A problem (RFC 9457)",
        "content": {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}},
    }
    for reader in readers(route):
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": names[reader.model, "validation"]}},
        }
