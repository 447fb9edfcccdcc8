"""The pages that a browser gets before the dashboard exists: `/` and a rendering of the API
description. No script, one style sheet of our own, nothing from elsewhere.
"""

from __future__ import annotations

from html import escape
from typing import Annotated, Any, Final

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from services.control.api.context import Visit
from services.control.api.guards import anyone
from services.control.problems import CATALOGUE

router = APIRouter(include_in_schema=False)

_CSP: Final = (
    "default-src 'self'; script-src 'none'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)
_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid #8884; padding: .3rem .5rem; text-align: left }
code { font: 14px ui-monospace, monospace }
:root { color-scheme: light dark }
"""


@router.get("/")
async def home(visit: Annotated[Visit, anyone()]) -> Response:
    banner = "" if visit.control.origins.secure else "<p>Plain HTTP, for this machine alone.</p>"
    return _page(
        "Behavry",
        "<p>This is the control plane. The dashboard comes with a later release; until then "
        "everything it will do is in the REST API and the <code>behavry</code> command.</p>"
        '<p><a href="/reference">API reference</a>, also as '
        f'<a href="/openapi.json">OpenAPI 3.1</a>.</p>{banner}',
    )


@router.get("/reference")
async def reference(visit: Annotated[Visit, anyone()]) -> Response:
    rows = "".join(_rows(visit.request.app.openapi()))
    head = "<tr><th>Method</th><th>Path</th><th>Operation</th><th>Least role</th></tr>"
    errors = "".join(
        f"<tr id='{code}'><td>{status}</td><td><code>{code}</code></td>"
        f"<td>{escape(title)}</td></tr>"
        for code, (status, title) in CATALOGUE.items()
    )
    return _page(
        "API reference",
        '<p>Complete, with all fields: <a href="/openapi.json">openapi.json</a>.</p>'
        f"<table>{head}{rows}</table><h2>Errors</h2><table>{errors}</table>",
    )


@router.get("/errors/{code}")
async def error_page(code: str, _: Annotated[Visit, anyone()]) -> Response:
    """Where a problem's `type` leads."""
    status, title = CATALOGUE.get(code, CATALOGUE["not_found"])
    name = code if code in CATALOGUE else "not_found"
    return _page(title, f"<p><code>{name}</code>, status {status}.</p>")


@router.get("/style.css")
async def style(_: Annotated[Visit, anyone()]) -> Response:
    return Response(_STYLE, media_type="text/css", headers={"cache-control": "max-age=300"})


def _rows(description: dict[str, Any]) -> list[str]:
    return [
        f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(str(operation.get('operationId', '')))}</td>"
        f"<td>{escape(str(operation.get('x-required-role') or ''))}</td></tr>"
        for path, operations in sorted(description["paths"].items())
        for method, operation in operations.items()
    ]


def _page(title: str, body: str) -> Response:
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<link rel="stylesheet" href="/style.css"><h1>{escape(title)}</h1>{body}</html>',
        headers={"content-security-policy": _CSP},
    )
