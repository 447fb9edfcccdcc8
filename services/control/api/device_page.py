"""The page where somebody lets a device in (RFC 8628 3.3): `/device`, and `/device/{code}`. They
sign in here, by whatever their tenant signs in with; see what asks; and say yes or no, once.

Before the sign-in nothing depends on the code. After it, codes that are none are few per person,
and on record. Forms are taken from our own page alone. What is given is never more than the session
that gives it, and ends no later.
"""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

from services.common.ids import NIL_TENANT
from services.common.postgres.pool import tenant_tx
from services.control import audit_records, device_codes, limits, problems, sessions
from services.control.api import approval_html, auth, page_frame, proofs
from services.control.api import device_html as html
from services.control.api import page_sessions as who
from services.control.api.auth_oidc import login_path
from services.control.api.context import Call, Visit
from services.control.api.guards import anyone
from services.control.api.page_frame import page_of
from services.control.api.page_sessions import form_of
from services.control.problems import Refusal
from services.control.store import devices as store
from services.control.store.devices import Asked
from services.control.store.people import Account

router = APIRouter(prefix="/device", include_in_schema=False)

_CODE: Final = "{user_code:str}"


@router.get("")
async def enter_user_code(visit: Annotated[Visit, anyone()]) -> Response:
    given = visit.request.query_params.get("user_code", "")
    if not given:
        return page_of(html.enter())
    code = device_codes.typed(given)
    if code is None:
        return page_of(html.enter("That is no such code: eight letters."), status=400)
    tenant = visit.request.query_params.get("tenant", "")[:40]
    return _back(code, f"?{urlencode({'tenant': tenant})}" if tenant else "")


@router.get(f"/{_CODE}")
async def show_device(user_code: str, visit: Annotated[Visit, anyone()]) -> Response:
    code = _of(user_code)
    try:
        call = await who.signed_in(visit)
    except Refusal as refused:
        words = {
            "SESSION_EXPIRED": "Your session has ended.",
            "SECOND_FACTOR_REQUIRED": "Add a passkey or one-time codes to your account first.",
        }
        return await _sign_in_form(visit, code, words.get(refused.reason, ""))
    return await _shown(call, code)


@router.post(f"/{_CODE}/sign-in")
async def sign_in_for_device(user_code: str, visit: Annotated[Visit, anyone()]) -> Response:
    """1. from our own form  2. the password  3. the second factor of whoever has one  4. in."""
    code, form = _of(user_code), await form_of(visit.request)
    if not await who.of_this_browser(visit, form):  # 1
        return await _sign_in_form(visit, code, "That form was too old. Try again.", status=403)
    username, password = form.get("username", ""), form.get("password", "")
    if not 1 <= len(username) <= 320 or not 1 <= len(password) <= 1024 or "\0" in username:
        return await _sign_in_form(visit, code, "User name or password is wrong.", status=401)
    try:
        account, known_as = await auth.prove(visit, username, password)  # 2
        if account.factors:  # 3
            return await _second_form(visit, code, account)
        token = await auth.open_session(visit, account, known_as, "browser")  # 4
    except Refusal as refused:
        return await _not_in(visit, code, refused)
    return _in(visit, code, token)


@router.post(f"/{_CODE}/second-factor")
async def prove_for_device(user_code: str, visit: Annotated[Visit, anyone()]) -> Response:
    code, form = _of(user_code), await form_of(visit.request)
    if not await who.of_this_browser(visit, form):
        return await _sign_in_form(visit, code, "That form was too old. Try again.", status=403)
    try:
        proof = who.proof_of_sign_in(form)
        _, token = await auth.second_half(visit, proof, form.get("challenge", "")[:200])
    except Refusal as refused:
        return await _not_in(visit, code, refused)
    return _in(visit, code, token)


@router.post(f"/{_CODE}/sign-out")
async def sign_out_of_device(user_code: str, visit: Annotated[Visit, anyone()]) -> Response:
    code, form = _of(user_code), await form_of(visit.request)
    call = await who.signed_in(visit)
    await who.check_own_form(call, form)
    await auth.end(call)
    answer = _back(code)
    answer.headers.append("set-cookie", visit.control.origins.clear_cookie())
    return answer


@router.post(f"/{_CODE}")
async def answer_device(user_code: str, visit: Annotated[Visit, anyone()]) -> Response:
    """1. from our own form  2. the code  3. a fresh proof, where it is due  4. the answer, once,
    with its record.
    """
    code, form = _of(user_code), await form_of(visit.request)
    try:
        call = await who.signed_in(visit)
    except Refusal:
        words = "Your session has ended: nothing was done. Sign in again."
        return await _sign_in_form(visit, code, words, status=401)
    token = None
    try:
        await who.check_own_form(call, form)  # 1
        asked = await _find(call, code)  # 2
        if asked is None:
            return page_of(html.unknown(_path(code), _viewer(call)), status=404)
        approved = form.get("act") == "approve"
        if not approved and form.get("act") != "deny":
            raise Refusal("VALIDATION_FAILED", "Choose what to do.")
        again = who.proof_again(form)
        if approved and again is not None:  # 3
            token = await auth.give_again(call, "browser", again)
            call = who.proven(call, token)
        if approved and asked.step_up and not call.stepped_up:
            raise Refusal("STEP_UP_REQUIRED", "This needs a fresh proof that it is you.")
        await _answer(call, asked, approved=approved)  # 4
    except Refusal as refused:
        return await _shown(call, code, refused=refused, token=token)
    return _with_session(visit, page_of(html.done(approved=approved)), token)


