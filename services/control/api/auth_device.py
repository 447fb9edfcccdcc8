"""Sign-in at a device without a browser (RFC 8628): it asks for codes, a person who is signed in
approves on control's page (pages/device.py), and it gets a session of theirs. So it works whatever
people sign in with.

A poll: 1. the form  2. the code, among few that are wrong  3. its time  4. not too early  5. what
was said to it  6. the session, once, with its record. Answers and errors are OAuth's, as at the
token door: clients of both read no problem documents.
"""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from services.common.ids import NIL_TENANT
from services.common.postgres.pool import tenant_tx
from services.control import audit_records, device_codes, limits, sessions
from services.control.api.bodies import media_type, read_capped
from services.control.api.context import Visit
from services.control.api.guards import anyone
from services.control.api.token import TokenRefused
from services.control.device_codes import Codes
from services.control.store import devices as store
from services.control.store.devices import Answer, Asked

router = APIRouter(prefix="/api/v1/auth/device", tags=["people"])

PAGE: Final = "/device"
#: In all, whoever asked.
MAX_OPEN: Final = 1_000
_MAX_FORM_BYTES: Final = 16 * 1024
_NO_STORE: Final = {"cache-control": "no-store", "pragma": "no-cache"}


def _form_of(required: list[str], **fields: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": fields}
    content = {"application/x-www-form-urlencoded": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


_TEXT: Final = {"type": "string"}


@router.post(
    "/authorize",
    openapi_extra=_form_of(["client_id"], client_id=_TEXT, scope=_TEXT, tenant=_TEXT),
)
async def begin_device_login(visit: Annotated[Visit, anyone(any_query=True)]) -> JSONResponse:
    """Codes for a device. `tenant` goes into the page's address, for people of more than one."""
    try:
        return JSONResponse(await _begun(visit), headers=_NO_STORE)
    except TokenRefused as refused:
        return _refused(refused)


@router.post(
    "/token",
    openapi_extra=_form_of(
        ["grant_type", "device_code", "client_id"],
        grant_type={"const": device_codes.GRANT_TYPE},
        device_code=_TEXT,
        client_id=_TEXT,
    ),
)
async def end_device_login(visit: Annotated[Visit, anyone(any_query=True)]) -> JSONResponse:
    """What came of it: `authorization_pending` until somebody has said something."""
    try:
        return JSONResponse(await _polled(visit), headers=_NO_STORE)
    except TokenRefused as refused:
        return _refused(refused)


async def _begun(visit: Visit) -> dict[str, Any]:
    form = await _read(visit.request, frozenset({"client_id", "scope", "tenant"}))
    scopes = set(form.get("scope", "").split())
    if scopes - {device_codes.STEP_UP}:
        raise TokenRefused(400, "invalid_scope", "That scope is not known here.")
    control, now = visit.control, visit.now
    _take(control.limits.device_begins, visit)
    expires_at = now + device_codes.LIFE
    async with tenant_tx(control.pool, NIL_TENANT) as connection:
        if await store.count_open(connection, now) >= MAX_OPEN:
            raise TokenRefused(429, "rate_limited", "Too many wait. Try later.", retry_after="60")
        codes = Codes.new()
        asked = Asked(
            device_sha256=device_codes.kept(codes.device),
            client_ip=visit.address,
            step_up=device_codes.STEP_UP in scopes,
            created_at=now,
            expires_at=expires_at,
            interval_s=device_codes.INTERVAL_S,
            polled_at=None,
        )
        if not await store.begin(connection, asked, user_code_sha256=device_codes.kept(codes.user)):
            raise TokenRefused(429, "rate_limited", "Ask again.", retry_after="1")
    page = control.origins.public_url.rstrip("/") + PAGE
    query = f"?{urlencode({'tenant': form['tenant']})}" if form.get("tenant") else ""
    return {
        "device_code": codes.device,
        "user_code": codes.user,
        "verification_uri": page,
        "verification_uri_complete": f"{page}/{codes.user}{query}",
        "expires_in": int(device_codes.LIFE.total_seconds()),
        "interval": device_codes.INTERVAL_S,
    }


async def _polled(visit: Visit) -> dict[str, Any]:
    """The numbers are the module's."""
    form = await _read(visit.request, frozenset({"grant_type", "device_code", "client_id"}))  # 1
    if form.get("grant_type") != device_codes.GRANT_TYPE:
        raise TokenRefused(400, "unsupported_grant_type", "Only device_code is served here.")
    control, now = visit.control, visit.now
    _check(control.limits.device_failures, visit)  # 2
    device = device_codes.kept(form.get("device_code", ""))
    early, slower, said = False, device_codes.INTERVAL_S, None
    async with tenant_tx(control.pool, NIL_TENANT) as connection:
        asked = await store.lock(connection, device)
        if asked is not None:
            early = device_codes.too_early(asked.polled_at, asked.interval_s, now)
            slower = asked.interval_s + (device_codes.SLOWER_S if early else 0)
            await store.polled(connection, device, interval_s=slower, now=now)
            said = await store.answered(connection, device)
    if asked is None:
        control.limits.device_failures.enter(visit.address)
        raise await _not_granted(visit, None, "device_code_unknown")
    if now >= asked.expires_at:  # 3
        raise TokenRefused(400, "expired_token", "Nobody approved it in time. Begin again.")
    if early:  # 4
        raise TokenRefused(400, "slow_down", f"Ask every {slower} seconds.")
    if said is None:  # 5
        raise TokenRefused(400, "authorization_pending", "Nobody has approved it yet.")
    if not said.approved:
        raise TokenRefused(400, "access_denied", "It was denied.")
    return await _opened(visit, asked, said)  # 6


async def _opened(visit: Visit, asked: Asked, said: Answer) -> dict[str, Any]:
    control, now = visit.control, visit.now
    if said.tenant_status != "active":
        raise await _not_granted(visit, said, "tenant_not_active")
    token = sessions.new_token("bearer")
    opening = store.Opening(
        token_sha256=sessions.stored(token), id=control.new_id(), client_ip=visit.address
    )
    async with tenant_tx(control.pool, said.tenant) as connection:
        person = await store.use(
            connection,
            asked.device_sha256,
            opening,
            now=now,
            opened_after=now - sessions.ABSOLUTE,
        )
        if person is not None:
            actor = {"kind": "user", "id": person.user, "name": person.name}
            record = audit_records.user(
                "user.signin", said.tenant, visit.came(actor), reason="device"
            )
            await control.recorder.put(connection, record)
    if person is None:
        raise await _not_granted(visit, said, "device_code_spent")
    control.recorder.wake()
    return {
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": int((person.since + sessions.ABSOLUTE - now).total_seconds()),
    }


async def _not_granted(visit: Visit, said: Answer | None, reason: str) -> TokenRefused:
    """Recorded by its reason, told like every other."""
    await visit.record_failure(said.tenant if said else None, {"kind": "unknown"}, reason)
    return TokenRefused(400, "invalid_grant", "That code cannot be used.")


async def _read(request: Request, known: frozenset[str]) -> dict[str, str]:
    if media_type(request) != "application/x-www-form-urlencoded":
        raise _bad("Send application/x-www-form-urlencoded.")
    raw = await read_capped(request, _MAX_FORM_BYTES)
    try:
        pairs = parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=10)
    except ValueError:
        raise _bad("The form cannot be read.") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise _bad("A parameter was sent twice.")
    if any("\0" in value or len(value) > 200 for value in form.values()):
        raise _bad("A parameter cannot be used.")
    if form.keys() - known:
        raise _bad("A parameter is not known here.")
    if form.get("client_id") != device_codes.CLIENT:
        raise TokenRefused(401, "invalid_client", "The client is not known here.")
    return form


def _check(window: limits.Window, visit: Visit) -> None:
    try:
        window.check(visit.address)
    except limits.TooMany as too_many:
        raise _later(too_many) from None


def _take(window: limits.Window, visit: Visit) -> None:
    _check(window, visit)
    window.enter(visit.address)


def _later(too_many: limits.TooMany) -> TokenRefused:
    wait = str(too_many.retry_after_s)
    return TokenRefused(429, "rate_limited", "Too many tries. Try again later.", retry_after=wait)


def _bad(description: str) -> TokenRefused:
    return TokenRefused(400, "invalid_request", description)


def _refused(refused: TokenRefused) -> JSONResponse:
    body = {"error": refused.error, "error_description": refused.description}
    headers = {name.replace("_", "-"): value for name, value in refused.headers.items()}
    return JSONResponse(body, status_code=refused.status, headers={**_NO_STORE, **headers})
