"""Public documents: the key set that checks agents' tokens, and the token endpoint's metadata."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from starlette.responses import Response

from services.control.api.context import Visit
from services.control.api.guards import anyone
from services.control.api.shapes import not_modified
from services.control.keys import MAX_AGE_S

router = APIRouter(prefix="/.well-known", tags=["agents"])


@router.get("/jwks.json")
async def get_jwks(visit: Annotated[Visit, anyone()]) -> Any:
    keys = visit.control.key_set
    headers = {"etag": keys.etag, "cache-control": f"public, max-age={MAX_AGE_S}"}
    if not_modified(visit.request, keys.etag):
        return Response(status_code=304, headers=headers)
    return Response(keys.document, media_type="application/json", headers=headers)


@router.get("/oauth-authorization-server")
async def get_oauth_metadata(visit: Annotated[Visit, anyone()]) -> dict[str, Any]:
    """RFC 8414. Client credentials alone: there is no authorization endpoint to name."""
    issuer = visit.control.issuer.url
    return {
        "issuer": issuer,
        "token_endpoint": f"{issuer}/api/v1/auth/token",
        "jwks_uri": f"{issuer}/.well-known/jwks.json",
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": [],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "scopes_supported": ["mcp"],
    }