async def _answer(call: Call, asked: Asked, *, approved: bool) -> None:
    principal = call.principal
    async with tenant_tx(call.control.pool, call.tenant) as connection:
        done = await store.answer(
            connection,
            call.tenant,
            asked.device_sha256,
            user=principal.id,
            session=principal.session_id or "",
            approved=approved,
            now=call.now,
        )
        if not done:
            raise Refusal("CONFLICT", "Somebody has answered it already.")
        what = "user.device_approved" if approved else "user.device_denied"
        record = audit_records.user(what, call.tenant, call.came(principal.actor()))
        await call.control.recorder.put(connection, record)
    call.control.recorder.wake()


async def _find(call: Call, code: str) -> Asked | None:
    """What the code is of, if it is still open. One that is none counts, and is on record. Raises
    RATE_LIMITED.
    """
    window, now = call.control.limits.user_codes, call.now
    key = (call.tenant, call.principal.id)
    try:
        await window.take(key)
    except limits.TooMany as too_many:
        wait = {"retry-after": str(too_many.retry_after_s)}
        words = "Too many codes that are none. Try again later."
        raise Refusal("RATE_LIMITED", words, headers=wait) from None
    async with tenant_tx(call.control.pool, NIL_TENANT) as connection:
        asked = await store.by_user_code(connection, device_codes.kept(code))
        if asked is not None and now < asked.expires_at:
            await window.give_back(key)
            if await store.answered(connection, asked.device_sha256) is None:
                return asked
            return None
    await call.record_failure(call.tenant, call.principal.actor(), "user_code_unknown")
    return None


# Answers ------------------------------------------------------------------------------------------


async def _shown(
    call: Call, code: str, *, refused: Refusal | None = None, token: str | None = None
) -> Response:
    error, status, headers = "", 200, dict[str, str]()
    if refused is not None:
        error, status, headers = refused.message, problems.status_of(refused.code), refused.headers
    try:
        asked = await _find(call, code)
    except Refusal as limited:
        status, headers = problems.status_of(limited.code), limited.headers
        return _with_session(
            call, page_of(html.enter(limited.message), status=status, headers=headers), token
        )
    if asked is None:
        answer = page_of(html.unknown(_path(code), _viewer(call)), status=404)
        return _with_session(call, answer, token)
    viewer = _viewer(call, step_up=asked.step_up, code=code)
    request = html.Request(
        code=code,
        address=asked.client_ip,
        age=call.now - asked.created_at,
        step_up=asked.step_up,
    )
    text = html.page(_path(code), request, viewer, error=error)
    answer = page_of(text, status=status, headers=headers, scripted=viewer.scripted)
    return _with_session(call, answer, token)


def _viewer(call: Call, *, step_up: bool = False, code: str = "") -> html.Viewer:
    principal = call.principal
    return html.Viewer(
        name=principal.name,
        role=principal.role.key,
        tenant=principal.tenant_slug,
        csrf=principal.csrf_token or "",
        needs_proof=step_up and not call.stepped_up,
        by_code="totp" in principal.factors,
        by_passkey="passkey" in principal.factors,
        again=who.provider_again(call, _path(code)),
    )


async def _sign_in_form(
    visit: Visit,
    code: str,
    error: str,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> Response:
    slug = visit.request.query_params.get("tenant", "")[:40]
    provider = await login_path(visit, slug, return_to=_path(code))
    browser = who.browser(visit)
    text = html.sign_in(
        _path(code), token=sessions.csrf_token(browser), provider=provider, error=error
    )
    answer = page_of(text, status=status, headers=headers)
    who.keep_browser(visit, answer, browser)
    return answer


async def _second_form(visit: Visit, code: str, account: Account) -> Response:
    asked = proofs.Who(tenant=account.tenant, user=account.user_id)
    challenge, options = await proofs.ask(visit, asked, "sign_in", "browser")
    text = approval_html.second_factor(
        _path(code),
        token=sessions.csrf_token(who.browser(visit)),
        challenge=challenge,
        options=options,
    )
    return page_of(text, scripted=options is not None)


async def _not_in(visit: Visit, code: str, refused: Refusal) -> Response:
    """Back to the first half. Raises what is no refusal of a sign-in."""
    if refused.reason not in {"UNAUTHENTICATED", "RATE_LIMITED"}:
        raise refused
    status = problems.status_of(refused.code)
    return await _sign_in_form(visit, code, refused.message, status=status, headers=refused.headers)


def _in(visit: Visit, code: str, token: str) -> Response:
    answer = _with_session(visit, _back(code), token)
    who.keep_browser(visit, answer, "")
    return answer


def _with_session(visit: Visit, answer: Response, token: str | None) -> Response:
    if token is not None:
        answer.headers.append("set-cookie", visit.control.origins.set_cookie(token))
    return answer


def _back(code: str, query: str = "") -> Response:
    """To the page itself, wherever the form came from."""
    return RedirectResponse(_path(code) + query, status_code=303, headers=page_frame.HEADERS)


def _path(code: str) -> str:
    return f"/device/{code}"


def _of(user_code: str) -> str:
    """Raises NOT_FOUND for what can be none."""
    code = device_codes.typed(user_code)
    if code is None or code != user_code:
        raise problems.not_found("code")
    return code
