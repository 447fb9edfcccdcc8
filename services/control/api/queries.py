"""Which query parameters a route takes: those that it declares, and no other. A filter that we
ignored would look like one that fits.

Decides for all routes of the description at once; what values may be, each route's own model says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request

#: pydantic's word for it, which `faults` turns into ours.
UNKNOWN: Final = "extra_forbidden"


def check(request: Request) -> None:
    """Raises RequestValidationError, which tells the places of those that are not known: their
    names are the sender's words. Pages are outside: whoever hands on a link may have added to it.
    """
    route: APIRoute = request.scope["route"]
    if not request.scope["query_string"] or not route.include_in_schema:
        return
    known = set(taken_by(route))
    unknown = [
        {"type": UNKNOWN, "loc": ("query", place)}
        for place, (name, _) in enumerate(request.query_params.multi_items(), start=1)
        if name not in known
    ]
    if unknown:
        raise RequestValidationError(unknown)


def taken_by(route: APIRoute) -> Iterator[str]:
    """Their names, as the description has them."""
    for parameter in route.dependant.query_params:
        declared = parameter.field_info.annotation
        if isinstance(declared, type) and issubclass(declared, BaseModel):
            yield from (field.alias or name for name, field in declared.model_fields.items())
        else:
            yield parameter.alias
