"""Turns what handlers raise, and what the framework raises by itself, into problems."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import asyncpg
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from services.common.errors import BehavryError
from services.control import problems
from services.control.api import queries
from services.control.api.bodies import CODES
from services.control.api.context import Visit, control_of
from services.control.api.pages import frame
from services.control.problems import FieldError, Refusal
from services.control.servers import BadServer

_BY_STATUS: Final = {
    401: ("UNAUTHENTICATED", "No valid credential was sent."),
    404: ("NOT_FOUND", "There is nothing at this address."),
    405: ("METHOD_NOT_ALLOWED", "This address does not take this method."),
    413: ("BODY_TOO_LARGE", "The body is too large."),
    415: ("UNSUPPORTED_MEDIA_TYPE", "Send application/json."),
}
#: Where people read what comes back.
_PAGES: Final = ("/approve/", "/device", "/join", "/reset")
_SIGN_IN: Final = "/api/v1/auth/login"
_PARAMETER: Final = re.compile(r"\{(\w+)(?::\w+)?\}")
#: The database is away or will not have us now.
_DATABASE_AWAY: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InterfaceError,
    OSError,  # refused, no socket, no answer in time
)


def install(app: FastAPI) -> None:
    app.add_exception_handler(BehavryError, _behavry)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _query)
    app.add_exception_handler(BadServer, _bad_server)
    for kind in _DATABASE_AWAY:
        app.add_exception_handler(kind, _database)


def answer(error: BehavryError, *, instance: str, request_id: str, page: bool = False) -> Response:
    """The response of a refusal; to whoever looks at a page, in words."""
    problem = problems.document(error, instance=instance, request_id=request_id)
    headers = dict(error.headers) if isinstance(error, Refusal) else {}
    if problem["status"] == 503:
        headers.setdefault("retry-after", "1")
    if page:
        text = frame.failed(problem["title"], problem["detail"], request_id=request_id)
        headers |= frame.HEADERS
        return HTMLResponse(text, status_code=problem["status"], headers=headers)
    return Response(
        json.dumps(problem, ensure_ascii=False),
        status_code=problem["status"],
        headers=headers,
        media_type=problems.MEDIA_TYPE,
    )


def instance_of(scope: Mapping[str, Any]) -> str:
    """The route, its parameters as names: what was put into a path is not echoed."""
    return _PARAMETER.sub(r":\1", getattr(scope.get("route"), "path", "/"))


def is_page(scope: Mapping[str, Any]) -> bool:
    """Whether a browser is at the other end, and a person reads what comes back."""
    return str(scope["path"]).startswith(_PAGES)


async def _behavry(request: Request, error: Exception) -> Response:
    assert isinstance(error, BehavryError)  # noqa: S101  # registered for it
    return _answer(request, error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for it
    reason, message = _BY_STATUS.get(error.status_code, ("INVALID_ARGUMENT", "It cannot be used."))
    return _answer(request, Refusal(reason, message, headers=error.headers))


async def _query(request: Request, error: Exception) -> Response:
    """Query and path parameters; bodies never come here."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for it
    errors, in_path, words = [], False, ""
    for detail in error.errors():
        in_path |= detail["loc"][0] == "path"
        name = detail["loc"][1] if len(detail["loc"]) > 1 else ""
        if detail["type"] == queries.UNKNOWN:
            words, name = words or _unknown(request, name), ""
        errors.append(FieldError(f"?{name}", CODES.get(detail["type"], "invalid")))
    if not in_path and request.url.path == _SIGN_IN:
        # Where a browser should be led afterwards is in there.
        visit = Visit(control=control_of(request), request=request)
        await visit.record_failure(
            None, {"kind": "unknown"}, "sign_in_query_refused", type="user.request_refused"
        )
    if not in_path:
        refusal = Refusal("INVALID_FILTER", words or "The query cannot be used.", errors=errors)
    elif request.method == "PUT":
        refusal = Refusal("VALIDATION_FAILED", "This cannot be a name.", errors=errors)
    else:
        refusal = problems.not_found("name")
    return _answer(request, refusal)


def _unknown(request: Request, place: int | str) -> str:
    """By its place, and with those that there are: what somebody made up is not told back."""
    taken = sorted(queries.taken_by(request.scope["route"]))
    known = f"it takes {', '.join(taken)}" if taken else "it takes none"
    return f"This address does not take parameter {place} of the query: {known}."


async def _bad_server(request: Request, error: Exception) -> Response:
    assert isinstance(error, BadServer)  # noqa: S101  # registered for it
    return _answer(request, problems.invalid(f"/{error.field}", error.code, error.message))


async def _database(request: Request, _: Exception) -> Response:
    return _answer(request, Refusal("DEPENDENCY_UNAVAILABLE", "The database does not answer."))


def _answer(request: Request, error: BehavryError) -> Response:
    return answer(
        error,
        instance=instance_of(request.scope),
        request_id=request.state.request_id,
        page=is_page(request.scope),
    )
