"""`POST /api/v1/auth/token`: an agent trades its secret for an access token (core.md 2).

Steps: 1. the form  2. the grant type  3. limits  4. the secret  5. the audience  6. in one
transaction, under the agent's row lock: its status, the session (renewed or new), the roles
7. the token. Errors are OAuth's (RFC 6749 5.2): clients of this endpoint read no problem documents.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, unquote_plus

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from services.common.ids import AgentId, SessionId, TenantId, is_uuid
from services.common.postgres.pool import tenant_tx
from services.control import credentials, limits
from services.control.api.bodies import media_type, read_capped
from services.control.api.context import Visit
from services.control.api.guards import anyone
from services.control.store import agent_sessions, agents, roles
from services.control.store.agents import Candidate
from services.control.tokens import RISK_TIER, Grant, UnknownResource

router = APIRouter(prefix="/api/v1", tags=["agents"])

MAX_FORM_BYTES: Final = 16 * 1024
_FIELDS: Final = frozenset(
    {"grant_type", "client_id", "client_secret", "resource", "session", "scope"}
)
_NO_STORE: Final = {"cache-control": "no-store", "pragma": "no-cache"}


class TokenRefused(Exception):
    """`error` as in RFC 6749 5.2 or core.md 2."""

    def __init__(self, status: int, error: str, description: str, **headers: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.description = description
        self.headers = headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    client_id: str
    secret: str = field(repr=False)
    resource: str | None
    session: str | None
    #: The client used HTTP Basic, which wants its own challenge (RFC 6749 5.2).
    basic: bool


@router.post(
    "/auth/token",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/x-www-form-urlencoded": {
                    "schema": {
                        "type": "object",
                        "required": ["grant_type"],
                        "properties": {
                            "grant_type": {"const": "client_credentials"},
                            "client_id": {"type": "string"},
                            "client_secret": {"type": "string"},
                            "resource": {"type": "string", "format": "uri"},
                            "session": {"type": "string", "format": "uuid"},
                        },
                    }
                }
            },
        }
    },
)
async def token(visit: Annotated[Visit, anyone(any_query=True)]) -> JSONResponse:
    try:
        answer = await _grant(visit)
    except TokenRefused as refused:
        body = {"error": refused.error, "error_description": refused.description}
        headers = {name.replace("_", "-"): value for name, value in refused.headers.items()}
        return JSONResponse(body, status_code=refused.status, headers={**_NO_STORE, **headers})
    return JSONResponse(answer, headers=_NO_STORE)


async def _grant(visit: Visit) -> dict[str, Any]:
    asked = await _read(visit.request)  # 1, 2
    async with visit.control.pool.acquire() as connection:
        candidate = (
            await agents.candidate(connection, asked.client_id)
            if is_uuid(asked.client_id)
            else None
        )
    _admit(visit, asked, candidate)  # 3
    found = credentials.matching(
        candidate.secrets if candidate else (), asked.secret, visit.now
    )  # 4
    if candidate is None or found is None or candidate.tenant_status != "active":
        await _failed(visit, asked, candidate, "invalid_client")
        raise _invalid_client(asked)
    try:
        audience = visit.control.audiences.of(asked.resource)  # 5
    except UnknownResource:
        raise TokenRefused(
            400, "invalid_target", "The resource is none of this data plane's endpoints."
        ) from None
    try:
        grant = await _enter(visit, asked, candidate, found.id, audience)  # 6
    except TokenRefused as refused:
        await _failed(visit, asked, candidate, refused.error)
        raise
    access_token = visit.control.issuer.issue(grant, now_ns=visit.control.clock.now_ns())  # 7
    return {
        "access_token": access_token,
        "token_type": "Bearer",
        "expires_in": grant.life_s,
        "agent_id": grant.agent,
        "session_id": grant.session,
        "risk_tier": RISK_TIER,
    }


async def _read(request: Request) -> Asked:
    if media_type(request) != "application/x-www-form-urlencoded":
        raise _bad("Send application/x-www-form-urlencoded.")
    raw = await read_capped(request, MAX_FORM_BYTES)
    try:
        pairs = parse_qsl(
            raw.decode(), keep_blank_values=True, strict_parsing=bool(raw), max_num_fields=20
        )
    except ValueError:
        raise _bad("The form cannot be read.") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise _bad("A parameter was sent twice.")
    if any("\0" in value or len(value) > 2048 for value in form.values()):
        raise _bad("A parameter cannot be used.")
    if unknown := form.keys() - _FIELDS:
        raise _bad(f"{len(unknown)} parameter(s) are not known here.")
    if "grant_type" not in form:
        raise _bad("grant_type is missing.")
    if form["grant_type"] != "client_credentials":
        raise TokenRefused(400, "unsupported_grant_type", "Only client_credentials is served.")
    client_id, secret, basic = _client(request, form)
    return Asked(
        client_id=client_id,
        secret=secret,
        resource=form.get("resource"),
        session=form.get("session"),
        basic=basic,
    )


def _client(request: Request, form: dict[str, str]) -> tuple[str, str, bool]:
    """(client id, secret, by Basic). One method of the two (RFC 6749 2.3)."""
    header = request.headers.get("authorization")
    if header is None:
        return form.get("client_id", ""), form.get("client_secret", ""), False
    if "client_secret" in form:
        raise _bad("Send the secret in one place only.")
    scheme, _, encoded = header.partition(" ")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        text = ""
    client_id, colon, secret = text.partition(":")
    if scheme.lower() != "basic" or not colon:
        raise _bad("The Authorization header cannot be read.")
    client_id, secret = unquote_plus(client_id), unquote_plus(secret)
    if form.get("client_id", client_id) != client_id:
        raise _bad("Two different clients were named.")
    return client_id, secret, True


def _door(visit: Visit, candidate: Candidate | None) -> limits.TokenDoor:
    doors = visit.control.limits
    return doors.known_clients if candidate else doors.unknown_clients


def _admit(visit: Visit, asked: Asked, candidate: Candidate | None) -> None:
    door = _door(visit, candidate)
    try:
        door.failures.check((asked.client_id, visit.address))
        door.requests.take(asked.client_id)
    except limits.TooMany as too_many:
        raise TokenRefused(
            429,
            "rate_limited",
            "Too many requests. Try again later.",
            retry_after=str(too_many.retry_after_s),
        ) from None


async def _enter(
    visit: Visit, asked: Asked, candidate: Candidate, secret_id: str, audience: str
) -> Grant:
    tenant, agent_id, now = candidate.tenant, AgentId(asked.client_id), visit.now
    async with tenant_tx(visit.control.pool, tenant) as connection:
        agent = await agents.get(connection, agent_id, lock=True)
        if agent is None or agent["status"] == "revoked":
            raise _invalid_client(asked)
        if agent["status"] != "active":
            raise TokenRefused(403, "agent_suspended", "The agent is suspended.")
        expires_at = now + credentials.seconds(agent["token_life_s"]) + credentials.LEEWAY
        if asked.session is not None:
            session = SessionId(asked.session)
            renewed = is_uuid(asked.session) and await agent_sessions.renew(
                connection,
                agent_id,
                id=session,
                secret_id=secret_id,
                now=now,
                token_expires_at=expires_at,
            )
            if not renewed:
                raise TokenRefused(400, "invalid_grant", "The session has ended.")
        else:
            live = await agent_sessions.count_live(connection, agent_id, now)
            if live >= credentials.MAX_SESSIONS:
                raise TokenRefused(429, "session_limit", "The agent has 100 live sessions.")
            session = SessionId(visit.control.new_id())
            await agent_sessions.begin(
                connection,
                tenant,
                agent_id,
                id=session,
                secret_id=secret_id,
                now=now,
                token_expires_at=expires_at,
            )
        permissions = await roles.permissions_of(connection, agent["roles"])
    return Grant(
        tenant=tenant,
        agent=agent_id,
        session=session,
        agent_class=agent["class"],
        roles=tuple(agent["roles"]),
        permissions=permissions,
        audience=audience,
        life_s=agent["token_life_s"],
    )


async def _failed(visit: Visit, asked: Asked, candidate: Candidate | None, why: str) -> None:
    """Counts a failure against its client and address, and records it where the tenant is known."""
    if why == "invalid_client":
        _door(visit, candidate).failures.enter((asked.client_id, visit.address))
    tenant: TenantId | None = candidate.tenant if candidate else None
    actor = (
        {"kind": "agent", "id": asked.client_id, "name": candidate.name}
        if candidate
        else {"kind": "unknown"}
    )
    await visit.record_failure(tenant, actor, why)


def _bad(description: str) -> TokenRefused:
    return TokenRefused(400, "invalid_request", description)


def _invalid_client(asked: Asked) -> TokenRefused:
    challenge = {"www_authenticate": 'Basic realm="behavry"'} if asked.basic else {}
    return TokenRefused(401, "invalid_client", "The client is not known here.", **challenge)
